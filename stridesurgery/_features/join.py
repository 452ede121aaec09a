"""Joins the graphs of an operated network and of its original; their common stem runs once."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from stridesurgery._analysis import Analysis
from stridesurgery._features.freeze_norms import frozen_norm
from stridesurgery._node import Key, info, shape_of
from stridesurgery._rewrite import Change, Plan, changes_of
from stridesurgery._trace import RewrittenModel, copied, is_overwritten, lasting_memory
from stridesurgery.errors import GridError, OperatorError
from stridesurgery.ops import (
    FineConv2d,
    FineConv2dSame,
    conv2d,
    function_traits,
    module_traits,
    sample,
)


@dataclass(frozen=True)
class Joined:
    """A graph with both paths and no output yet; values by their key in the original's graph."""

    graph: fx.Graph
    small: dict[Key, fx.Node]
    large: dict[Key, fx.Node]  # up to the first eliminated operators, the same nodes


def join(
    fine: RewrittenModel,
    original: Analysis,
    planned: Plan,
    sampler: str,
    large_norm: str,
    share: bool,
) -> Joined:
    """Both paths in one graph, for the mode of the original's analysis.

    Args:
        fine: the operated model, its parameter-free operators split by `split_modules`.
        original: the recording of the original in the wanted mode.
        planned: what was operated.
        sampler: "slice" or "original", as for `dual_path`.
        large_norm: "shared" or "frozen", as for `dual_path`.
        share: as for `dual_path`.
    """
    return _Join(fine, original, planned, sampler, large_norm, share).join()


def split_modules(fine: RewrittenModel, original: nn.Module, planned: Plan) -> None:
    """Give changed operators without parameters (pools, upsamplings) a module for each path.

    The original's keeps its name, so that it runs in the large path; the finer one becomes
    `<name>_fine`.
    """
    for target in {
        str(c.site.node.target) for c in planned.changes if c.site.node.op == "call_module"
    }:
        module = fine.get_submodule(target)
        if module.state_dict():
            continue
        parent, _, name = target.rpartition(".")
        if hasattr(fine.get_submodule(parent), f"{name}_fine"):
            raise OperatorError(
                f"the model has a {target}_fine of its own, where the finer {target} would go; "
                "rename it"
            )
        fine.get_submodule(parent).add_module(f"{name}_fine", module)
        setattr(fine.get_submodule(parent), name, copy.deepcopy(original.get_submodule(target)))
        keys = {info(c.site.node).key for c in planned.changes}
        for graph in {id(g): g for g in fine.graphs.values()}.values():
            for node in graph.nodes:
                if node.target == target and info(node).key in keys:
                    node.target = f"{target}_fine"


