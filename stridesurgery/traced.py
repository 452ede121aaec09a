"""What a recording of a model is: its graph with, in every node's meta, what is known of its value."""

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor, fx, nn

BATCH = 41  # weightless images cost nothing, and a length of 41k can only be a batch of k windows
Shape = tuple[int, ...]
Key = tuple[str, str, str, int]  # (module path, kind of node, target, how many such before): stable across recordings


@dataclass(frozen=True)
class Traced:
    """A model's graph with, in every node's meta, what is known of its value.

    `shape` (of a tensor, else None), `path` (of the module whose code runs it), `key`, `ends` (the paths of the modules
    that return it), `memory` (a label: values of one label share memory) and `writes` (the labels it writes into).
    """

    graph: fx.Graph
    model: nn.Module  # the weightless copy that ran
    size: tuple[int, int]  # input (rows, columns)
    training: bool
    compares: bool = False  # the forward code compares sizes: at another input size it may do something else
    missed: tuple[str, ...] = ()  # modules one of whose hooks needs numbers: what it does is not in the graph

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


def shape_of(node: Any) -> Shape | None:
    """The shape of a node's tensor value, or None where it has none."""
    return node.meta.get("shape") if isinstance(node, fx.Node) else None


def called(node: fx.Node) -> str:
    """The path of the module, or the name of the method or function, that a node calls."""
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")


def tensors_among(values: Any) -> list[Tensor]:
    """The tensors in (nested) arguments of a call, in order."""
    found: list[Tensor] = []
    fx.node.map_aggregate(values, lambda v: found.append(v) if isinstance(v, Tensor) else None)
    return found


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


def origins(node: fx.Node) -> list[str]:
    """The attributes that a value is computed from; none where the input takes part."""
    found, todo, seen = [], [node], set()
    while todo:
        current = todo.pop()
        if current in seen:
            continue
        seen.add(current)
        if current.op == "placeholder":
            return []
        if current.op == "get_attr" or (current.op == "call_module" and not current.all_input_nodes):
            found.append(str(current.target))  # a parametrized weight is what a module without inputs returns
        todo.extend(current.all_input_nodes)
    return found


def returned(graph: fx.Graph) -> list[fx.Node]:
    """The output, and the containers that it is made of: the nodes whose arguments leave the network."""
    found = [next(n for n in reversed(graph.nodes) if n.op == "output")]
    for node in found:
        found.extend(n for n in node.all_input_nodes if n.target is OrderedDict)
    return found


def tensors_in(args: Iterable[Any]) -> list[fx.Node]:
    """The nodes whose value is or holds a tensor among (nested) arguments, in order."""
    found: list[fx.Node] = []

    def visit(value: Any) -> None:
        if isinstance(value, fx.Node) and (shape_of(value) is not None or "parts" in value.meta):
            found.append(value)

    fx.node.map_aggregate(tuple(args), visit)
    return found
