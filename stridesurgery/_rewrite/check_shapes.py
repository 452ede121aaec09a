"""Proof that an operated network's maps are on the grid, from shapes alone.

Enlarging every map after a transition k times is what a k times larger input does to the untouched
network. So every value of the operated network must have the shape it has in the original (before
the transition) or in the original on the enlarged input (after it), dimension by dimension; and
every layer exactly the one that its reduction says. A size recomputed from a configuration, a
reshape that swallows the extra cells into the batch, a crop or an interpolation to a fixed size all
show up as a shape that is neither.
"""

import math
from dataclasses import dataclass

import torch
from torch import fx, nn

from stridesurgery._analysis import Analysis, SpatialOp, spatial_ops
from stridesurgery._hw import HW
from stridesurgery._node import BATCH, Key, Shape, info, tensors_in
from stridesurgery._rewrite.check_constants import check_constants, check_reads
from stridesurgery._rewrite.plan import Plan
from stridesurgery._rewrite.references import cells_of, factor_of, factors_of, reference_shapes
from stridesurgery._trace import Recording
from stridesurgery.errors import GridError
from stridesurgery.ops import FUNCTIONS, function_traits


@dataclass(frozen=True)
class GridCheck:
    """The result of a grid check."""

    nodes: int  # values whose shape was checked
    exact: (
        bool  # every map after a transition is exactly k times larger; else it is so up to a border
    )
    #: compared with the original on an enlarged input (else with multiples of its own shapes)
    reference: bool


def check_grid(original: Analysis, operated: Recording, plan: Plan) -> GridCheck:
    """Compare every value of an operated network, at the original's size, with what the grid says.

    Raises:
        GridError: naming the first value that is off.
    """
    base, now = original.recording.shapes, operated.shapes
    factors = factors_of(plan)
    references = {}
    if not (
        _is_local(original.recording)
        and all(_is_multiple(site, plan, now) for site in original.spatial_ops)
    ):
        references = {
            factor: reference_shapes(original, plan, factor, now) for factor in factors[1:]
        }
    found = [r for r in references.values() if r is not None]
    complete = len(found) == len(factors) - 1
    _check_restored(plan, now)
    check_constants(original.recording, operated, complete)
    _check_same_path(original.recording, operated)
    check_reads(original, operated)
    _check_reductions(original, operated, plan)
    count, joins = 0, _joins(operated.graph)
    joined: set[tuple[int, int]] = set()  # lengths of maps of several reductions, before and now
    windows = [p for p, m in operated.model.named_modules() if vars(m).get("pools_in_windows")]
    for key, shape in now.items():
        # else control flow took another way; the layers below are compared all the same
        if key in base:
            lengths = zip(base[key], shape, strict=False)
            joined |= {
                (old, new)
                for axis, (old, new) in enumerate(lengths)
                if old == _total(joins.get(key), base, axis)
                and new == _total(joins.get(key), now, axis)
            }
            likely = [r[key] for r in found if key in r]
            inside = any(f"{key[0]}.".startswith(f"{path}.") for path in windows)
            if not (inside and _is_in_larger_windows(shape, base[key], likely, factors)):
                _check_value(key, shape, base[key], likely, factors, complete, joined)
            count += 1
    exact = [_check_site(site, plan, now, references) for site in original.spatial_ops]
    return GridCheck(count, all(exact), complete)


def _joins(graph: fx.Graph) -> dict[Key, list[Key]]:
    """Return the values that each concatenation joins: a detector's tokens of all maps, for one."""
    return {
        info(node).key: [info(part).key for part in tensors_in(node.args[:1])]
        for node in graph.nodes
        if node.target in (torch.cat, torch.concat)
    }


def _total(parts: list[Key] | None, shapes: dict[Key, Shape], axis: int) -> int | None:
    """Return the length of checked values together; None where one of them is not known."""
    if not parts or not all(axis < len(shapes.get(part, ())) for part in parts):
        return None
    return sum(shapes[part][axis] for part in parts)


