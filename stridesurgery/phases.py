"""Dilation without dilated operators: the phases of the finer map go through the unchanged network, as its batch.

After an eliminated stride k the map has k x k phases, each of the size that the original's map has, and phase (0, 0)
*is* the original's. Moved into the batch they run through the rest of the network as it is: nothing downstream
changes, pooling, squeeze-excite and attention included. Maps that are taken out are put together again; whatever is
not a map (class scores) is the first phase's, which is the original's.
"""

import math
import operator
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from stridesurgery import finer
from stridesurgery.errors import GridError, OperatorError
from stridesurgery.graph import copied
from stridesurgery.maps import channel_axis
from stridesurgery.operators import FUNCTIONS, arguments
from stridesurgery.place import Reduction, Site
from stridesurgery.plan import Plan, changes_of
from stridesurgery.report import Analysis
from stridesurgery.traced import BATCH, Traced, called, returned, shape_of, tensors_in
from stridesurgery.transitions import beyond

Phases = tuple[tuple[int, int], ...]


def phased(original: Analysis, planned: Plan) -> fx.Graph:
    """The original's graph, the maps beyond each eliminated stride as phases in the batch.

    Its eliminated modules must be edited; functions are replaced here.

    Raises:
        OperatorError: an eliminated operator works on windows of the map.
    """
    return _Phased(original, planned).graph


