"""Norms that read their running statistics and leave them alone, in a graph for training."""

from typing import Any

import torch.nn.functional as F
from torch import fx, nn

from stridesurgery._node import info
from stridesurgery.errors import OperatorError
from stridesurgery.ops import module_traits


def frozen_norm(model: nn.Module, node: fx.Node) -> fx.Node:
    """Let a norm of a training graph use its running statistics without updating them.

    Returns:
        The node with the norm's value; other operators stay as they are.

    Raises:
        OperatorError: it keeps running statistics in a way that is not known here.
    """
    if node.op == "call_function" and node.target is F.batch_norm:
        _freeze_call(node)
    if node.op != "call_module":
        return node
    module = model.get_submodule(str(node.target))
    traits = module_traits(module)
    if traits.updates_statistics:
        if module.track_running_stats and module.running_mean is not None:  # type: ignore[union-attr]
            return _freeze_module(node, module)
    elif not traits.per_cell and any("running" in name for name, _ in module.named_buffers()):
        raise OperatorError(
            f"{node.target} ({type(module).__name__}) keeps running statistics in a way that is "
            "not known, so the large path cannot leave them alone; use large_norm='shared'"
        )
    return node


_PARAMETERS = (
    "input",
    "running_mean",
    "running_var",
    "weight",
    "bias",
    "training",
    "momentum",
    "eps",
)


def _freeze_call(node: fx.Node) -> None:
    given: dict[str, Any] = dict(zip(_PARAMETERS, node.args, strict=False)) | dict(node.kwargs)
    if given.get("running_mean") is not None:
        node.args = (given.pop("input"),)
        node.kwargs = given | {"training": False}
        info(node).writes = ()


def _freeze_module(node: fx.Node, module: Any) -> fx.Node:
    graph, path = node.graph, str(node.target)
    with graph.inserting_before(node):
        read = {
            name: _with_meta(graph.get_attr(f"{path}.{name}"), node)
            for name in ("running_mean", "running_var", "weight", "bias")
            if getattr(module, name) is not None
        }
        kwargs = read | {"training": False, "eps": module.eps}
        value = _with_meta(graph.call_function(F.batch_norm, node.args[:1], kwargs), node)
        for part in [p for p in ("drop", "act") if hasattr(module, p)]:
            value = _with_meta(graph.call_module(f"{path}.{part}", (value,)), node)
    node.replace_all_uses_with(value)
    graph.erase_node(node)
    return value


def _with_meta(new: fx.Node, old: fx.Node) -> fx.Node:
    path, op, target, count = info(old).key
    info(new).take(old, key=(path, new.op, f"{target}:{new.name}", count), ends=())
    return new