def _check_restored(plan: Plan, now: dict[Key, Shape]) -> None:
    """Check that a layer that takes eliminated strides on gives the map that it gave."""
    for change in plan.changes:
        site, key = change.site, info(change.site.node).key
        grown = [
            new.step // old.step
            for new, old in zip(change.operator.windows, site.operator.windows, strict=True)
        ]
        if max(grown) > 1 and key in now and cells_of(now[key], site) != site.out_grid:
            have, want = cells_of(now[key], site), site.out_grid
            raise GridError(
                f"{site.name} with the stride it takes on gives {have[0]}x{have[1]} cells instead "
                f"of {want[0]}x{want[1]}: its larger window does not divide the map alike. Restore "
                "the stride at another layer, or choose an input_size that the total stride "
                "divides"
            )


def _is_of_parameters(node: fx.Node) -> bool:
    """Return True if a value comes from parameters and buffers, and at most the image's size."""
    todo, seen = [node], set[fx.Node]()
    while todo:
        current = todo.pop()
        if current.op == "placeholder":
            return False
        if current not in seen:
            seen.add(current)
            todo.extend(tensors_in([current.args, current.kwargs]))
    return True


def _check_same_path(original: Recording, operated: Recording) -> None:
    """Refuse a model that answers larger maps with other operators (MobileNet v5).

    A table of positions may be interpolated (DINO v2): it is computed from a parameter alone.
    """
    tables = {
        info(n).key for r in (original, operated) for n in r.graph.nodes if _is_of_parameters(n)
    }
    base, now = original.shapes.keys() - tables, operated.shapes.keys() - tables
    resizing = {getattr(f, "__name__", "") for f in FUNCTIONS} - {"getitem", "pad", "fold"}
    for key in sorted(base ^ now):
        path, op, target, _ = key
        if (op == "call_function" and target in resizing) or op == "call_module":
            verb = "calls" if key in now else "no longer calls"
            place = path or "its forward"
            raise GridError(
                f"on the larger maps the model {verb} {target} in {place}: it chooses its "
                "operators by the size of its maps. Choose a transition after this place, or "
                "another input_size"
            )


def _check_reductions(original: Analysis, operated: Recording, plan: Plan) -> None:
    """Refuse a layer that leads elsewhere than from f(r) to f(r'), and a new stride."""
    found = {info(site.node).key: site for site in spatial_ops(operated)}
    planned = {info(site.node).key: site for site in original.spatial_ops}
    for key, site in found.items():
        was = planned.get(key)
        if site.before.pooled or site.local or (was is None and not site.is_strided):
            continue
        wanted = (
            [plan.reduction(r) for r in (was.before.reduction, was.after.reduction)] if was else []
        )
        found_at = [site.before.reduction, site.after.reduction]
        if plan.samples and was and found_at == [was.before.reduction, was.after.reduction]:
            continue  # it is given the original's cells
        if found_at != wanted:
            rows, columns = site.after.reduction
            raise GridError(
                f"layer {site.name} leaves the grid: its output has reduction "
                f"{float(rows):g}x{float(columns):g}, which is not what the plan gives it. The "
                "model resizes its maps by something other than their size; choose a transition "
                "after this place"
            )


def _check_value(
    key: Key,
    shape: Shape,
    base: Shape,
    likely: list[Shape],
    factors: list[HW[int]],
    complete: bool,
    joined: set[tuple[int, int]],
) -> None:
    allowed = [other for other in (base, *likely) if len(other) == len(shape)]
    for axis, length in enumerate(shape):
        choices = {other[axis] for other in allowed}
        if not complete:
            choices |= {c for other in allowed for c in _grown(other[axis], factors)}
            if axis == 0 and base[0] == BATCH:
                # windows cannot be told from cells that are swallowed into the batch
                choices = {BATCH}
        known = axis < len(base) and (base[axis], length) in joined
        if length not in choices and not known:
            raise GridError(_off(key, shape, allowed or [base], complete))


