"""Compares what an operated model says of its own maps with what it makes."""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from stridesurgery._rewrite import Plan, intermediates, larger_by
from stridesurgery._trace import RewrittenModel, copied_model, tensors_returned
from stridesurgery._verify.runs import (
    OutputCheck,
    differs,
    is_repeatable,
    relative_error,
    tolerance,
)
from stridesurgery.errors import GridError, SurgeryError


def check_claims(operated: nn.Module, value: Any, image: Tensor) -> Iterator[OutputCheck]:
    """Compare the sizes of returned maps with the reductions that `feature_info` claims."""
    reductions = getattr(getattr(operated, "feature_info", None), "reduction", None)
    maps = {name: tensor for name, tensor in tensors_returned(value).items() if tensor.dim() == 4}
    claimed = reductions() if callable(reductions) else []
    if len(claimed) != len(maps):
        return
    for (name, tensor), reduction in zip(maps.items(), claimed, strict=True):
        rows, columns = reduction if isinstance(reduction, tuple) else (reduction, reduction)
        wanted = image.shape[2] / rows, image.shape[3] / columns
        if not any(_about(tuple(tensor.shape[i : i + 2]), wanted) for i in (1, 2)):
            raise GridError(
                f"{name} is {tuple(tensor.shape)}, and feature_info claims a reduction of "
                f"{reduction}"
            )
        yield OutputCheck(name, f"has the reduction {reduction} that feature_info claims", 0.0)


def _about(grid: tuple[int, ...], wanted: tuple[float, float]) -> bool:
    """Tell whether a grid has the wanted number of cells, up to a border."""
    borders = (max(1.0, side / 4) for side in wanted)
    return all(
        abs(n - side) < border for n, side, border in zip(grid, wanted, borders, strict=True)
    )


def check_intermediates(
    original: nn.Module, fine: nn.Module, operated: nn.Module, image: Tensor, planned: Plan
) -> Iterator[OutputCheck]:
    """Compare the results of the models' `forward_intermediates` and `forward_features`."""
    if isinstance(operated, RewrittenModel):
        return
    features = [_features(m, image) for m in (fine, operated)]
    odd = [
        name
        for name, v in features[0].items()
        if name not in features[1] or differs(features[1][name], v)
    ]
    if odd and is_repeatable(fine, image):
        raise SurgeryError(
            f"{odd[0].replace('output', 'forward_features()')} differs from what eliminate gives"
        )
    before, made, after = (
        intermediates(copied_model(m, apart=True).eval(), image.clone())
        for m in (original, fine, operated)
    )
    if len(after) != len(made):
        raise SurgeryError(
            f"forward_intermediates gives {len(after)} maps, and {len(made)} in what eliminate "
            "gives"
        )
    for name, found in (("forward_features", features[0]), ("forward_intermediates", made)):
        if hasattr(operated, name) and not found:
            yield OutputCheck(name, "not compared: it gives no tensors for an image alone", None)
    if len(before) != len(made):
        yield OutputCheck(
            "forward_intermediates", "not compared: it does not run on the original", None
        )
        return
    for i, (old, new, value) in enumerate(zip(before, made, after, strict=True)):
        name = f"forward_intermediates[{i}]"
        if larger_by(tuple(old.shape), tuple(value.shape), planned) is None:
            raise GridError(
                f"{name} is {tuple(value.shape)}, off the grid of the original's {tuple(old.shape)}"
            )
        error = relative_error(value, new)
        if error is None or not error <= tolerance(value):
            size = (
                f"is {tuple(value.shape)}, and {tuple(new.shape)} in"
                if error is None
                else f"differs by {error:.2g} from"
            )
            raise SurgeryError(f"{name} {size} what eliminate gives")
        yield OutputCheck(name, f"{tuple(value.shape)} equals what eliminate gives", error)


def _features(model: nn.Module, image: Tensor) -> dict[str, Tensor]:
    """Return the tensors that a timm model's own `forward_features` gives.

    The result is empty if the method does not take an image alone.
    """
    method = getattr(copied_model(model, apart=True).eval(), "forward_features", None)
    if method is not None:
        with suppress(Exception), torch.no_grad():
            return tensors_returned(method(image.clone()))
    return {}
