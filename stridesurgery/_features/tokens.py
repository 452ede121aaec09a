"""Token maps: where a map's cells lie in a sequence of tokens (N, L, C), and back.

The order of the cells is proved, not assumed. It is known where a map is flattened, and kept by
what treats every token alike, by tokens that are put before, and by residual sums. Tokens that are
laid out in another order (windows, Hiera's units) are no map.
"""

import operator
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from stridesurgery._analysis import Analysis, channel_axis
from stridesurgery._node import BATCH, Key, called, info, shape_of, tensors_in
from stridesurgery.ops import function_traits

_KEEPS = {"layer_norm", "rms_norm", "linear", "dropout", "to", "contiguous", "clone", "type_as"}


@dataclass(frozen=True)
class Tokens:
    """The layout of a sequence of tokens."""

    prefix: int  #: tokens before the cells (class, registers)
    made: Key  #: the call that flattens a map with the same cells
    rows: int  #: the axis of that map's rows; columns come after it
    transposed: bool = False  #: (N, C, L) instead of (N, L, C)


def find_tokens(analysis: Analysis) -> dict[fx.Node, Tokens]:
    """Return the layout of every sequence of tokens whose cells lie row by row."""
    found: dict[fx.Node, Tokens] = {}
    for node, place in analysis.grid_of.items():
        shape = shape_of(node) or ()
        if len(shape) != 3 or shape[0] != place.batch or place.grid is None:
            continue
        layout = _layout(analysis, node, shape, found)
        if layout is not None:
            found[node] = layout
    return {node: layout for node, layout in found.items() if not layout.transposed}


def _layout(
    analysis: Analysis, node: fx.Node, shape: tuple[int, ...], found: dict[fx.Node, Tokens]
) -> Tokens | None:
    sources = [s for s in tensors_in([node.args, node.kwargs]) if s in analysis.grid_of]
    known = [s for s in sources if s in found]
    name = called(node)
    if name in ("cat", "concat"):
        return _joined(node, shape, found)
    if known and name in ("transpose", "permute", "swapaxes"):
        layout = found[known[0]]
        numbers = [a for a in node.args[1:] if isinstance(a, int)] or list(_flat(node.args[1:]))
        turned = sorted(n % 3 for n in numbers) == [1, 2] or [n % 3 for n in numbers] == [0, 2, 1]
        return _turned(layout) if turned else None
    if known and name == "getitem":
        return _sliced(node, found[known[0]])
    if known:
        alike = [s for s in known if _same_length(shape, shape_of(s), found[s])]
        return found[alike[0]] if alike and _treats_alike(node) else None
    return _flattened(analysis, node, shape, sources)


def _flat(values: Any) -> tuple[Any, ...]:
    return tuple(values[0]) if values and isinstance(values[0], (tuple, list)) else tuple(values)


def _turned(layout: Tokens) -> Tokens:
    return Tokens(layout.prefix, layout.made, layout.rows, not layout.transposed)


def _same_length(shape: tuple[int, ...], other: tuple[int, ...] | None, layout: Tokens) -> bool:
    axis = 2 if layout.transposed else 1
    return other is not None and shape[axis] == other[axis]


def _treats_alike(node: fx.Node) -> bool:
    """Return True if an operator keeps the order of tokens: single operators and arithmetic."""
    if node.op == "call_module":
        return True
    return function_traits(node).per_cell or called(node) in _KEEPS


def _joined(node: fx.Node, shape: tuple[int, ...], found: dict[fx.Node, Tokens]) -> Tokens | None:
    """Return the layout of tokens put before those of a map."""
    parts: Any = node.args[0]
    axis = node.kwargs.get("dim", (*node.args[1:], 0)[0])
    if axis not in (1, -2) or not isinstance(parts, (tuple, list)) or parts[-1] not in found:
        return None
    layout = found[parts[-1]]
    before = shape[1] - (shape_of(parts[-1]) or shape)[1]
    if layout.transposed or layout.prefix or any(part in found for part in parts[:-1]):
        return None
    return Tokens(before, layout.made, layout.rows)


def _sliced(node: fx.Node, layout: Tokens) -> Tokens | None:
    """Return the layout of a sequence without its first tokens."""
    index: Any = node.args[1]
    if not isinstance(index, tuple) or len(index) < 2 or layout.transposed:
        return None
    whole, cut = index[0], index[1]
    plain = all(i == slice(None) for i in (whole, *index[2:]))
    if not plain or not isinstance(cut, slice) or (cut.stop, cut.step) != (None, None):
        return None
    first = cut.start or 0
    if not isinstance(first, int) or not 0 <= first <= layout.prefix:
        return None
    return Tokens(layout.prefix - first, layout.made, layout.rows)


def _flattened(
    analysis: Analysis, node: fx.Node, shape: tuple[int, ...], sources: list[fx.Node]
) -> Tokens | None:
    """Return the layout of a map whose rows and columns become one axis."""
    named = called(node) in ("flatten", "view", "reshape") or (
        node.op == "call_module" and isinstance(analysis.recording.module(node), nn.Flatten)
    )
    if not named or len(sources) != 1:
        return None
    source = sources[0]
    before, axis = shape_of(source) or (), channel_axis(source, analysis.grid_of[source])
    if axis == 1 and shape == (*before[:2], before[2] * before[3]):
        return Tokens(0, info(node).key, 2, transposed=True)
    if axis == 3 and shape == (before[0], before[1] * before[2], before[3]):
        return Tokens(0, info(node).key, 1)
    return None


def as_map(node: fx.Node, tokens: Tokens, made: fx.Node) -> fx.Node:
    """Add the map (N, C, h, w) of a sequence of tokens to a graph.

    Args:
        node: the sequence.
        tokens: its layout.
        made: the node of `tokens.made` in the same graph.
    """
    source = made.all_input_nodes[0]
    graph, batch, channels = (
        node.graph,
        (shape_of(node) or (BATCH,))[0],
        (shape_of(node) or (0,) * 3)[2],
    )
    h, w = (shape_of(source) or (0,) * 4)[tokens.rows : tokens.rows + 2]

    def add(op: str, target: Any, args: tuple[Any, ...], shape: tuple[int, ...] | None) -> fx.Node:
        added = graph.create_node(op, target, args)
        key = (info(node).key[0], op, f"token map: {called(added)}", info(node).key[3])
        label = (*key[:2], f"{key[2]} {len(args)} {args[1:]}", key[3]) if shape is None else key
        info(added).take(node, key=label, shape=shape, memory=added.name, writes=(), ends=())
        return added

    order = {n: i for i, n in enumerate(graph.nodes)}
    with graph.inserting_after(max(node, source, key=order.__getitem__)):
        columns = add("call_method", "size", (source, tokens.rows + 1), None)
        rows = add("call_method", "size", (source, tokens.rows), None)
    with graph.inserting_after(columns):
        index = (slice(None), slice(tokens.prefix, None))
        cells = add("call_function", operator.getitem, (node, index), (batch, h * w, channels))
    with graph.inserting_after(cells):
        turned = add("call_method", "transpose", (cells, 1, 2), (batch, channels, h * w))
    with graph.inserting_after(turned):
        return add(
            "call_method", "unflatten", (turned, 2, (rows, columns)), (batch, channels, h, w)
        )
