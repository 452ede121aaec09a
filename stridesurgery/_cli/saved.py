"""Save and read operated models: weights and recipe in one file."""

from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from stridesurgery._cli.errors import CommandError
from stridesurgery._cli.files import written_whole
from stridesurgery._trace import image_for
from stridesurgery.surgery import Surgery

SUFFIXES = (".safetensors", ".onnx")


def write(model: nn.Module, surgery: Surgery, source: str, path: Path) -> None:
    """Write an operated model in the format of the path's ending.

    The recipe goes into the metadata of the file.

    Raises:
        CommandError: the file cannot be written.
    """
    metadata = {"format": "pt", "model": source, "surgery": surgery.to_json()}
    if path.suffix.lower() == ".onnx":
        return _write_onnx(model, surgery, metadata, path)
    state = model.state_dict()
    odd = [key for key, value in state.items() if not isinstance(value, Tensor)]
    if odd:
        raise CommandError(
            f"{odd[0]} of the state_dict is not a tensor, which safetensors cannot hold"
        )
    # the format cannot hold two tensors that share memory
    copies = {key: value.detach().to("cpu", copy=True).contiguous() for key, value in state.items()}
    # `save_file` is not used: other users could not read its file
    with written_whole(path) as part:
        part.write_bytes(safetensors.torch.save(copies, metadata))


def _write_onnx(model: nn.Module, surgery: Surgery, metadata: dict[str, str], path: Path) -> None:
    assert surgery.input_size is not None  # every executed surgery has one
    image = torch.zeros_like(image_for(model, surgery.input_size, 1), device="cpu")
    try:
        program = torch.onnx.export(model, (image,), dynamo=True, verbose=False)
    except ImportError as problem:
        raise CommandError(
            f"ONNX needs the packages of stridesurgery[onnx]: {problem}"
        ) from problem
    assert program is not None
    program.model.metadata_props.update(metadata)
    with written_whole(path) as part:
        program.save(part, external_data=False)


def read(path: Path) -> tuple[Surgery, dict[str, Any]]:
    """Return the recipe and the weights of a safetensors file that `write` wrote.

    Raises:
        CommandError: the file cannot be read, or has no recipe.
    """
    if not path.is_file():
        raise CommandError(f"there is no file {path}")
    try:
        with safe_open(path, framework="pt") as file:
            recipe = (file.metadata() or {}).get("surgery")
            state = {key: file.get_tensor(key) for key in file.keys()}
    except (SafetensorError, OSError) as problem:
        raise CommandError(f"{path} cannot be read as safetensors: {problem}") from problem
    if recipe is None:
        raise CommandError(
            f"{path} has no surgery in its metadata: `stridesurgery eliminate` did not write it"
        )
    return Surgery.from_json(recipe), state
