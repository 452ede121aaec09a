"""Nodes that rearrange the phases of a map."""

from collections.abc import Callable
from fractions import Fraction
from typing import Any

from torch import fx

from stridesurgery._analysis import Analysis
from stridesurgery._hw import HW
from stridesurgery._node import info, tensors_in
from stridesurgery._rewrite.atrous import reading_whole_maps
from stridesurgery._rewrite.plan import Plan
from stridesurgery._trace import copied
from stridesurgery.ops import (
    batch_to_space,
    first_phase,
    original_cells,
)

Phases = tuple[tuple[int, int], ...]


def place_of(node: fx.Node) -> str:
    return str(node.target if node.op == "call_module" else info(node).path or node.name)


def with_samples(original: Analysis, planned: Plan) -> fx.Graph:
    """Return a copy of the original's graph: readers of whole maps get the original's cells."""
    graph = copied(original.recording.graph)
    if not planned.samples:
        return graph
    nodes = {info(n).key: n for n in graph.nodes}
    for reader in reading_whole_maps(original, planned.is_beyond) or []:
        node = nodes[info(reader).key]
        for source in tensors_in([reader.args, reader.kwargs]):
            place = original.grid_of.get(source)
            if place is None or place.pooled or not planned.is_beyond(place):
                continue
            new = planned.reduction(place.reduction)
            by = tuple(int(a / b) for a, b in zip(place.reduction, new, strict=True))
            given = nodes[info(source).key]
            node.replace_input_with(given, rearranged(given, original_cells, by, before=node))
    return graph


def reassembled_map(
    node: fx.Node,
    reduction: HW[Fraction],
    phases: Phases,
    axis: int,
    *,
    before: fx.Node | None = None,
) -> fx.Node:
    """Return the map of a node's phases, put together right after it, or before another node.

    `reduction` is that of the phases, `axis` that of the channels.
    """
    image = next(n for n in node.graph.nodes if n.op == "placeholder")
    rows, columns = (
        (f.numerator, f.denominator)
        for f in (Fraction(r) / _count_along(phases, i) for i, r in enumerate(reduction))
    )
    last = [-2] if axis == 3 else []
    return rearranged(node, batch_to_space, phases, image, (rows, columns), *last, before=before)


def rearranged(
    node: fx.Node, function: Callable[..., Any], *args: Any, before: fx.Node | None = None
) -> fx.Node:
    """Insert a call that rearranges phases, right after its value or before a node."""
    with (
        node.graph.inserting_after(node) if before is None else node.graph.inserting_before(before)
    ):
        value = node.graph.call_function(function, (node, *args))
    describe_phases(value, node, function.__name__, value.name)
    info(value).phases = ()
    return value


def phase_count(phases: Phases) -> int:
    return _count_along(phases, 0) * _count_along(phases, 1)


def _count_along(phases: Phases, axis: int) -> int:
    count = 1
    for by in phases:
        count *= by[axis]
    return count


def describe_phases(made: fx.Node, of: fx.Node, what: str, number: Any) -> None:
    """Copy node info to an inserted node."""
    path, _, target, count = info(of).key
    info(made).take(of, key=(path, made.op, f"{what}:{target}:{number}", count), ends=(), writes=())
    if made.target not in (first_phase, original_cells):  # which are views
        info(made).memory = f"{what} {number}"
