"""Finds operators that make a map coarser and that no table knows, by the sizes of their maps."""

import math
from dataclasses import replace
from fractions import Fraction
from functools import partial
from operator import getitem

import torch
from torch import Tensor, fx, nn

from stridesurgery._analysis.geometry import Geometry
from stridesurgery._analysis.grid import GridInfo, SpatialOp, channel_axis
from stridesurgery._hw import HW
from stridesurgery._node import called, info, shape_of, tensors_in
from stridesurgery._trace import Recording
from stridesurgery.ops import Operator, Window, function_traits, module_traits

END = Operator("output", "pad")  # the end of the network, where maps leave it
_REFUSAL = "changes the grid in a way that is not understood"


def hidden_stride(
    recording: Recording,
    node: fx.Node,
    source: fx.Node,
    grid_of: dict[fx.Node, GridInfo],
    operator: Operator | None,
) -> SpatialOp | None:
    """Return a layer of kind "opaque" if an unknown operator made the map coarser before this node.

    None means that there is no such operator.
    """
    before = grid_of[source]
    if operator is not None:
        found = _coarser(source, before, operator)
        culprit = source if found is None else _first_with_grid(source, found, grid_of)
    else:
        culprit, found = _patches(recording, node, source, grid_of)
    if found is None or before.grid is None:
        return None
    if culprit.target is getitem:  # one of several results
        culprit = (
            culprit.all_input_nodes[0] if shape_of(culprit.all_input_nodes[0]) is None else culprit
        )
    unknown = Operator(called(culprit) or "function", "opaque", refusal=_REFUSAL)
    after = unknown_after(before, before.grid, found)
    shape = shape_of(source) or ()
    channels = shape[1] if operator is not None else shape[-1]
    return SpatialOp(
        culprit, unknown, name_of(culprit), before, after, before.grid, found, channels
    )


def _coarser(source: fx.Node, before: GridInfo, operator: Operator) -> HW[int] | None:
    """Return the cells of the map that a known operator is given, if fewer than is known."""
    carried, grid, shape = before.grid, cells_of(source, operator), shape_of(source) or ()
    if operator is END and carried is not None and len(shape) == 4:  # channels may come last
        grid = min((shape[2:], shape[1:3]), key=partial(_distortion, carried))
    if carried is None or grid in (None, (1, 1)) or shape[0] != before.batch or len(shape) != 4:
        return None
    assert grid is not None
    smaller = [g * 1.5 <= c for g, c in zip(grid, carried, strict=True)]
    # those that may work on channels, tokens or attention
    moves = operator.kind in ("pad", "unknown_pad", "slice")
    if is_pointwise(operator) or not (all(smaller) if moves else any(smaller)):
        return None
    return grid


def _distortion(before: HW[int], after: HW[int]) -> float:
    """Return by how much rows and columns shrink differently."""
    rows, columns = (a / b for a, b in zip(before, after, strict=True))
    return max(rows / columns, columns / rows)


def _patches(
    recording: Recording, node: fx.Node, source: fx.Node, grid_of: dict[fx.Node, GridInfo]
) -> tuple[fx.Node, HW[int] | None]:
    """Return the cells of a map whose blocks have been laid over the channels that this node mixes.

    None stands for no such blocks. The call that splits the map comes with them.
    """
    mixes = node.op == "call_module" and isinstance(
        recording.module(node), (nn.Linear, nn.LayerNorm)
    )
    if not mixes and called(node) not in ("linear", "layer_norm"):
        return node, None
    chain = [source]
    while called(chain[-1]) in _MOVES or _keeps_cells(recording, chain[-1]):
        chain.append(tensors_in(chain[-1].args)[0])
    first, place = chain.pop(), grid_of.get(chain[-1] if chain else source)
    shape, length = shape_of(first) or (), (shape_of(source) or (1,))[-1]
    if first not in grid_of or place is None or len(shape) != 4 or place.grid is None:
        return node, None
    axis = 1 if first.op == "placeholder" else channel_axis(first, place)
    rows, columns = place.grid
    if axis is None or length % shape[axis] or length // shape[axis] in (1, rows * columns):
        return node, None
    cells = torch.arange(rows * columns).view(1, rows, columns).unsqueeze(axis).expand(shape)
    ordered = next((i for i, n in enumerate(chain) if called(n) not in _SHAPES), len(chain))
    for moved in reversed(chain[ordered:]):  # shapes after the last order change no order
        cells = _moved(moved, cells)
    block = _first(cells, length).unique()
    if len(block) * shape[axis] != length:
        return node, None
    down, right = len((block // columns).unique()), len((block % columns).unique())
    return chain[-1], (rows // down, columns // right)


_SHAPES = {"view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze"}
_ORDERS = {"permute", "transpose", "movedim", "swapaxes", "moveaxis", "contiguous"}
_MOVES = _SHAPES | _ORDERS


def _keeps_cells(recording: Recording, node: fx.Node) -> bool:
    """Tell whether a value has its numbers where its input has them."""
    sources = tensors_in(node.args)
    if not sources or shape_of(node) != shape_of(sources[0]):
        return False
    if node.op == "call_module":
        traits = module_traits(recording.module(node))
    else:
        traits = function_traits(node)
    return traits.per_cell or traits.passes


def _moved(node: fx.Node, cells: Tensor) -> Tensor:
    """Return what a call that only moves numbers makes of them."""
    if called(node) in _SHAPES:
        return cells.reshape(shape_of(node) or ())
    if called(node) not in _ORDERS:
        return cells
    return getattr(cells, called(node))(*node.args[1:], **node.kwargs)


def _first(values: Tensor, count: int) -> Tensor:
    """Return the first numbers of a tensor in its order, without a copy of the whole."""
    while values.dim() > 1 and values[0].numel() >= count:
        values = values[0]
    rows = -(-count // max(1, values[0].numel()))
    return values[:rows].reshape(-1)[:count]


def unknown_after(before: GridInfo, grid_in: HW[int], grid_out: HW[int]) -> GridInfo:
    factors = [Fraction(max(round(i / o), 1)) for i, o in zip(grid_in, grid_out, strict=True)]
    rows, columns = (
        Geometry(g.step * float(f), math.nan, math.nan)
        for g, f in zip(before.geometry, factors, strict=True)
    )
    reduction = (before.reduction[0] * factors[0], before.reduction[1] * factors[1])
    return replace(before, reduction=reduction, grid=grid_out, geometry=(rows, columns))


def _first_with_grid(source: fx.Node, grid: HW[int], grid_of: dict[fx.Node, GridInfo]) -> fx.Node:
    found, todo, seen = source, [source], set()
    while todo:
        node = todo.pop()
        shape = shape_of(node)
        if node in seen or shape is None or len(shape) != 4 or grid not in (shape[2:], shape[1:3]):
            continue
        seen.add(node)
        found = node
        todo.extend(s for s in tensors_in([node.args, node.kwargs]) if s in grid_of)
    return found


def is_pointwise(operator: Operator) -> bool:
    """Tell whether an operator is a convolution of single cells."""
    return operator.kind == "conv" and operator.windows == (Window(), Window())


def cells_of(node: fx.Node, operator: Operator) -> HW[int] | None:
    """Return the (rows, columns) of a value along the axes that an operator works on."""
    shape = shape_of(node)
    if shape is None or len(shape) not in (3, 4):
        return None
    return shape[operator.last - 1], shape[operator.last]


def name_of(node: fx.Node) -> str:
    """Return a module's path; of a function, the calling module's path and the node's name."""
    if node.op == "call_module":
        return str(node.target)
    path = info(node).path
    return f"{path}.{node.name}" if path else node.name
