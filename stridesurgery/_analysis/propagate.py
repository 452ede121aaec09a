"""Find the numbered layers of a graph in one pass over its nodes.

The pass computes the reduction, grid and geometry of every value. The reduction of a map is the
product of the strides before it, not a ratio of sizes. It is therefore exact at every input size.
It also follows a map through permutes, windows and tokens, whose axes need not be known.
"""

import math
from dataclasses import replace
from fractions import Fraction
from typing import Any

from torch import fx

from stridesurgery._analysis.geometry import PIXELS
from stridesurgery._analysis.grid import GridInfo, SpatialOp, check_cells
from stridesurgery._analysis.hidden import (
    END,
    cells_of,
    hidden_stride,
    is_pointwise,
    name_of,
    unknown_after,
)
from stridesurgery._analysis.merge import merge
from stridesurgery._hw import HW
from stridesurgery._node import info, shape_of, tensors_in
from stridesurgery._trace import Recording
from stridesurgery.ops import (
    FUNCTIONS,
    Operator,
    arguments,
    batch_to_space,
    first_phase,
    original_cells,
    read_module,
    repeat_phases,
    space_to_batch,
)


def spatial_ops(recording: Recording) -> tuple[SpatialOp, ...]:
    """Return every operator of the graph that matters to the grid, in running order."""
    return propagate(recording)[0]


def propagate(recording: Recording) -> tuple[tuple[SpatialOp, ...], dict[fx.Node, GridInfo]]:
    """Return the spatial operators of a graph in running order, and the grid information.

    Every value that is computed from the image has grid information.
    """
    grid_of: dict[fx.Node, GridInfo] = {}
    spatial_ops: list[SpatialOp] = []
    for node in recording.graph.nodes:
        if node.op == "placeholder":
            one = Fraction(1)
            grid_of[node] = GridInfo((one, one), recording.size, (PIXELS, PIXELS), recording.size)
            continue
        sources = [s for s in tensors_in([node.args, node.kwargs]) if s in grid_of]
        for source in sources if node.op == "output" else ():
            if (hidden := hidden_stride(recording, node, source, grid_of, END)) is not None:
                spatial_ops.append(hidden)
                grid_of[source] = hidden.after
        if not sources or (shape_of(node) is None and info(node).parts is None):
            continue
        if node.target in REARRANGING:
            grid_of[node] = _rearranged(node, grid_of[sources[0]])
            continue
        operator = operator_of(recording, node)
        hidden = hidden_stride(recording, node, sources[0], grid_of, operator)
        if hidden is not None:
            spatial_ops.append(hidden)
            grid_of[sources[0]] = hidden.after
        if operator is not None and _is_spatial(operator, node, sources[0], grid_of[sources[0]]):
            site = _site(recording, node, operator, sources[0], grid_of)
            grid_of[node] = site.after
            spatial_ops.append(site)
        else:
            grid_of[node] = merge(node, [grid_of[s] for s in sources])
    return tuple(spatial_ops), grid_of


REARRANGING = {space_to_batch, batch_to_space, first_phase, repeat_phases, original_cells}


def _rearranged(node: fx.Node, before: GridInfo) -> GridInfo:
    """Return the grid information after phases are moved into the batch, or out of it."""
    arguments: Any = node.args
    shape = shape_of(node) or ()
    if node.target in (first_phase, repeat_phases):
        phases = info(node).phases
        none = ((0.0, 0.0),) * len(phases)  # copies of one map look where that map looks
        return replace(
            before, phases=phases, phase_offsets=(*before.phase_offsets, *none)[: len(phases)]
        )
    if node.target is batch_to_space:
        (last,) = arguments[4:] or (-1,)
        return replace(before.reassembled, grid=(shape[last - 1], shape[last]))
    (down, right), (last,) = arguments[1], arguments[2:] or (-1,)
    rows, columns = before.geometry
    coarser = replace(
        before,
        reduction=(before.reduction[0] * down, before.reduction[1] * right),
        grid=(shape[last - 1], shape[last]),
        geometry=(
            replace(rows, step=rows.step * down),
            replace(columns, step=columns.step * right),
        ),
    )
    if node.target is original_cells:
        return coarser
    return replace(
        coarser,
        phases=(*before.phases, (down, right)),
        phase_offsets=(*before.phase_offsets, (rows.step, columns.step)),
    )


