"""Facts about the nodes of a recorded graph."""

from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

from torch import Tensor, fx

BATCH = 41  # weightless images cost nothing, and a length of 41k can only be a batch of k windows
Shape = tuple[int, ...]
Key = tuple[str, str, str, int]  # (module path, kind of node, target, how many such before): stable across recordings


def shape_of(node: Any) -> Shape | None:
    """Return the shape of a node's tensor value, or None where it has none."""
    return node.meta.get("shape") if isinstance(node, fx.Node) else None


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
        if current.op == "get_attr" or (current.op == "call_module" and not current.all_input_nodes):
            found.append(str(current.target))  # a parametrized weight is what a module without inputs returns
        todo.extend(current.all_input_nodes)
    return found


def returned(graph: fx.Graph) -> list[fx.Node]:
    """Return the output, and the containers that it is made of: the nodes whose arguments leave the network."""
    found = [next(n for n in reversed(graph.nodes) if n.op == "output")]
    for node in found:
        found.extend(n for n in node.all_input_nodes if n.target is OrderedDict)
    return found


def tensors_in(args: Iterable[Any]) -> list[fx.Node]:
    """Return the nodes whose value is or holds a tensor among (nested) arguments, in order."""
    found: list[fx.Node] = []

    def visit(value: Any) -> None:
        if isinstance(value, fx.Node) and (shape_of(value) is not None or "parts" in value.meta):
            found.append(value)

    fx.node.map_aggregate(tuple(args), visit)
    return found
