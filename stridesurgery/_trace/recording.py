"""What a recording of a model is: its graph with, in every node's meta, what is known of its value.

Which values a network overwrites in place after they are made: those must be copied before they are taken out.

Recordings tell it exactly: every node knows the memory that its value is in, and the memory that it writes into.
"""

from collections.abc import Container, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor, fx, nn

from stridesurgery._node import Key, Shape, shape_of


@dataclass(frozen=True)
class Recording:
    """A model's graph with, in every node's meta, what is known of its value.

    `shape` (of a tensor, else None), `path` (of the module whose code runs it), `key`, `ends` (the paths of the modules
    that return it), `memory` (a label: values of one label share memory) and `writes` (the labels it writes into).
    """

    graph: fx.Graph
    model: nn.Module  # the weightless copy that ran
    size: tuple[int, int]  # input (rows, columns)
    training: bool
    compares: bool = False  # the forward code compares sizes: at another input size it may do something else
    missed: tuple[str, ...] = ()  # what the forward code does that is not in the graph, in words
    adds_to_answer: bool = False  # a forward hook of the model itself makes something new of what it returns

    @cached_property
    def shapes(self) -> dict[Key, Shape]:
        """The shape of every tensor that is computed (parameters apart), by the node's key."""
        values = (n for n in self.graph.nodes if n.op not in ("get_attr", "output"))
        return {n.meta["key"]: shape for n in values if (shape := shape_of(n)) is not None}

    @cached_property
    def modules(self) -> dict[str, nn.Module]:
        """The model's modules by their paths; one that has several stands under each."""
        return dict(self.model.named_modules(remove_duplicate=False))

    def module(self, node: fx.Node) -> nn.Module:
        """The leaf module that a call_module node runs."""
        return self.modules[str(node.target)]


def tensors_returned(value: Any, name: str = "output", inside: frozenset[int] = frozenset()) -> dict[str, Tensor]:
    """The tensors in what a model returns, by where they stand, such as `output['maps'][0]`.

    Looks into dicts, lists, tuples, named tuples, dataclasses and whatever else has attributes. `inside` holds the ids
    of what the value stands in.
    """
    if isinstance(value, Tensor):
        return {name: value}
    if id(value) in inside:
        return {}
    parts: dict[str, Any] = {}
    if isinstance(value, Mapping):
        parts = {f"{name}[{key!r}]": part for key, part in value.items()}
    elif isinstance(value, (list, tuple)):
        parts = {f"{name}[{i}]": part for i, part in enumerate(value)}
    elif hasattr(value, "__dict__") and not isinstance(value, (type, nn.Module)) and not callable(value):
        parts = {f"{name}.{key}": part for key, part in vars(value).items()}
    found: dict[str, Tensor] = {}
    for place, part in parts.items():
        found.update(tensors_returned(part, place, inside | {id(value)}))
    return found


def is_overwritten(node: fx.Node, by: Container[fx.Node] | None = None) -> bool:
    """Whether a later operator (one of `by`, if given) writes into the memory of a node's value."""
    memory, later = node.meta.get("memory"), False
    for other in node.graph.nodes:
        if later and memory in other.meta.get("writes", ()) and (by is None or other in by):
            return True
        later = later or other is node
    return False


def lasting_memory(graph: fx.Graph) -> set[object]:
    """The memory of parameters, buffers and other attributes: what is written into it outlives a pass."""
    return {n.meta.get("memory") for n in graph.nodes if n.op == "get_attr"}