def _site(
    recording: Recording,
    node: fx.Node,
    operator: Operator,
    source: fx.Node,
    grid_of: dict[fx.Node, GridInfo],
) -> SpatialOp:
    before = grid_of[source]
    grid_in, grid_out = _grids(node, operator, source, before)
    if grid_in is None or grid_out is None:
        return SpatialOp(node, operator, name_of(node), before, before, (0, 0), (0, 0), 0)
    check_cells(name_of(node), operator, grid_in, grid_out)
    scale = operator.scale
    if _collapses(operator, grid_in, grid_out):
        operator = replace(operator, kind="global")
    elif operator.kind == "resize" and scale is None:
        scale = _nearest(before, grid_in, grid_out, {p.reduction for p in grid_of.values()})
        if scale is None:
            operator = replace(
                operator, kind="opaque", refusal="resizes to a size that is computed from its own"
            )
    after = _after(operator, scale, before, grid_in, grid_out)
    local = (shape_of(source) or (before.batch,))[0] != before.batch
    if local and before.grid is not None:
        rows, columns = (
            max(-(-g // s), 1) for g, s in zip(before.grid, operator.step, strict=True)
        )
        after = replace(after, grid=(rows, columns))
    shape = shape_of(node) or ()
    channels = shape[-1] if operator.last == -2 else shape[1]
    return SpatialOp(
        node, operator, name_of(node), before, after, grid_in, grid_out, channels, local
    )


def _grids(
    node: fx.Node, operator: Operator, source: fx.Node, before: GridInfo
) -> tuple[HW[int] | None, HW[int] | None]:
    """Return the cells of an operator's input and output."""
    grid_in, grid_out = cells_of(source, operator), cells_of(node, operator)
    if operator.kind == "resize" and len(shape_of(source) or ()) == 3:
        grid_in = before.grid  # fold: the input holds tokens
    if operator.kind == "opaque" and len(shape_of(node) or ()) == 3 and grid_in is not None:
        rows, columns = (w.cells(size) for w, size in zip(operator.windows, grid_in, strict=True))
        grid_out = rows, columns  # unfold: the output holds tokens
    return grid_in, grid_out


def _after(
    operator: Operator,
    scale: HW[Fraction] | None,
    before: GridInfo,
    grid_in: HW[int],
    grid_out: HW[int],
) -> GridInfo:
    """Return the grid information of an operator's output."""
    if operator.kind == "resize" and scale is not None:
        return _resized(operator, scale, before, grid_out)
    if operator.kind in ("adaptive", "global"):
        return replace(before, grid=None, pooled=True)
    if operator.kind == "opaque":
        return unknown_after(before, grid_in, grid_out)
    step = operator.step
    reduction = (before.reduction[0] * step[0], before.reduction[1] * step[1])
    rows, columns = (
        g.through(w, size)
        for g, w, size in zip(before.geometry, operator.windows, grid_in, strict=True)
    )
    if operator.kind == "unknown_pad":
        rows, columns = (replace(g, offset=math.nan) for g in (rows, columns))
    return replace(before, reduction=reduction, grid=grid_out, geometry=(rows, columns))


def _is_spatial(operator: Operator, node: fx.Node, source: fx.Node, before: GridInfo) -> bool:
    """Tell whether an operator does anything to the grid of this value."""
    if is_pointwise(operator):
        return False
    if (
        operator.kind in ("pad", "unknown_pad", "slice")
        and cells_of(source, operator) != before.grid
    ):
        return False  # works on channels, tokens or attention, not on a map
    return True


def _nearest(
    before: GridInfo, grid_in: HW[int], grid_out: HW[int], known: set[HW[Fraction]]
) -> HW[Fraction] | None:
    """Return the scale of a resize whose output size is given.

    It is the scale to the grid of another map. None means that no grid fits.
    """

    def misfit(r: HW[Fraction]) -> float:
        expected = [g * b / a for g, b, a in zip(grid_in, before.reduction, r, strict=True)]
        return max(abs(math.log(float(e) / o)) for e, o in zip(expected, grid_out, strict=True))

    nearest = min(known, key=misfit)
    if misfit(nearest) > math.log(1.25) and max(grid_in) > 4:  # rounding of small grids is larger
        return None
    return before.reduction[0] / nearest[0], before.reduction[1] / nearest[1]


def _resized(
    operator: Operator, scale: HW[Fraction], before: GridInfo, grid_out: HW[int]
) -> GridInfo:
    reduction = (before.reduction[0] / scale[0], before.reduction[1] / scale[1])
    rows, columns = (
        g.transposed(w, float(s)) if operator.transposed else g.resized(float(s))
        for g, w, s in zip(before.geometry, operator.windows, scale, strict=True)
    )
    upwards = before.resampled or max(scale) > 1
    return replace(
        before, reduction=reduction, grid=grid_out, geometry=(rows, columns), resampled=upwards
    )


def _collapses(operator: Operator, grid_in: HW[int], grid_out: HW[int]) -> bool:
    """Tell whether a pool covers its whole map: global pooling with a large kernel."""
    pools = operator.kind in ("max_pool", "avg_pool") and grid_out == (1, 1)
    covers = all(k >= cells for k, cells in zip(operator.kernel, grid_in, strict=True))
    return pools and covers and min(operator.kernel) >= 5


def operator_of(recording: Recording, node: fx.Node) -> Operator | None:
    """Return the operator that a node runs, or None if it has no known effect on the grid."""
    if node.op == "call_module":
        return read_module(recording.module(node))
    if node.op == "call_function" and node.target in FUNCTIONS:
        rule_ = FUNCTIONS[node.target]
        return rule_.read(arguments(node, rule_))
    return None
