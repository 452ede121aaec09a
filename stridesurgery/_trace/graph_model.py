"""A model whose forward is a recorded graph over its own modules.

It has two graphs, one for training and one for evaluation.
"""

import builtins
import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, fx, nn
from torch.fx.node import _get_qualified_name, map_aggregate

from stridesurgery._node import info
from stridesurgery._trace.meta_copy import duplicate
from stridesurgery.errors import GridError
from stridesurgery.ops import own_class

_OWN = {
    "_graph",
    "_code",
    "_tracer_cls",
    "_tracer_extras",
    "meta",
    "graphs",
    "only_at",
    "_lineno_map",
    "_prologue_start",
}


class RewrittenModel(fx.GraphModule):
    """A `torch.fx.GraphModule` that keeps the whole model from which it was made.

    It has all modules, parameters and attributes of that model. `.train()` and `.eval()` switch
    between its two graphs; `.graph` is the current one. It survives deepcopy and torch.save.
    Attributes and properties of its
    class can be read as well. Methods of the class (`forward_features`, ...) are gone.
    """

    if TYPE_CHECKING:  # torch.jit.script takes annotations of a class for those of its attributes
        graphs: dict[bool, fx.Graph]  # the key is True for train mode
        feature_info: Any  # a `FeatureInfo` if it returns maps; else that of the original
        only_at: tuple[int, int] | None  # the input size, if the graph holds sizes as constants

    def __init__(
        self, model: nn.Module, graphs: dict[bool, fx.Graph], only_at: tuple[int, int] | None = None
    ) -> None:
        super().__init__(nn.Module(), fx.Graph(), type(model).__name__)
        # keep all attributes: fx would copy only what the graph names, in the graph's order
        self.__dict__.update({k: v for k, v in vars(model).items() if k not in _OWN})
        self.__dict__.update(graphs=graphs, only_at=only_at)
        self.__dict__.setdefault("original_class", own_class(type(model)))
        self._choose_graph()  # modules keep their modes, because a norm may be frozen

    def train(self, mode: bool = True) -> "RewrittenModel":
        """Set the mode and switch to the graph of that mode."""
        super().train(mode)
        self._choose_graph()
        return self

    def _choose_graph(self) -> None:
        if self.graphs.get(self.training) is not self._graph:
            self.graph = self.graphs[self.training]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the current graph.

        Raises:
            GridError: the graph holds sizes as constants, and the input has another size.
        """
        given = [tuple(x.shape[-2:]) for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
        if self.only_at is not None and given and given[0] != self.only_at:
            raise GridError(
                f"this graph computes with sizes fixed at {self.only_at}, got an input of "
                f"{given[0]}; operate the model again with input_size set to the size you need"
            )
        return super().__call__(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        """Find what the original's class says of itself: attributes and properties, no methods."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            value = getattr(vars(self).get("original_class"), name, None)
            if isinstance(value, property) and value.fget is not None:
                return value.fget(self)
            if value is None or callable(value) or name.startswith("__"):
                raise
            return value

    def _owned(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k not in _OWN}

    def __deepcopy__(self, memo: dict[int, Any]) -> "RewrittenModel":
        result = duplicate(self, memo)
        assert isinstance(result, RewrittenModel)
        return result

    def __copy__(self) -> "RewrittenModel":
        shell = nn.Module()
        shell.__dict__.update(self._owned())
        return RewrittenModel(shell, self.graphs, self.only_at)

    def __reduce__(self) -> tuple[Any, ...]:
        written = {mode: write_graph(graph) for mode, graph in self.graphs.items()}
        owned = self._owned()
        if "<locals>" in owned["original_class"].__qualname__:  # which cannot be pickled
            owned["original_class"] = nn.Module
        return _rebuild, (owned, written, self.only_at)


def _once(graphs: dict[bool, fx.Graph]) -> dict[bool, fx.Graph]:
    """Return one graph for both modes if they are equal, so that switching costs nothing."""
    if str(graphs[True]) == str(graphs[False]):
        return {True: graphs[False], False: graphs[False]}
    return graphs


def rewritten(
    model: nn.Module, train_graph: fx.Graph, eval_graph: fx.Graph, only_at: tuple[int, int] | None
) -> RewrittenModel:
    """Return a model that runs these graphs over the modules of `model`, which it takes over."""
    vars(model).pop("forward", None)  # a forward set from outside would replace the graph
    for module in model.modules():  # the graph itself resamples the tables that it reads
        if own_class(type(module)) is not type(module):
            module.__class__ = own_class(type(module))
    return RewrittenModel(model, _once({True: train_graph, False: eval_graph}), only_at)


def _rebuild(
    owned: dict[str, Any], written: dict[bool, list[Any]], only_at: tuple[int, int] | None
) -> RewrittenModel:
    shell = nn.Module()
    shell.__dict__.update(owned)
    return RewrittenModel(
        shell, _once({mode: read_graph(nodes) for mode, nodes in written.items()}), only_at
    )


@dataclass(frozen=True)
class _Ref:
    """A reference to another node in a written graph."""

    name: str


def copied(graph: fx.Graph) -> fx.Graph:
    """Return a copy of a graph with its output and the metadata of its nodes."""
    copy_, memo = fx.Graph(), dict[fx.Node, fx.Node]()
    result = copy_.graph_copy(graph, memo, return_output_node=True)
    assert isinstance(result, tuple)
    info(copy_.output(result[0])).take(result[1])
    return copy_


def write_graph(graph: fx.Graph) -> list[tuple[Any, ...]]:
    """Write a graph as plain values.

    Returns:
        A tuple (name, op, target, args, kwargs, meta) for each node. Functions are given by
        qualified name.
    """
    rows = []
    for node in graph.nodes:
        target = _get_qualified_name(node.target) if node.op == "call_function" else node.target
        args, kwargs = (_plain(map_aggregate(a, _to_ref)) for a in (node.args, node.kwargs))
        rows.append((node.name, node.op, target, args, kwargs, dict(node.meta)))
    return rows


def read_graph(rows: list[tuple[Any, ...]]) -> fx.Graph:
    """Read the graph that `write_graph` wrote."""
    graph = fx.Graph()
    nodes: dict[str, fx.Node] = {}
    for name, op, target, args, kwargs, meta in rows:
        target = _function(target) if op == "call_function" else target
        args, kwargs = (
            map_aggregate(a, lambda v: nodes[v.name] if isinstance(v, _Ref) else v)
            for a in (args, kwargs)
        )
        nodes[name] = graph.create_node(op, target, args, kwargs, name=name)
        nodes[name].meta.update(meta)
    return graph


def _to_ref(value: Any) -> Any:
    return _Ref(value.name) if isinstance(value, fx.Node) else value


def _plain(value: Any) -> Any:
    """Convert fx's immutable containers to ordinary ones."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return tuple(_plain(v) for v in value)
    return value


def _function(qualified: str) -> Any:
    head, _, name = qualified.rpartition(".")
    if not head:
        return getattr(builtins, name)
    parts = head.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:cut]))
        except ImportError:
            continue
        for part in (*parts[cut:], name):
            found = getattr(found, part)
        return found
    raise ImportError(qualified)