class _Phased:
    def __init__(self, original: Analysis, planned: Plan) -> None:
        self.places = {n.meta["key"]: place for n, place in original.places.items()}
        self.sites = {site.node.meta["key"]: site for site in original.sites}
        self.changes = {c.site.node.meta["key"]: c for c in changes_of(original.sites, planned)}
        self.cuts = planned.cuts
        self.model, self.training = original.traced.model, original.traced.training
        self.graph = copied(original.traced.graph)
        leaving = returned(self.graph)
        for node in list(self.graph.nodes):
            if node in leaving:
                self._finish(node)
            elif node.meta["key"] in self.places and node.op != "placeholder":
                self._align(node)

    def phases(self, node: fx.Node) -> Phases:
        """The phases that a node's value is in: a function of its reduction, so that what joins agrees."""
        place = self.places[node.meta["key"]]
        return tuple((int(c.by[0]), int(c.by[1])) for c in self.cuts if beyond(place.reduction, c.before))

    def _align(self, node: fx.Node) -> None:
        """Give a node its inputs in its own phases; an eliminated operator makes the phases itself."""
        if self.phases(node) and not self.training and mixes_images(node, self.model):
            name = node.target if node.op == "call_module" else node.meta["path"] or node.name
            raise OperatorError(
                f"{name} computes with all images of a batch, which would hold the phases; choose a transition after it"
            )
        own, key = self.phases(node), node.meta["key"]
        sources = [s for s in tensors_in([node.args, node.kwargs]) if s.meta["key"] in self.places]
        site = self.sites.get(key)
        wanted = own
        if key in self.changes and site is not None:
            wanted = self.phases(sources[0])
            self._open(node, site, own[len(wanted) :])
        for source in dict.fromkeys(sources):
            self._give(node, source, wanted)
        for length in [n for n in node.all_input_nodes if n.op == "call_method" and n.target == "size"]:
            self._lengthen(node, length, wanted)

    def _give(self, node: fx.Node, source: fx.Node, wanted: Phases) -> None:
        have = self.phases(source)
        if have == wanted:
            return
        longer, shorter = (have, wanted) if len(have) > len(wanted) else (wanted, have)
        count = _count(longer[len(shorter) :])
        function = finer.first_phase if longer is have else finer.each_phase
        with self.graph.inserting_before(node):
            value = self.graph.call_function(function, (source, count))
        _describe(value, source, "aligned", node.name)
        value.meta["phases"] = wanted
        node.replace_input_with(source, value)

    def _lengthen(self, node: fx.Node, length: fx.Node, wanted: Phases) -> None:
        """Give a node the length of a batch in its own phases."""
        source, axis = length.args
        if axis != 0 or not isinstance(source, fx.Node) or source.meta["key"] not in self.places:
            return
        have, want = _count(self.phases(source)), _count(wanted)
        if have == want:
            return
        function, factor = (operator.mul, want // have) if want > have else (operator.floordiv, have // want)
        with self.graph.inserting_before(node):
            value = self.graph.call_function(function, (length, factor))
        _describe(value, length, "aligned", node.name)
        node.replace_input_with(length, value)

    def _open(self, node: fx.Node, site: Site, added: Phases) -> None:
        """Make an eliminated operator finer and move its phases into the batch."""
        if site.local:
            raise OperatorError(
                f"{site.name} works on windows of its map, whose phases cannot be told apart; choose another transition"
            )
        if node.op == "call_function":
            rule = FUNCTIONS[node.target]  # type: ignore[index]
            change = self.changes[node.meta["key"]]
            node.target, node.args, node.kwargs = rule.refine(arguments(node, rule), change.operator)
        users, value, last = list(node.users), node, site.operator.last
        for by in added:
            with self.graph.inserting_after(value):
                opened = self.graph.call_function(finer.to_phases, (value, by, last) if last != -1 else (value, by))
            _describe(opened, node, "to_phases", len(opened.graph.nodes))
            value = opened
        value.meta.update(node.meta, key=value.meta["key"], ends=(), writes=())  # what follows works on its memory
        node.meta["memory"] = f"{node.name} before phases"
        self.places[value.meta["key"]] = self.places[node.meta["key"]]
        for user in users:
            user.replace_input_with(node, value)

    def _finish(self, output: fx.Node) -> None:
        """Return whole maps, and of everything else the first phase."""
        for source in tensors_in(output.args):
            place = self.places.get(source.meta["key"])
            if place is None or not (phases := self.phases(source)):
                continue
            axis = channel_axis(source, place)
            if axis is None:
                with self.graph.inserting_before(output):
                    value = self.graph.call_function(finer.first_phase, (source, _count(phases)))
                _describe(value, source, "aligned", "output")
                value.meta["phases"] = ()
            else:
                value = whole_map(source, place.reduction, phases, axis)
            output.replace_input_with(source, value)


_ALONG_AN_AXIS = "mean sum amax amin var std softmax log_softmax flip roll sort cumsum logsumexp norm".split()


def mixes_images(node: fx.Node, model: nn.Module) -> bool:
    """Whether an operator of evaluation reads across the batch: statistics of the batch, functions along axis 0."""
    if node.op == "call_module":
        module = model.get_submodule(str(node.target))
        return isinstance(module, _BatchNorm) and not module.track_running_stats
    name = called(node)
    if name == "batch_norm":
        return len(node.args) < 2 and "running_mean" not in node.kwargs
    axes = node.kwargs.get("dim", node.kwargs.get("dims", node.args[1] if len(node.args) > 1 else None))
    if name == "roll":
        axes = node.kwargs.get("dims", node.args[2] if len(node.args) > 2 else None)
    return name in _ALONG_AN_AXIS and bool(axes == 0 or (isinstance(axes, (tuple, list)) and 0 in axes))


def whole_map(node: fx.Node, reduction: Reduction, phases: Phases, axis: int) -> fx.Node:
    """The map whose phases a node holds, put together right after it.

    `reduction` is that of the phases, `axis` that of the channels.
    """
    image = next(n for n in node.graph.nodes if n.op == "placeholder")
    rows, columns = (
        (f.numerator, f.denominator) for f in (Fraction(r) / _count_along(phases, i) for i, r in enumerate(reduction))
    )
    return rearranged(node, finer.from_phases, phases, image, (rows, columns), *([-2] if axis == 3 else []))


def rearranged(node: fx.Node, function: Callable[..., Any], *args: Any) -> fx.Node:
    """A call of one of the functions that rearrange phases, right after the value it is given."""
    with node.graph.inserting_after(node):
        value = node.graph.call_function(function, (node, *args))
    _describe(value, node, function.__name__, value.name)
    value.meta["phases"] = ()
    return value


def check_phases(original: Analysis, dilated: Traced, planned: Plan) -> int:
    """Compare every value of a dilated network with the original's: the same shape, for each phase in the batch.

    Returns:
        How many values were compared.

    Raises:
        GridError: naming the first that differs.
    """
    now = {n.meta["key"]: n for n in dilated.graph.nodes}
    before = {n.meta["key"]: n for n in original.traced.graph.nodes}
    changed = {c.site.node.meta["key"] for c in planned.changes}
    count = 0
    for key, node in before.items():
        was, new = shape_of(node), shape_of(now.get(key))
        if was is None or new is None or node.op in ("get_attr", "output") or key in changed:
            continue
        place = original.places.get(node)
        # what is made for a batch of a length that was read (class tokens) is not told by a reduction
        cuts = [c for c in planned.cuts if place is None or beyond(place.reduction, c.before)]
        factors = [math.prod(int(c.by[0] * c.by[1]) for c in cuts[:n]) for n in range(1, len(cuts) + 1)]
        allowed = [was, *(shape for k in (factors if place is None else factors[-1:]) for shape in _batched(was, k))]
        if new not in allowed:
            where = node.meta["path"] or node.name
            raise GridError(
                f"the value at {where} would become {new} where {' or '.join(map(str, allowed))} was expected: the "
                "model mixes the images of a batch. Choose a transition after this place"
            )
        count += 1
    return count


def _batched(shape: tuple[int, ...], factor: int) -> list[tuple[int, ...]]:
    """The shape with a batch `factor` times as long; windows and attention heads may stand before or beside it."""
    axes = [i for i, length in enumerate(shape) if length and length % BATCH == 0]
    return [(*shape[:i], shape[i] * factor, *shape[i + 1 :]) for i in axes]


def _count(phases: Phases) -> int:
    return _count_along(phases, 0) * _count_along(phases, 1)


def _count_along(phases: Phases, axis: int) -> int:
    count = 1
    for by in phases:
        count *= by[axis]
    return count


def _describe(made: fx.Node, of: fx.Node, what: str, number: Any) -> None:
    """Tell a new node's metadata: it stands where the node stands that it rearranges."""
    path, _, target, count = of.meta["key"]
    made.meta.update(of.meta, key=(path, made.op, f"{what}:{target}:{number}", count), ends=(), writes=())
    if made.target is not finer.first_phase:  # which is a view
        made.meta["memory"] = f"{what} {number}"
