"""Facts about the nodes of a recorded graph."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor, fx

BATCH = 41  # weightless images cost nothing, and a length of 41k can only be a batch of k windows
Shape = tuple[int, ...]
# (module path, kind of node, target, how many such before): stable across recordings
Key = tuple[str, str, str, int]


class NodeInfo:
    """Facts about one node; kept as plain values in its `meta`, which torch copies and pickles."""

    __slots__ = ("_meta",)
    key: Key  #: the same in every recording of a model
    path: str  #: of the module whose code makes the call
    shape: Shape | None  #: of a tensor
    parts: int | None  #: how many values it holds, if it is a container
    ends: tuple[str, ...]  #: the modules that return the value
    memory: Any  #: a label: values of one label share memory
    writes: tuple[Any, ...]  #: the labels of the memory that the call writes into
    phases: tuple[tuple[int, int], ...]  #: of a dilated network: the phases that the value is in
    mixes: tuple[str, ...]  #: torch's operators by which the call mixes images
    hooked: tuple[str, ...]  #: torch's operators by which hooks of the module look beyond a number

    def __init__(self, meta: dict[str, Any]) -> None:
        object.__setattr__(self, "_meta", meta)

    def __getattr__(self, name: str) -> Any:
        return self._meta[name] if name in self._meta else _UNKNOWN[name]

    def __setattr__(self, name: str, value: Any) -> None:
        self._meta[name] = value

    def set(self, **facts: Any) -> None:
        """Set several facts."""
        self._meta.update(facts)

    def take(self, node: fx.Node, **facts: Any) -> None:
        """Take over another node's facts, some of them changed."""
        self._meta.update(node.meta, **facts)


_UNKNOWN: dict[str, Any] = {
    "path": "",
    "shape": None,
    "parts": None,
    "ends": (),
    "memory": None,
    "writes": (),
    "phases": (),
    "mixes": (),
    "hooked": (),
}


def info(node: fx.Node) -> NodeInfo:
    """Return what is known of a node."""
    return NodeInfo(node.meta)


def shape_of(node: Any) -> Shape | None:
    """Return the shape of a node's tensor value, or None where it has none."""
    return info(node).shape if isinstance(node, fx.Node) else None


def called(node: fx.Node) -> str:
    """Return the path of the module, or the name of the method or function, that a node calls."""
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")


def tensors_among(values: Any) -> list[Tensor]:
    """Return the tensors in (nested) arguments of a call, in order."""
    found: list[Tensor] = []
    fx.node.map_aggregate(values, lambda v: found.append(v) if isinstance(v, Tensor) else None)
    return found


def origins(node: fx.Node) -> list[str]:
    """Return the attributes that a value is computed from; none where the input takes part."""
    found, todo, seen = [], [node], set()
    while todo:
        current = todo.pop()
        if current in seen:
            continue
        seen.add(current)
        if current.op == "placeholder":
            return []
        if current.op == "get_attr" or (
            current.op == "call_module" and not current.all_input_nodes
        ):
            # a parametrized weight is what a module without inputs returns
            found.append(str(current.target))
        todo.extend(current.all_input_nodes)
    return found


def returned(graph: fx.Graph) -> list[fx.Node]:
    """Return the output and the containers in it: nodes whose arguments leave the network."""
    found = [next(n for n in reversed(graph.nodes) if n.op == "output")]
    for node in found:
        found.extend(n for n in node.all_input_nodes if isinstance(n.target, type))
    return found


def tensors_in(args: Iterable[Any]) -> list[fx.Node]:
    """Return the nodes whose value is or holds a tensor among (nested) arguments, in order."""
    found: list[fx.Node] = []

    def visit(value: Any) -> None:
        if isinstance(value, fx.Node) and (
            shape_of(value) is not None or info(value).parts is not None
        ):
            found.append(value)

    fx.node.map_aggregate(tuple(args), visit)
    return found
