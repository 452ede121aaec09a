"""Save operated models as safetensors or ONNX."""

from pathlib import Path

import torch
from torch import nn

from stridesurgery._cli.errors import CommandError
from stridesurgery._trace import image_for
from stridesurgery.saving import save, written_whole
from stridesurgery.surgery import Surgery


def write(model: nn.Module, surgery: Surgery, source: str, path: Path) -> None:
    """Write an operated model in the format of the path's ending.

    The recipe goes into the metadata of the file.

    Raises:
        OSError: the file cannot be written.
    """
    if path.suffix.lower() != ".onnx":
        return save(model, path, metadata={"model": source})
    assert surgery.input_size is not None  # every executed surgery has one
    image = torch.zeros_like(image_for(model, surgery.input_size, 1), device="cpu")
    try:
        program = torch.onnx.export(model, (image,), dynamo=True, verbose=False)
    except ImportError as problem:
        raise CommandError(
            f"ONNX needs the packages of stridesurgery[onnx]: {problem}"
        ) from problem
    assert program is not None
    program.model.metadata_props.update({"model": source, "surgery": surgery.to_json()})
    with written_whole(path) as part:
        program.save(part, external_data=False)
