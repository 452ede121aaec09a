"""Which values of a network are maps that one can take out, and which of them a layer or a reduction means.

A value is *closed* if everything computed after it is computed from it alone: no shortcut leads around it. The map
of a layer is a closed one, so inside a residual or parallel block there is none.
"""

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from operator import index
from typing import SupportsIndex

import torch
from torch import fx, nn

from stridesurgery.errors import RequestError
from stridesurgery.layers import Place, Reduction
from stridesurgery.report import Analysis
from stridesurgery.trace import BATCH, shape_of, tensors_in

TapName = int | str


@dataclass(frozen=True)
class Tap:
    """One map of a network that is taken out."""

    name: str  # what was asked for: a layer number or a module path
    module: str  # the outermost module that returns it, or the call that makes it
    node: fx.Node  # of the analysed graph
    place: Place
    channels: int
    channel_axis: int  # 1: (N, C, H, W); 3: (N, H, W, C)


def find_taps(analysis: Analysis, names: Sequence[TapName] | TapName | None) -> tuple[Tap, ...]:
    """The maps that are asked for; None: the last of every reduction.

    Raises:
        RequestError: a name that is no layer and no module, or is not one map.
    """
    values = _Values(analysis)
    if names is None:
        return _last_of_each_reduction(values)
    asked = list(names) if isinstance(names, Iterable) and not isinstance(names, str) else [names]
    if not asked:
        raise RequestError("taps is empty; name layers or modules, or leave it out for one map per reduction")
    taps = tuple(_tap(values, str(name), _find(values, name)) for name in asked)
    twice = [t.name for t in taps if [u.name for u in taps].count(t.name) > 1]
    if twice:
        raise RequestError(f"tap {twice[0]} is named twice")
    return taps


class _Values:
    """The values of a graph, which of them are maps, and which are closed."""

    def __init__(self, analysis: Analysis) -> None:
        self.analysis = analysis
        self.order = [n for n in analysis.traced.graph.nodes if n in analysis.places]
        self.position = {n: i for i, n in enumerate(self.order)}
        self.sources = {n: [s for s in tensors_in([n.args, n.kwargs]) if s in self.position] for n in self.order}
        self.closed = self._find_closed()
        self.layers = {site.node for site in analysis.layers}
        self.borders = {site.node for site in analysis.sites if site.operator.kind in ("pad", "unknown_pad")}
        self.maps = [n for n in self.order if self._is_map(n)]

    def _find_closed(self) -> set[fx.Node]:
        """The nodes that dominate all their descendants."""
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

    def _common(self, dominator: dict[fx.Node, fx.Node | None], a: fx.Node | None, b: fx.Node | None) -> fx.Node | None:
        while a is not b:
            if a is None or b is None:
                return None
            if self.position[a] < self.position[b]:
                b = dominator[b]
            else:
                a = dominator[a]
        return a

    def _is_map(self, node: fx.Node) -> bool:
        place, shape = self.analysis.places[node], shape_of(node)
        if node.op == "placeholder" or shape is None or channel_axis(node, place) is None or node in self.borders:
            return False
        passing = node.op == "call_module" and isinstance(self.analysis.traced.module(node), _PASSING)
        return not passing or bool(_ends(node, own=False))  # an identity counts where a block ends in it

    def descendants(self, node: fx.Node) -> list[fx.Node]:
        """Everything that is computed from a value, in running order."""
        found = {node}
        for later in self.order[self.position[node] + 1 :]:
            if any(s in found for s in self.sources[later]):
                found.add(later)
        return [n for n in self.order if n in found and n is not node]


_PASSING = (nn.Identity, nn.Dropout, nn.Dropout2d)


def channel_axis(node: fx.Node, place: Place) -> int | None:
    """Where the channels of a map are, or None where a value is no map."""
    shape = shape_of(node) or ()
    if len(shape) != 4 or place.pooled or place.grid is None or shape[0] % BATCH:
        return None
    if shape[2:] == place.grid == shape[1:3]:
        return _axis_by_history(node)  # as many channels as rows and columns
    if shape[2:] == place.grid:
        return 1
    return 3 if shape[1:3] == place.grid else None


