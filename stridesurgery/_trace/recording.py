"""The recording of a model: its graph, with facts about each value in the node's meta.

A value that the network overwrites in place after it is made must be copied before it is taken out.
The recording tells exactly which values these are: every node knows the memory that holds its value
and the memory that it writes into.
"""

from collections import defaultdict
from collections.abc import Container, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor, fx, nn

from stridesurgery._node import Key, Shape, called, info, shape_of, tensors_in


@dataclass(frozen=True)
class Recording:
    """A model's graph, with facts about each value in the node's meta.

    The entries are `shape` (of a tensor, else None), `path` (of the module whose code runs it),
    `key`, `ends` (the paths of the modules that return it), `memory` (a label: values with the same
    label share memory) and `writes` (the labels of the memory that the node writes into).
    """

    graph: fx.Graph
    model: nn.Module  # the weightless copy that ran
    size: tuple[int, int]  # input (rows, columns)
    training: bool
    compares: bool = False  # True if the code compares sizes, so may differ at another size
    missed: tuple[str, ...] = ()  # actions of the forward code that the graph lacks, in words
    adds_to_answer: bool = False  # True if a forward hook of the model itself replaces its output

    @cached_property
    def shapes(self) -> dict[Key, Shape]:
        """The shape of every tensor that is computed (without parameters), by key of the node."""
        values = (n for n in self.graph.nodes if n.op not in ("get_attr", "output"))
        return {info(n).key: shape for n in values if (shape := shape_of(n)) is not None}

    @cached_property
    def modules(self) -> dict[str, nn.Module]:
        """The model's modules by path; a module that has several paths is listed under each."""
        return dict(self.model.named_modules(remove_duplicate=False))

    def module(self, node: fx.Node) -> nn.Module:
        """Return the leaf module that a call_module node runs."""
        return self.modules[str(node.target)]


def tensors_returned(
    value: Any, name: str = "output", inside: frozenset[int] = frozenset()
) -> dict[str, Tensor]:
    """Return the tensors in a model's output, by path, such as `output['maps'][0]`.

    Dicts, lists, tuples, named tuples, dataclasses and other objects with attributes are searched.
    `inside` holds the ids of the objects that contain the value.
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
    elif (
        hasattr(value, "__dict__")
        and not isinstance(value, (type, nn.Module))
        and not callable(value)
    ):
        parts = {f"{name}.{key}": part for key, part in vars(value).items()}
    found: dict[str, Tensor] = {}
    for place, part in parts.items():
        found.update(tensors_returned(part, place, inside | {id(value)}))
    return found


def is_overwritten(node: fx.Node, by: Container[fx.Node] | None = None) -> bool:
    """Tell whether a later operator writes into the memory of a node's value.

    If `by` is given, only these nodes count.
    """
    memory, later = info(node).memory, False
    for other in node.graph.nodes:
        if later and memory in info(other).writes and (by is None or other in by):
            return True
        later = later or other is node
    return False


def lasting_memory(graph: fx.Graph) -> set[object]:
    """Return the memory of parameters, buffers and other attributes.

    Values that are written into it outlive a forward pass.
    """
    return {info(n).memory for n in graph.nodes if n.op == "get_attr"}


def give_keys(graph: fx.Graph) -> None:
    """Give each call its number among those of one function in one module.

    Calls that draw or apply noise count from -1 down, so that stochastic depth, which train mode
    alone has, changes no other number.
    """
    counts: dict[tuple[str, str, str, bool], int] = defaultdict(int)
    noise: set[fx.Node] = set()  # computed from random numbers and from no image
    images: set[fx.Node] = set()
    for node in graph.nodes:
        sources = tensors_in([node.args, node.kwargs])
        applies = not noise.isdisjoint(sources) and node.op != "call_module"
        if node.op == "placeholder" or not images.isdisjoint(sources):
            images.add(node)
        elif applies or called(node) in _DRAWS:
            noise.add(node)
        place = (str(info(node).path), node.op, called(node))
        family = (*place, applies or node in noise)
        info(node).key = (*place, -1 - counts[family] if family[-1] else counts[family])
        counts[family] += 1


_DRAWS = frozenset(
    "rand randn rand_like randn_like randint bernoulli bernoulli_ uniform_ normal_".split()
)


def lost_no_grad(
    graph: fx.Graph, model: nn.Module, without_grad: Container[fx.Node], learned: Container[int]
) -> list[str]:
    """Return the calls under `no_grad` through which parameters (by id) would learn in a graph."""
    names = {name for name, parameter in model.named_parameters() if id(parameter) in learned}
    holders = {name.rpartition(".")[0] for name in names}
    reached: set[fx.Node] = set()
    places = []
    for node in graph.nodes:
        if node.target in names | holders or reached.intersection(node.all_input_nodes):
            reached.add(node)
            if node in without_grad:
                places.append(info(node).path or "the forward code")
    return places
