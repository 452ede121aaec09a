"""The records that a model keeps of its grid: `feature_info`, `output_stride`, `patch_size`."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from stridesurgery._analysis import Analysis, FeatureInfo, analyse, geometry_of, reduction_of
from stridesurgery._hw import HW
from stridesurgery._node import Shape, returned, shape_of
from stridesurgery._rewrite.plan import Draft, Plan
from stridesurgery._rewrite.references import factors_of
from stridesurgery._trace import RewrittenModel, one_image
from stridesurgery.errors import GridError


def records_of(model: nn.Module) -> dict[str, Any]:
    """Every reduction and patch size that a model keeps on record, by where it stands."""
    found: dict[str, Any] = {}
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        for i, entry in enumerate(_entries(getattr(module, "feature_info", None))):
            if isinstance(entry, dict) and "reduction" in entry:
                found[f"{prefix}feature_info[{i}]['reduction']"] = entry["reduction"]
        found |= {prefix + name: stride for name, stride in _output_strides(module)}
        for name, holder in _with_patch_size(module):
            found[f"{prefix}{name}"] = holder.patch_size
    return found


def update_records(model: nn.Module, planned: Plan) -> None:
    """Bring what a model keeps on record up to date."""
    if not planned.phases:  # whose later layers see patches as before
        _update_patch_sizes(model, planned)
    seen: set[int] = set()
    for module in model.modules():
        info = getattr(module, "feature_info", None)
        if _entries(info) and "feature_info" not in vars(module):  # the class's own: leave it alone
            module.feature_info = info = copy.deepcopy(info)  # type: ignore[assignment]
        for entry in _entries(info):
            if isinstance(entry, dict) and "reduction" in entry and id(entry) not in seen:
                seen.add(id(entry))
                entry["reduction"] = _new_reduction(entry["reduction"], planned)
        for name, stride in list(_output_strides(module)):
            setattr(module, name, _new_reduction(stride, planned))


def _output_strides(module: nn.Module) -> Iterator[tuple[str, int]]:
    """Yield the attributes that hold an output stride, with what the module says it is.

    segmentation_models_pytorch has `_output_stride` behind a property, which takes the depth of the
    encoder into account.
    """
    for name in ("output_stride", "_output_stride"):
        if name in vars(module):
            said = getattr(module, "output_stride", vars(module)[name])
            if isinstance(said, int) and not isinstance(said, bool):
                yield name, said


def described(model: nn.Module) -> dict[str, Any]:
    """Return the channels and modules that `feature_info` names, by where each stands."""
    return {
        f"{path}{'.' if path else ''}feature_info[{i}][{key!r}]": value
        for path, module in model.named_modules()
        for i, entry in enumerate(_entries(getattr(module, "feature_info", None)))
        if isinstance(entry, dict)
        for key, value in entry.items()
        if key != "reduction"
    }


def _entries(info: Any) -> Any:
    # timm's FeatureInfo
    entries = info if isinstance(info, (list, tuple)) else getattr(info, "info", None)
    return entries if isinstance(entries, (list, tuple)) else ()


def _new_reduction(old: Any, planned: Plan) -> Any:
    rows, columns = old if isinstance(old, tuple) else (old, old)
    new = planned.reduction((Fraction(rows), Fraction(columns)))
    values = tuple(int(r) if r.denominator == 1 else float(r) for r in new)
    return values[0] if values[0] == values[1] else values


def _update_patch_sizes(model: nn.Module, planned: Plan) -> None:
    """Set `patch_size` to the finer stride in modules around the changed layer, or their config.

    Vision transformers compute from it how many rows and columns their tokens make.
    """
    for change in planned.changes:
        if change.site.operator.kind != "conv" or change.site.node.op != "call_module":
            continue
        old, new = change.site.operator.step, change.operator.step
        parts = str(change.site.node.target).split(".")
        first = change.site.before.reduction == (
            1,
            1,
        )  # it sees the image; else only its own module tells of it
        patches = change.site.operator.kernel == old
        for depth in range(0 if first else len(parts) - 1 if patches else len(parts), len(parts)):
            for name, holder in _with_patch_size(model.get_submodule(".".join(parts[:depth]))):
                size = holder.patch_size
                if name != "patch_size":  # other models may refer to the same config
                    holder = _own_config(model, holder)
                if isinstance(size, (tuple, list)) and tuple(size) == old:
                    holder.patch_size = type(size)(new)
                elif (size, size) == old and new[0] == new[1]:
                    holder.patch_size = new[0]


def _own_config(model: nn.Module, config: Any) -> Any:
    """Copy a config for all modules of a model that refer to it."""
    own = copy.copy(config)
    for module in model.modules():
        if vars(module).get("config") is config:
            module.config = own
    return own


def _with_patch_size(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Return the module and its config, as far as they say how large patches are."""
    config = vars(module).get("config")
    for name, holder in (("patch_size", module), ("config.patch_size", config)):
        if hasattr(holder, "__dict__") and isinstance(
            vars(holder).get("patch_size"), (int, tuple, list)
        ):
            yield name, holder