def _axis_by_history(node: fx.Node) -> int:
    """Where the last permutation before a value has put its channels; after a convolution they come first."""
    while sources := tensors_in(node.args[:1]):
        orders = {(0, 2, 3, 1): 3, (0, 3, 1, 2): 1}
        order = (
            tuple(node.args[1]) if len(node.args) == 2 and isinstance(node.args[1], (tuple, list)) else node.args[1:]
        )
        if node.target in ("permute", torch.permute) and order in orders:
            return orders[order]  # type: ignore[index]
        if node.op == "call_module" and shape_of(node) != shape_of(sources[0]):
            return 1
        node = sources[0]
    return 1


def module_of(node: fx.Node) -> str:
    """The outermost module that returns a value, or the place of the call that makes it."""
    ends = _ends(node, own=False) or _ends(node, own=True)
    if ends:
        return min(ends, key=_depth)
    path = node.meta.get("path", "")
    return f"{path}.{node.name}" if path else node.name


def _ends(node: fx.Node, own: bool) -> list[str]:
    """The modules that return a value; `own`: the leaf that makes it as well."""
    return [end for end in node.meta.get("ends", ()) if end and (own or end != node.target)]


def _depth(path: str) -> int:
    return path.count(".") + path.count("[")


def _tap(values: _Values, name: str, node: fx.Node) -> Tap:
    place, shape = values.analysis.places[node], shape_of(node) or ()
    axis = channel_axis(node, place)
    assert axis is not None
    return Tap(name, module_of(node), node, place, shape[axis], axis)


def _find(values: _Values, name: TapName) -> fx.Node:
    if isinstance(name, str):
        return _by_path(values, name)
    if isinstance(name, bool) or not isinstance(name, SupportsIndex):
        raise RequestError(f"a tap is a layer number or a module path, got {name!r}")
    return _by_layer(values, index(name))


def _by_layer(values: _Values, number: int) -> fx.Node:
    """The last map before the next layer: pointwise operators belong to the layer before them."""
    layers = values.analysis.layers
    if not 0 <= number < len(layers):
        raise RequestError(f"layer {number} does not exist: the model has layers 0 to {len(layers) - 1}")
    site = layers[number]
    if site.node not in values.position or site.node not in values.closed:
        raise RequestError(
            f"layer {number} ({site.name}) is inside a residual or parallel block, where it is not the only map. "
            + _block_around(values, site.node)
        )
    candidates = []
    for node in [site.node, *values.descendants(site.node)]:
        if node is not site.node and node in values.layers:
            break
        same = values.analysis.places[node].reduction == site.after.reduction
        if same and node in values.closed and node in values.maps:
            candidates.append(node)
    if not candidates:
        raise RequestError(f"layer {number} ({site.name}) makes no map (N, C, H, W) that could be taken out")
    return _outermost(_straight_back(values, candidates))


def _block_around(values: _Values, node: fx.Node) -> str:
    """The way out: the nearest module around a node whose map can be taken."""
    path = str(node.meta.get("path", ""))
    while path:
        ends = [n for n in values.maps if path in n.meta.get("ends", ()) and n in values.closed]
        if len(ends) == 1:
            return f"Tap the block instead: {path!r}"
        path = path.rpartition(".")[0]
    return "No module around it returns one closed map; tap a module by its path"


def _by_path(values: _Values, path: str) -> fx.Node:
    ends: dict[str, list[fx.Node]] = {}
    for node in values.analysis.traced.graph.nodes:
        for end in node.meta.get("ends", ()):
            ends.setdefault(end, []).append(node)
    found = ends.get(path, [])
    module, _, number = path.rpartition("#")
    if module in ends and number.isdecimal() and int(number) < len(ends[module]):
        found = [ends[module][int(number)]]
    if len(found) == 1:
        if found[0] in values.maps or _passes_map(values, found[0]):
            return found[0]
        shape = tuple("N" if n == BATCH else n for n in shape_of(found[0]) or ())
        raise RequestError(f"{path!r} does not return a map (N, C, H, W): its value has shape {shape}")
    if len(found) > 1:
        raise RequestError(
            f"{path!r} runs {len(found)} times in one pass; tap one of the calls, {path + '#0'!r} to "
            f"{f'{path}#{len(found) - 1}'!r}, or a module around one"
        )
    made = [n for n in values.maps if n.name == path or (not n.meta.get("ends") and module_of(n) == path)]
    if made:
        return made[0]
    parts = sorted(end for end in ends if end.startswith(f"{path}["))
    if parts:
        raise RequestError(f"{path!r} returns several values; tap one of {', '.join(map(repr, parts))}")
    if path in dict(values.analysis.traced.model.named_modules()):
        raise RequestError(f"module {path!r} is not called, or returns no tensor")
    near = difflib.get_close_matches(path, ends, n=3) or list(ends)[:3]
    raise RequestError(f"the model has no module {path!r}; there are {', '.join(map(repr, near))}, ...")


