"""The values of a network that are maps, and those that no other map runs beside.

A value is *closed* if everything computed after it is computed from it alone: no shortcut leads
around it. The map of a layer is a closed one, so inside a residual or parallel block there is none.
"""

import re
from collections.abc import Sequence
from typing import Any

from torch import fx

from stridesurgery._analysis import REARRANGING, Analysis, channel_axis
from stridesurgery._features.tokens import find_tokens
from stridesurgery._node import info, shape_of, tensors_in
from stridesurgery.ops import module_traits


class Values:
    """The values of a graph, which of them are maps, and which are closed."""

    def __init__(self, analysis: Analysis) -> None:
        self.analysis = analysis
        self.order = [n for n in analysis.recording.graph.nodes if n in analysis.grid_of]
        self.position = {n: i for i, n in enumerate(self.order)}
        self.sources = {
            n: [s for s in tensors_in(_inputs(n)) if s in self.position] for n in self.order
        }
        self.reduction = {n: analysis.grid_of[n].reassembled.reduction for n in self.order}
        self.closed = self._find_closed()
        self.layers = {site.node for site in analysis.layers}
        self.borders = {
            site.node
            for site in analysis.spatial_ops
            if site.operator.kind in ("pad", "unknown_pad")
        }
        self.tokens = find_tokens(analysis)
        self.maps = [n for n in self.order if self._is_map(n)]

    def _find_closed(self) -> set[fx.Node]:
        """Return the nodes that dominate all their descendants."""
        dominator: dict[fx.Node, fx.Node | None] = {}
        below, inside = dict.fromkeys(self.order, 0), dict.fromkeys(self.order, 1)
        for node in self.order:
            common: fx.Node | None = self.sources[node][0] if self.sources[node] else None
            for source in self.sources[node][1:]:
                common = self._common(dominator, common, source)
            dominator[node] = common
        reach = dict.fromkeys(self.order, 0)  # descendants, as bits
        for node in reversed(self.order):
            for source in self.sources[node]:
                reach[source] |= reach[node] | 1 << self.position[node]
            if (parent := dominator[node]) is not None:
                inside[parent] += inside[node]
            below[node] = reach[node].bit_count()
        return {n for n in self.order if below[n] == inside[n] - 1}

    def _common(
        self, dominator: dict[fx.Node, fx.Node | None], a: fx.Node | None, b: fx.Node | None
    ) -> fx.Node | None:
        while a is not b:
            if a is None or b is None:
                return None
            if self.position[a] < self.position[b]:
                b = dominator[b]
            else:
                a = dominator[a]
        return a

    def _is_map(self, node: fx.Node) -> bool:
        place, shape = self.analysis.grid_of[node], shape_of(node)
        if node.op == "placeholder" or shape is None or channel_axis(node, place) is None:
            return False
        # a map of which there is another copy
        if node in self.borders or node.target in REARRANGING:
            return False
        passing = (
            node.op == "call_module" and module_traits(self.analysis.recording.module(node)).passes
        )
        return not passing or bool(ends_of(node))  # an identity counts where a block ends in it

    def descendants(self, node: fx.Node) -> list[fx.Node]:
        """Everything that is computed from a value, in running order."""
        found = {node}
        for later in self.order[self.position[node] + 1 :]:
            if any(s in found for s in self.sources[later]):
                found.add(later)
        return [n for n in self.order if n in found and n is not node]


def _inputs(node: fx.Node) -> list[Any]:
    """Return the arguments that a value is computed from; `batch_to_space` reads the size alone."""
    return [node.args[:1]] if node.target in REARRANGING else [node.args, node.kwargs]


def module_of(node: fx.Node) -> str:
    """Return the outermost module that returns a value, or the place of the call that makes it."""
    ends = ends_of(node) or ends_of(node, own=True)
    if ends:
        return min(ends, key=depth)
    path = info(node).path
    return f"{path}.{node.name}" if path else node.name


def ends_of(node: fx.Node, own: bool = False) -> list[str]:
    """Return the modules that return a value; `own`: the leaf that makes it as well."""
    return [end for end in info(node).ends if end and (own or end != node.target)]


def depth(path: str) -> int:
    """Return the number of modules on a path; an output's key (`body[layer1.0]`) counts as one."""
    plain = re.sub(r"\[[^]]*]", "[", path)
    return plain.count(".") + plain.count("[")


def outermost(candidates: Sequence[fx.Node]) -> fx.Node:
    """Return, of the maps between two layers, the last that the outermost module returns."""
    least = min(depth(module_of(n)) for n in candidates)
    return [n for n in candidates if depth(module_of(n)) == least][-1]


def straight_back(values: Values, maps: Sequence[fx.Node]) -> list[fx.Node]:
    """Return the last of some closed maps, and those it is made from by one operator each.

    So a stage's end and the norm or expansion that begins the next block, but not what lies before
    a whole block.
    """
    node, found = maps[-1], [maps[-1]]
    while node not in values.layers and len(values.sources[node]) == 1:
        node = values.sources[node][0]
        if node in maps:
            found.append(node)
    return found[::-1]
