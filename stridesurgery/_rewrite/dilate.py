"""Dilation without dilated operators: the phases of the finer map as a batch.

After an eliminated stride k the map has k x k phases, each of the size that the original's map has,
and phase (0, 0) *is* the original's. Moved into the batch they run through the rest of the network
as it is: nothing downstream changes, pooling, squeeze-excite and attention included. Maps that are
taken out are put together again; whatever is not a map (class scores) is the first phase's, which
is the original's.
"""

import operator
from functools import cached_property

from torch import fx

from stridesurgery._analysis import REARRANGING, Analysis, SpatialOp, beyond, channel_axis
from stridesurgery._node import BATCH, Key, info, returned, shape_of, tensors_in
from stridesurgery._rewrite.check_phases import batch_axes, check_no_map
from stridesurgery._rewrite.plan import Plan, changes_of
from stridesurgery._rewrite.rearrange import (
    Phases,
    describe_phases,
    phase_count,
    place_of,
    reassembled_map,
)
from stridesurgery._trace import Recording, copied, record
from stridesurgery.errors import GridError, OperatorError, TraceError
from stridesurgery.ops import (
    FUNCTIONS,
    LONG_BATCH,
    across_batch,
    arguments,
    first_phase,
    function_traits,
    repeat_phases,
    space_to_batch,
)


def dilated_graph(original: Analysis, planned: Plan) -> fx.Graph:
    """Return the original's graph with the maps after each removed stride as phases in the batch.

    Its eliminated modules must be edited; functions are replaced here.

    Raises:
        OperatorError: an eliminated operator works on windows of the map.
    """
    return _Dilated(original, planned).graph


