"""Save operated models as safetensors or ONNX."""

from pathlib import Path

import torch
from torch import nn

from stridesurgery._cli.errors import CommandError
from stridesurgery._rewrite import save, written_whole
from stridesurgery._trace import image_for
from stridesurgery.surgery import Surgery

_FIXED = (
    "the model computes with its {} as constants, so its ONNX is not for any; leave --any-size "
    "out, and name the size by --input-size"
)


def write(
    model: nn.Module, surgery: Surgery, source: str, path: Path, any_size: bool = False
) -> None:
    """Write an operated model in the format of the path's ending.

    The recipe goes into the metadata of the file. ONNX takes batches of any length, and images of
    any size if asked.

    Raises:
        CommandError: the packages for ONNX are missing, or the model is none for any batch or size.
        OSError: the file cannot be written.
    """
    if path.suffix.lower() != ".onnx":
        return save(model, path, metadata={"model": source})
    assert surgery.input_size is not None  # every executed surgery has one
    images = torch.zeros_like(image_for(model, surgery.input_size, 2), device="cpu")
    if any_size and getattr(model, "only_at", None) is not None:
        raise CommandError(_FIXED.format("rows and columns"))
    free = {0: "batch", 2: "rows", 3: "columns"} if any_size else {0: "batch"}
    try:
        program = torch.onnx.export(
            model, (images,), dynamo=True, verbose=False, dynamic_shapes=(free,)
        )
    except ImportError as problem:
        raise CommandError(
            f"ONNX needs the packages of stridesurgery[onnx]: {problem}"
        ) from problem
    except torch.onnx.errors.OnnxExporterError as problem:
        raise CommandError(
            f"torch cannot write this model as ONNX for any {' and '.join(free.values())}: "
            f"{problem.__cause__ or problem}"
        ) from problem
    assert program is not None
    shape = program.model.graph.inputs[0].shape
    fixed = [name for axis, name in free.items() if shape is None or isinstance(shape[axis], int)]
    if fixed:
        raise CommandError(_FIXED.format(" and ".join(fixed)))
    program.model.metadata_props.update({"model": source, "surgery": surgery.to_json()})
    with written_whole(path) as part:
        program.save(part, external_data=False)