def _is_in_larger_windows(
    shape: Shape, base: Shape, likely: list[Shape], factors: list[HW[int]]
) -> bool:
    """Return True if windows have more cells each, where a larger input would have more windows."""
    if not shape or shape[0] != base[0] or len(shape) != len(base):
        return False
    more = all(n == b or n in _grown(b, factors) for n, b in zip(shape, base, strict=True))
    return more and any(math.prod(shape) == math.prod(other) for other in likely)


def _grown(length: int, factors: list[HW[int]]) -> set[int]:
    """Return the lengths that an axis may grow to: by rows, columns, both (tokens), or pairs.

    One or two tokens that stand for no cell (class, distillation) do not multiply.
    """
    single = {m for rows, columns in factors for m in (rows, columns, rows * columns)}
    times = {a * b for a in single for b in single}
    return {(length - extra) * m + extra for m in times for extra in (0, 1, 2)}


def _said(shape: Shape) -> str:
    """Write a shape in words: N is the batch."""
    sides = (
        f"{n // BATCH}N".removeprefix("1N") or "N" if n and n % BATCH == 0 else str(n)
        for n in shape
    )
    return f"({', '.join(sides)})"


def _off(key: Key, shape: Shape, allowed: list[Shape], compared: bool) -> str:
    path, _, target, _ = key
    wanted = " or ".join(_said(s) for s in dict.fromkeys(allowed))
    place = target if not path or target.startswith(path) else f"{path}: {target}"
    if compared:
        why = "The model computes this size from something other than its input"
    else:
        why = "The model takes no larger input to compare with: only exact multiples are proved"
    return (
        f"the value at {place} leaves the grid: its shape becomes {_said(shape)} where {wanted} "
        f"was expected. {why}; choose a transition after this place, or another input_size"
    )


def _check_site(
    site: SpatialOp,
    plan: Plan,
    now: dict[Key, Shape],
    references: dict[HW[int], dict[Key, Shape] | None],
) -> bool:
    """Check one layer's output exactly; returns whether it is exactly k times larger."""
    if _is_multiple(site, plan, now):
        return True
    key, factor = info(site.node).key, factor_of(site, plan)
    reference, cells = references.get(factor), cells_of(now[key], site)
    if reference is not None and now[key][0] != BATCH and reference.get(key) == now[key]:
        return True  # the larger map is cut into windows, where the smaller one was a single window
    times = [g * f for g, f in zip(site.out_grid, factor, strict=True)]
    if reference is None or key not in reference or cells_of(reference[key], site) != cells:
        raise GridError(
            f"layer {site.name} leaves the grid: its output has {cells[0]}x{cells[1]} cells where "
            f"{times[0]}x{times[1]} were expected"
        )
    return False


def _is_multiple(site: SpatialOp, plan: Plan, now: dict[Key, Shape]) -> bool:
    """Return True if a layer's output is exactly k times larger (k = 1 before the transition)."""
    key = info(site.node).key
    if (
        key not in now
        or site.local
        or site.after.pooled
        or site.operator.kind in ("pad", "unknown_pad")
    ):
        return True  # without a grid of its own; checked as a value
    rows, columns = factor_of(site, plan)
    return cells_of(now[key], site) == (site.out_grid[0] * rows, site.out_grid[1] * columns)


def _is_local(recording: Recording) -> bool:
    """Return True if no operator could read a size: then multiples of the layers prove the grid."""
    for node in recording.graph.nodes:
        if node.op in ("placeholder", "output", "get_attr"):
            continue
        if node.op == "call_module" and not isinstance(
            recording.module(node), (nn.Fold, nn.Unfold, nn.Unflatten)
        ):
            continue
        traits = function_traits(node)
        if not (traits.per_cell or traits.passes or traits.per_map):
            return False
    return True