class _Dilated:
    def __init__(self, original: Analysis, planned: Plan) -> None:
        self.grid_of = {info(n).key: place for n, place in original.grid_of.items()}
        self.spatial_ops = {info(site.node).key: site for site in original.spatial_ops}
        self.changes = {info(c.site.node).key: c for c in changes_of(original.spatial_ops, planned)}
        self.transitions = planned.transitions
        self.model, self.training = original.recording.model, original.recording.training
        self.size = original.recording.size
        self.graph = copied(original.recording.graph)
        self.lengths = self._find_lengths()
        leaving = returned(self.graph)
        for node in list(self.graph.nodes):
            if node in leaving:
                self._finish(node)
            elif info(node).key in self.grid_of and node.op != "placeholder":
                self._check_images(node, node)
                self._align(node)
            elif node.target is operator.setitem and info(node.args[0]).key in self.grid_of:
                self._check_images(node, node.args[0])  # it gives no value of its own

    def _find_lengths(self) -> dict[fx.Node, bool]:
        """Return the graph's numbers; True for those computed from the length of a batch."""
        found: dict[fx.Node, bool] = {}
        for node in self.graph.nodes:
            if shape_of(node) is not None or info(node).parts is not None:
                continue
            source, axis = (*node.args, None, None)[:2]
            is_length = (
                node.op == "call_method" and node.target == "size" and isinstance(source, fx.Node)
            )
            found[node] = (is_length and axis in self.batch_axes(source)) or any(
                found.get(other, False) for other in node.all_input_nodes
            )
        return found

    def phases(self, node: fx.Node) -> Phases:
        """Return the phases of a node's value: a function of its reduction, so that joins agree."""
        place = self.grid_of[info(node).key]
        return tuple(
            (int(c.by[0]), int(c.by[1]))
            for c in self.transitions
            if beyond(place.reduction, c.before)
        )

    def batch_axis(self, node: fx.Node) -> int:
        """Return the axis of a value that the images of the batch lie along.

        Raises:
            GridError: they lie along none of their own: folded with cells, or not all of them are
                there.
        """
        shape, axes = shape_of(node) or (), self.batch_axes(node)
        if len(axes) != 1 or shape[axes[0]] != BATCH:
            raise GridError(
                f"the value at {place_of(node)}, {shape}, has no axis for the images alone, out of "
                "which their phases could be taken. Return the batch as an axis of its own, or "
                "choose a transition after this place"
            )
        return axes[0]

    def batch_axes(self, node: fx.Node | None) -> list[int]:
        """Return the axes along which the images of the batch lie, alone or with something else."""
        axes = batch_axes(shape_of(node) or ())
        if len(axes) > 1 and node is not None:  # another length is a multiple by chance
            other = self.long.shapes.get(info(node).key)  # not known of phases, which come first
            axes = [0] if other is None else [i for i in axes if other[i] % LONG_BATCH == 0]
        return axes

    @cached_property
    def long(self) -> Recording:
        """The recording of a batch whose length no other axis is a multiple of.

        Raises:
            GridError: the model does not run on a batch of any length.
        """
        try:
            return record(
                self.model,
                self.size,
                training=self.training,
                batch=LONG_BATCH,
                watch=across_batch(),
            )
        except TraceError as problem:
            raise GridError(
                f"phases would lie along a batch of another length, and with {LONG_BATCH} images "
                f"{problem}. Let the model take any number of images, or leave dilate out"
            ) from problem

    def _mixing(self, node: fx.Node) -> tuple[str, ...]:
        """Return the operators by which a node mixes images, or what else tells images apart."""
        unmapped = [n for n in node.all_input_nodes if info(n).key not in self.grid_of]
        found = self._operators.get(info(node).key, ("others, for a longer batch",))
        return found + tuple(name for source in unmapped for name in self._mixing(source))

    @cached_property
    def _operators(self) -> dict[Key, tuple[str, ...]]:
        return {info(n).key: info(n).mixes for n in self.long.graph.nodes}

    def _check_images(self, node: fx.Node, value: fx.Node) -> None:
        """Refuse an operator on a value in phases that would take those for images.

        Raises:
            OperatorError: naming it.
        """
        if not self.phases(value):
            return
        what = "the number of images in a batch" if _counts_images(node, self.lengths) else ""
        if not self.training and node.target not in REARRANGING:
            mixing = self._mixing(node)
            what = what or (f"all images of a batch (by {', '.join(mixing)})" if mixing else "")
        if what:
            raise OperatorError(
                f"{place_of(node)} computes with {what}, which would hold the phases; choose a "
                "transition after it"
            )

    def _align(self, node: fx.Node) -> None:
        """Give a node its inputs in its own phases; an eliminated operator makes the phases."""
        own, key = self.phases(node), info(node).key
        given = list(dict.fromkeys(tensors_in([node.args, node.kwargs])))
        sources = [s for s in given if info(s).key in self.grid_of]
        site = self.spatial_ops.get(key)
        wanted = own
        if key in self.changes and site is not None:
            wanted = self.phases(sources[0])
            self._open(node, site, own[len(wanted) :])
        for source in given:
            have = self.phases(source) if source in sources else self._phases_of_length(source)
            if have is not None:
                self._give(node, source, have, wanted)
        for length in [
            n for n in node.all_input_nodes if n.op == "call_method" and n.target == "size"
        ]:
            self._lengthen(node, length, wanted)

    def _phases_of_length(self, value: fx.Node) -> Phases | None:
        """Return the phases of the batch whose length a value has that is computed from no image.

        None means that it does not depend on the length of a batch.

        Raises:
            GridError: it depends on the lengths of several batches.
        """
        found: set[Phases] = set()
        todo, seen = [value], set[fx.Node]()
        while todo:
            node = todo.pop()
            is_size = node.op == "call_method" and node.target == "size"
            source = node.all_input_nodes[0] if is_size else None
            if source is not None and info(source).key in self.grid_of:
                found.update([self.phases(source)] if self.lengths[node] else [])
            elif node not in seen:
                todo.extend(node.all_input_nodes)
            seen.add(node)
        if len(found) > 1:
            raise GridError(
                f"{place_of(value)} computes with the lengths of several batches, of which only "
                "some would hold phases. Choose a transition after it"
            )
        return next(iter(found), None)

    def _give(self, node: fx.Node, source: fx.Node, have: Phases, wanted: Phases) -> None:
        if have == wanted:
            return
        longer, shorter = (have, wanted) if len(have) > len(wanted) else (wanted, have)
        axis, count = self.batch_axis(source), phase_count(longer[len(shorter) :])
        function = first_phase if longer is have else repeat_phases
        with self.graph.inserting_before(node):
            value = self.graph.call_function(function, (source, count, *([axis] if axis else [])))
        describe_phases(value, source, "aligned", node.name)
        info(value).phases = wanted
        node.replace_input_with(source, value)

    def _lengthen(self, node: fx.Node, length: fx.Node, wanted: Phases) -> None:
        """Give a node the length of a batch in its own phases."""
        source, axis = length.args
        if not isinstance(source, fx.Node) or info(source).key not in self.grid_of:
            return
        have, want = phase_count(self.phases(source)), phase_count(wanted)
        if have == want or axis != self.batch_axis(source):
            return
        function, factor = (
            (operator.mul, want // have) if want > have else (operator.floordiv, have // want)
        )
        with self.graph.inserting_before(node):
            value = self.graph.call_function(function, (length, factor))
        describe_phases(value, length, "aligned", node.name)
        node.replace_input_with(length, value)

    def _open(self, node: fx.Node, site: SpatialOp, added: Phases) -> None:
        """Make an eliminated operator finer and move its phases into the batch."""
        if site.local:
            raise OperatorError(
                f"{site.name} works on windows of its map, whose phases cannot be told apart; "
                "choose another transition"
            )
        if node.op == "call_function":
            rule = FUNCTIONS[node.target]  # type: ignore[index]
            change = self.changes[info(node).key]
            node.target, node.args, node.kwargs = rule.refine(
                arguments(node, rule), change.operator
            )
        users, value, last = list(node.users), node, site.operator.last
        for by in added:
            with self.graph.inserting_after(value):
                opened = self.graph.call_function(
                    space_to_batch, (value, by, last) if last != -1 else (value, by)
                )
            describe_phases(opened, node, "space_to_batch", len(opened.graph.nodes))
            value = opened
        # what follows works on its memory
        info(value).take(node, key=info(value).key, ends=(), writes=())
        info(node).memory = f"{node.name} before phases"
        self.grid_of[info(value).key] = self.grid_of[info(node).key]
        for user in users:
            user.replace_input_with(node, value)

    def _finish(self, output: fx.Node) -> None:
        """Return whole maps, and of everything else the first phase."""
        for source in tensors_in(output.args):
            place = self.grid_of.get(info(source).key)
            if place is None:
                self._give(output, source, self._phases_of_length(source) or (), ())
                continue
            if not (phases := self.phases(source)):
                continue
            axis = channel_axis(source, place)
            if axis is None:
                check_no_map(source, place)
                self._give(output, source, self.phases(source), ())
            else:
                # put together last: until then the map may be written into
                output.replace_input_with(
                    source, reassembled_map(source, place.reduction, phases, axis, before=output)
                )


def _counts_images(node: fx.Node, lengths: dict[fx.Node, bool]) -> bool:
    """Return True if arithmetic with a tensor takes the number of images as a number."""
    return function_traits(node).arithmetic and any(
        lengths.get(source, False) for source in node.all_input_nodes
    )