class _Join:
    def __init__(
        self,
        fine: RewrittenModel,
        original: Analysis,
        planned: Plan,
        sampler: str,
        large_norm: str,
        share: bool,
    ) -> None:
        self.fine, self.original, self.sampler, self.share = fine, original, sampler, share
        self.frozen = large_norm == "frozen" and original.recording.training
        self.graph = copied(fine.graphs[original.recording.training])
        self.small: dict[Key, fx.Node] = {info(n).key: n for n in self.graph.nodes}
        self.changes = {c.site.node: c for c in changes_of(original.spatial_ops, planned)}
        # of the small path alone
        self.operated = after([self.small.get(info(n).key) for n in self.changes])
        # nodes of the original's graph after the first eliminated operators
        self.beyond: set[fx.Node] = set()
        self.large: dict[Key, fx.Node] = {}
        self.lasting = lasting_memory(self.graph)
        self.memory: dict[Any, Any] = {}  # by label in the original's graph, where it is shared
        self.samples: set[fx.Node] = set()  # of maps that the small path has made
        self.by_key = {info(n).key: n for n in original.recording.graph.nodes}
        self.end = next(n for n in self.graph.nodes if n.op == "output")

    def join(self) -> Joined:
        for node in self.original.recording.graph.nodes:
            if node.op == "output":
                continue
            later = any(source in self.beyond for source in node.all_input_nodes)
            change = self.changes.get(node)
            if change is not None or later:
                self.beyond.add(node)
            if change is not None:
                made = self._operator(node, change, later)
            elif self._is_shared_still(node):
                source = self.large[info(node.all_input_nodes[0]).key]
                fine = self.small[info(node).key]
                made = self._sampled(fine, node, source.args[1:], before=fine.next)
            else:
                made = self._copy(node) if later else self._shared(node)
            self.large[info(node).key] = made
            if made is self.small.get(info(node).key):  # shared: one memory for both paths
                self.memory[info(node).memory] = info(made).memory
        self.graph.erase_node(self.end)
        info(self.graph.output(None)).take(self.end)
        return Joined(self.graph, self.small, self.large)

    def _shared(self, node: fx.Node) -> fx.Node:
        """Return the operated graph's node that computes the same, before anything has changed."""
        found = self.small.get(info(node).key)
        wanted = [self.large[info(n).key] for n in node.all_input_nodes]
        if node.op == "get_attr" or shape_of(node) is None:
            args = fx.node.map_arg(node.args, lambda n: self.large[info(n).key])
            if found is None or found.args != args:  # made for the old grid: a mask, a patch size
                self.beyond.add(node)
                return self._copy(node)
        if found is None or found.all_input_nodes != wanted or shape_of(found) != shape_of(node):
            raise GridError(
                f"the operated model computes {info(node).path or node.name} in another way than "
                "the original does, although nothing before it has changed: the two paths cannot "
                "share it"
            )
        return found

    def _operator(self, node: fx.Node, change: Change, later: bool) -> fx.Node:
        """Add what the large path runs at an eliminated operator."""
        fine = self.small.get(info(node).key)
        if fine is None:
            raise GridError(
                f"{change.site.name} is not found in the operated model; the two paths cannot part "
                "there"
            )
        removed = any(window.tap for window in change.operator.windows)
        if change.site.operator.kind == "resize" or (removed and self.sampler == "original"):
            return self._copy(node, before=None if later else fine.next)
        if not later and self.share:
            return self._sampled(fine, node, _step(change), before=fine.next)
        module = self.fine.get_submodule(str(node.target)) if node.op == "call_module" else None
        stateless = module is None or not module.state_dict()
        if stateless and not removed:
            return self._copy(node)
        hooked = module is not None and (module._forward_hooks or module._forward_pre_hooks)
        if type(module) in PLAIN_CONVOLUTIONS and module.padding_mode == "zeros" and not hooked:  # type: ignore[union-attr]
            return self._convolved(node, module, change)
        return self._sampled(self._copy(fine), node, _step(change))

    def _copy(self, node: fx.Node, before: fx.Node | None = None) -> fx.Node:
        """Copy a node of either graph to run on the large path's values."""
        with self.graph.inserting_before(before or self.end):
            made = self.graph.node_copy(node, lambda source: self._input(node, source))
        self._describe(made, node)
        if self.frozen and node not in self.changes:
            made = frozen_norm(self.fine, made)
            if self.lasting.intersection(info(made).writes):
                raise OperatorError(
                    f"{info(node).path or node.name} writes into a buffer ({node.target}), which "
                    "the large path cannot leave alone; use large_norm='shared'"
                )
        return made

    def _input(self, node: fx.Node, source: fx.Node) -> fx.Node:
        """Return the large path's value of an input."""
        value = self.large[info(source).key]
        shared = value is self.small.get(info(source).key)
        # statistics: both paths update them
        if shared and node not in self.changes and value.op != "get_attr":
            if shape_of(value) is not None and is_overwritten(value, self.operated):
                raise OperatorError(
                    f"{info(node).path or node.name} reads a value from before the first "
                    "eliminated layer that is overwritten in place; build the model with "
                    "inplace=False"
                )
        return value

    def _is_shared_still(self, node: fx.Node) -> bool:
        """Return True if an eliminated layer's norm or activation runs: once, for both paths."""
        sources = node.all_input_nodes
        if len(sources) != 1 or sources[0] not in self.beyond or len(sources[0].users) != 1:
            return False
        value, fine = self.large[info(sources[0]).key], self.small.get(info(node).key)
        if (
            value not in self.samples
            or fine is None
            or fine.all_input_nodes != [self.small[info(sources[0]).key]]
        ):
            return False
        if info(node).hooked:  # they may look at other cells
            return False
        if node.op != "call_module":
            return function_traits(node).per_cell
        module = self.fine.get_submodule(str(node.target))
        return module_traits(module).per_cell and bool(getattr(module, "track_running_stats", True))

    def _sampled(
        self, fine: fx.Node, node: fx.Node, step: Any, before: fx.Node | None = None
    ) -> fx.Node:
        """Sample the finer map on the old grid."""
        with self.graph.inserting_before(before or self.end):
            made = self.graph.call_function(sample, (fine, *step))
        self._describe(made, node)
        info(made).set(memory=made.name, writes=())
        # what is the large path's value of that memory from here on
        self.memory[info(node).memory] = made.name
        if before is not None:
            self.samples.add(made)
        return made

    def _convolved(self, node: fx.Node, conv: Any, change: Change) -> fx.Node:
        """Add a convolution at its old stride, with the weights that it has at the new one."""
        with self.graph.inserting_before(self.end):
            weight, bias = (
                None
                if getattr(conv, name) is None
                else self.graph.get_attr(f"{node.target}.{name}")
                for name in ("weight", "bias")
            )
            source = self.large[info(node.all_input_nodes[0]).key]
            args = (source, weight, bias, change.site.operator.windows, conv.groups)
            made = self.graph.call_function(conv2d, args)
        for part in (weight, bias):
            if part is not None:
                self._describe(part, node)
                info(part).set(
                    shape=tuple(getattr(conv, str(part.target).rpartition(".")[2]).shape)
                )
        self._describe(made, node)
        info(made).set(memory=made.name, writes=())
        self.memory[info(node).memory] = made.name
        return made

    def _describe(self, made: fx.Node, of: fx.Node) -> None:
        """Tell a node's metadata: that of the original's, under a key of the large path."""
        original = self.by_key[info(of).key]
        path, op, target, count = info(of).key
        info(made).take(
            original,
            key=(f"large:{path}", made.op, f"{target}:{made.name}", count),
            ends=(),
            memory=self._memory(info(original).memory),
            writes=tuple(map(self._memory, info(original).writes)),
        )

    def _memory(self, label: Any) -> Any:
        """Return the label that memory of the original's has in this graph."""
        return self.memory.get(label, ("large", label))


def _step(change: Change) -> tuple[Any, ...]:
    """Return the arguments of `sample`: how much finer an operator is now, and its column axis."""
    pairs = zip(change.operator.windows, change.site.operator.windows, strict=True)
    by = tuple(new.finer // old.finer for new, old in pairs)
    return (by, change.operator.last) if change.operator.last != -1 else (by,)


def after(nodes: Sequence[fx.Node | None]) -> set[fx.Node]:
    """Return some nodes and everything that is computed from them."""
    todo, found = [node for node in nodes if node is not None], set[fx.Node]()
    while todo:
        node = todo.pop()
        if node not in found:
            found.add(node)
            todo.extend(node.users)
    return found


PLAIN_CONVOLUTIONS = (FineConv2d, FineConv2dSame, nn.Conv2d)