def refreshed(info: FeatureInfo, operated: nn.Module, size: HW[int]) -> FeatureInfo:
    """Return the `FeatureInfo` of an operated model that returns its maps."""
    analysis = analyse(operated, size)
    maps: Any = returned(analysis.recording.graph)[0].args[0]
    grid_of = {feature: analysis.grid_of[maps[feature.name]] for feature in info.features}
    return FeatureInfo(
        tuple(
            replace(
                feature,
                reduction=reduction_of(place),
                geometry=geometry_of(*place.reassembled.geometry),
            )
            for feature, place in grid_of.items()
        )
    )


def check_intermediates(analysis: Analysis, planned: Plan, draft: Draft) -> None:
    """Refuse a transformer whose `forward_intermediates` would give maps of another grid.

    Raises:
        GridError: it computes the grid from an attribute that has not followed the stride.
    """
    has_tokens = any(len(shape_of(node) or ()) == 3 for node in analysis.grid_of)
    if isinstance(draft.model, RewrittenModel) or not has_tokens:
        return
    image = one_image(analysis.recording)
    before, after = (
        intermediates(model, image) for model in (analysis.recording.model, draft.model.eval())
    )
    for i, (was, now) in enumerate(zip(before, after, strict=False)):
        if larger_by(was.shape, now.shape, planned) is None:
            raise GridError(
                f"{planned.surgery.name} is not possible: forward_intermediates would give "
                f"{tuple(now.shape[1:])} as map {i}, which was {tuple(was.shape[1:])}: it computes "
                "the grid from something that does not follow the stride. Not in place, a graph "
                "without this method is tried; `features` takes its maps out"
            )


def intermediates(model: nn.Module, image: Tensor) -> list[Tensor]:
    """Return the maps of a timm model's own `forward_intermediates`, if it has that method."""
    method = getattr(model, "forward_intermediates", None)
    if method is None:
        return []
    try:
        with torch.no_grad():
            found = method(image, intermediates_only=True)
    except Exception:  # another signature, or not at this size: it says so itself when it is called
        return []
    return (
        [value for value in found if isinstance(value, Tensor)]
        if isinstance(found, (list, tuple))
        else []
    )


def larger_by(was: Shape, now: Shape, planned: Plan) -> HW[int] | None:
    """Return the plan's factor by which a value has grown, up to a border; None if there is none.

    What is no map (N, C, H, W) or (N, H, W, C) has the factor (1, 1) if it has as many dimensions
    as before.
    """
    if len(was) != 4 or len(now) != 4:
        return (1, 1) if len(was) == len(now) else None
    for rows, columns in factors_of(planned):
        for factors in ((1, 1, rows, columns), (1, rows, columns, 1)):
            if all(_about(n, k * w, k) for w, n, k in zip(was, now, factors, strict=True)):
                return rows, columns
    return None


def _about(cells: int, wanted: int, k: int) -> bool:
    """Return True if an axis is k times as long, up to the border that convolutions cut off."""
    return cells == wanted if k == 1 else abs(cells - wanted) <= max(2 * k, wanted // 4)
