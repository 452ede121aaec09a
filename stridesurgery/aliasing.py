"""Which values a network overwrites in place after they are made: those must be copied before they are taken out."""

from collections.abc import Container

from torch import fx, nn

from stridesurgery.trace import tensors_in

_VIEWS = set(
    "getitem view reshape permute transpose flatten unflatten squeeze unsqueeze contiguous expand narrow chunk split "
    "unbind movedim swapaxes detach to dropout dropout2d".split()
)
_SAME = (nn.Identity, nn.Dropout, nn.Dropout2d, nn.Flatten, nn.Unflatten)


def is_overwritten(model: nn.Module, node: fx.Node, by: Container[fx.Node] | None = None) -> bool:
    """Whether a later operator (one of `by`, if given) writes into the memory of a node's value."""
    todo = _same_memory(model, node)
    seen = set(todo)
    order = {n: i for i, n in enumerate(node.graph.nodes)}
    while todo:
        current = todo.pop()
        for user in current.users:
            if user in seen or not tensors_in(user.args[:1]) or tensors_in(user.args[:1])[0] is not current:
                continue
            if _writes(model, user):
                if order[user] > order[node] and (by is None or user in by):
                    return True
                seen.add(user)
                todo.append(user)  # its result is the same memory
            elif _shares_memory(model, user):
                seen.add(user)
                todo.append(user)
    return False


def written_values(model: nn.Module, node: fx.Node) -> list[fx.Node]:
    """The values whose memory a node writes into: x, and what x is a view of, in `x[...] = y` and `x.zero_()`."""
    sources = tensors_in(node.args[:1])
    return _same_memory(model, sources[0]) if sources and _writes(model, node) else []


def _same_memory(model: nn.Module, node: fx.Node) -> list[fx.Node]:
    """A value, what it is a view of, what that is a view of, ..."""
    chain = [node]
    while _shares_memory(model, chain[-1]) and (sources := tensors_in(chain[-1].args[:1])):
        chain.append(sources[0])
    return chain


def _name(node: fx.Node) -> str:
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")


def _writes(model: nn.Module, node: fx.Node) -> bool:
    """Whether a node writes into its first argument."""
    if node.op == "call_module":
        return bool(getattr(model.get_submodule(str(node.target)), "inplace", False))
    name = _name(node)
    in_place = node.kwargs.get("inplace", False) or (name in _TAKES_INPLACE and True in node.args[1:])
    return bool(in_place) or name in ("setitem", "iadd", "isub", "imul", "itruediv") or _is_in_place_method(name)


_TAKES_INPLACE = {"relu", "relu6", "silu", "mish", "hardswish", "hardsigmoid", "elu", "selu", "celu", "leaky_relu"} | {
    "hardtanh",
    "dropout",
    "dropout2d",
    "stochastic_depth",
    "threshold",
    "rrelu",
}


def _is_in_place_method(name: str) -> bool:
    return name.endswith("_") and not name.endswith("__")


def _shares_memory(model: nn.Module, node: fx.Node) -> bool:
    """Whether a node's value may be a view of its first argument, or be it."""
    if node.op == "call_module":
        module = model.get_submodule(str(node.target))
        return isinstance(module, _SAME) or type(module).__name__.startswith("DropPath")
    return node.op in ("call_function", "call_method") and (
        _name(node) in _VIEWS or _writes(model, node) or _may_pass(node)
    )


def _may_pass(node: fx.Node) -> bool:
    """Our own operators that may return a map as it came: removed pools, paddings of nothing."""
    return getattr(node.target, "__module__", "") == "stridesurgery.finer"