def _passes_map(values: _Values, node: fx.Node) -> bool:
    place = values.analysis.places.get(node)
    return place is not None and node.op != "placeholder" and channel_axis(node, place) is not None


def _outermost(candidates: Sequence[fx.Node]) -> fx.Node:
    """Of the maps between two layers, the last that the outermost module returns: a stage rather than its norm."""
    least = min(_depth(module_of(n)) for n in candidates)
    return [n for n in candidates if _depth(module_of(n)) == least][-1]


def _last_of_each_reduction(values: _Values) -> tuple[Tap, ...]:
    """The last map before each transition, and the last of all."""
    by_reduction: dict[Reduction, list[fx.Node]] = {}
    made = {n for site in values.analysis.layers for n in [site.node] if n in values.position}
    for node in values.order:
        if any(s in made for s in values.sources[node]):
            made.add(node)
        if node in made and node in values.maps:
            by_reduction.setdefault(values.analysis.places[node].reduction, []).append(node)
    taps = []
    for reduction in sorted(by_reduction):
        if _goes_on(values, by_reduction[reduction]):
            node = _last(values, reduction, by_reduction[reduction])
            taps.append(_tap(values, module_of(node), node))
    if not taps:
        raise RequestError("the model has no layers whose maps could be taken out; name modules as taps")
    names = [tap.name for tap in taps]
    return tuple(replace(t, name=_call_name(values, t)) if names.count(t.name) > 1 else t for t in taps)


def _call_name(values: _Values, tap: Tap) -> str:
    """A module that is called at several reductions is told by the number of its call."""
    calls = [n for n in values.analysis.traced.graph.nodes if tap.module in n.meta.get("ends", ())]
    return f"{tap.module}#{calls.index(tap.node)}" if tap.node in calls else tap.node.name


def _goes_on(values: _Values, maps: Sequence[fx.Node]) -> bool:
    """Whether maps of a reduction lead on to coarser ones or to an answer, not only back to finer ones (as gates)."""
    places = values.analysis.places
    own = places[maps[0]].reduction
    users = {u for n in values.order if not places[n].pooled and places[n].reduction == own for u in n.users}
    return any(u.op == "output" or (u in places and (places[u].pooled or places[u].reduction > own)) for u in users)


def _last(values: _Values, reduction: Reduction, maps: Sequence[fx.Node]) -> fx.Node:
    """The last map of a reduction that is not inside a block."""
    refined = [n for n in maps if _from_coarser(values, n, reduction)]
    if refined:  # coarser maps have come back (HRNet, feature pyramids): their last merge
        return _outermost(refined)
    closed = [n for n in maps if n in values.closed]
    if not closed:
        return _outermost(maps)
    return _outermost(_straight_back(values, closed))


def _straight_back(values: _Values, maps: Sequence[fx.Node]) -> list[fx.Node]:
    """The last of some closed maps, and those that it is made from by one operator after the other.

    So a stage's end and the norm or expansion that begins the next block, but not what lies before a whole block.
    """
    node, found = maps[-1], [maps[-1]]
    while node not in values.layers and len(values.sources[node]) == 1:
        node = values.sources[node][0]
        if node in maps:
            found.append(node)
    return found[::-1]


def _from_coarser(values: _Values, node: fx.Node, reduction: Reduction) -> bool:
    """Whether a coarser map took part in a value."""
    todo, seen = [node], set()
    while todo:
        current = todo.pop()
        for source in values.sources[current]:
            place = values.analysis.places[source]
            if not place.pooled and place.reduction > reduction and shape_of(source) is not None:
                return True
            if source not in seen:
                seen.add(source)
                todo.append(source)
    return False
