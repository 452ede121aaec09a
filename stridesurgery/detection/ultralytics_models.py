"""What follows the strides in Ultralytics' YOLO models, which are told by name and not imported."""

from typing import Any

import torch
from torch import nn

from stridesurgery._analysis import NewStride
from stridesurgery.errors import RequestError
from stridesurgery.surgery import Surgery

KIND = "ultralytics.nn.tasks.BaseModel"


def follow(before: Any, after: Any, surgery: Surgery, stride: NewStride) -> None:
    """Set the strides that the head decodes boxes with, and the recipe that trainers rebuild from.

    Raises:
        RequestError: one axis only, which these heads have no stride for.
    """
    for holder in {id(m): m for m in (after, after.model[-1])}.values():
        if isinstance(vars(holder).get("stride"), torch.Tensor):
            holder.stride = _finer(holder.stride, stride)
    if vars(after.model[-1]).get("shape") is not None:
        after.model[-1].shape = None  # its anchors are made anew
    after.criterion = None  # a loss knows the strides
    rows = [*after.yaml.get("backbone", ()), *after.yaml.get("head", ())]
    for path, module in before.named_modules():
        other = after.get_submodule(path)
        if path.startswith("model.") and _settings(module) != _settings(other):
            number, _, inside = path.removeprefix("model.").partition(".")
            _rewrite(rows[int(number)], inside, other, surgery)


def _finer(strides: torch.Tensor, stride: NewStride) -> torch.Tensor:
    result = strides.clone()
    for i, old in enumerate(strides.tolist()):
        rows, columns = map(float, stride((old, old)))  # type: ignore[arg-type]
        if rows != columns:
            raise RequestError(
                "a YOLO's head has one stride for rows and columns; eliminate strides of both axes "
                "(axis='hw')"
            )
        result[i] = rows
    return result


def _settings(module: nn.Module) -> str:
    return f"{type(module).__name__} {module.extra_repr()}"


def _rewrite(row: list[Any], inside: str, module: nn.Module, surgery: Surgery) -> None:
    """Write a changed module into its row (from, number, module, arguments) of the recipe.

    A row that cannot say it is made one that cannot be built: a trainer would lose the surgery.
    """
    kind, arguments = row[2], list(row[3])
    if kind == "Conv" and inside == "conv" and isinstance(module, nn.Conv2d):
        steps = getattr(module, "windows", None)
        sides = tuple(w.step for w in steps) if steps else tuple(module.stride)
        even = [k % 2 == 0 for k in module.kernel_size]
        if sides[0] == sides[1] and (not any(even) or sides == (1, 1)):
            padding = ["same"] if any(even) else arguments[3:4]  # pads one more on the right
            row[3] = [*arguments[:2], sides[0], *padding, *arguments[4:]]
            return
    if kind == "nn.Upsample" and not inside and isinstance(module, nn.Upsample):
        row[3] = [arguments[0], module.scale_factor, *arguments[2:]]
        return
    row[2] = f"{kind} of {surgery.name}, which no row can say; train with a loop of your own:"
