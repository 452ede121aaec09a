"""A model's recording: its forward code run once by `trace`, or its graph replayed where it is one already."""

from typing import Any

import torch
from torch import fx, nn

from stridesurgery.errors import TraceError
from stridesurgery.graph import RewrittenModel, copied
from stridesurgery.operators import is_leaf
from stridesurgery.shortcuts import known_result
from stridesurgery.skeleton import input_channels, number_format
from stridesurgery.trace import trace
from stridesurgery.traced import BATCH, Traced, origins


def record(skeleton: nn.Module, size: tuple[int, int], *, training: bool = False, batch: int = BATCH) -> Traced:
    """Record a weightless model at an input size (h, w) in pixels.

    A `RewrittenModel` is replayed, so that its nodes keep the module paths and keys of the model it came from.

    Raises:
        TraceError: the forward pass fails, with the submodule and the line where it does.
    """
    if not isinstance(skeleton, RewrittenModel):
        return trace(skeleton, size, training=training, leaf=is_leaf, batch=batch)
    skeleton.train(training)
    if skeleton.only_at not in (None, tuple(size)):
        raise TraceError(
            f"this graph computes with sizes fixed at {skeleton.only_at} and cannot run at {tuple(size)}; "
            f"give input_size={skeleton.only_at}, or operate the original at the size you need"
        )
    graph = copied(skeleton.graphs[training])
    replay = _Replay(skeleton, graph)
    image = image_for(skeleton, size, batch)
    with torch.no_grad(), torch.device("meta"):
        replay.run(image)
    return Traced(graph, skeleton, (size[0], size[1]), training)


def image_for(skeleton: nn.Module, size: tuple[int, int], batch: int) -> torch.Tensor:
    """A weightless (batch, C, h, w) image as the model takes it."""
    if isinstance(skeleton, RewrittenModel):  # its graph has run
        channels = _image_node(skeleton.graph).meta["shape"][1]
    else:
        channels = input_channels(skeleton)[0]
    return torch.empty(batch, channels, *size, device="meta", dtype=number_format(skeleton))


def one_image(traced: Traced) -> torch.Tensor:
    """A weightless (1, C, h, w) image as a recorded model took it."""
    shape = _image_node(traced.graph).meta["shape"]
    return torch.empty(1, *shape[1:], device="meta", dtype=number_format(traced.model))


def _image_node(graph: fx.Graph) -> fx.Node:
    return next(node for node in graph.nodes if node.op == "placeholder")


class _Replay(fx.Interpreter):
    """Runs a graph node by node and notes the shapes at the nodes."""

    def __init__(self, model: nn.Module, graph: fx.Graph) -> None:
        super().__init__(model, graph=graph)

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Run a module, or tell its result where that is plain."""
        known = known_result(self.fetch_attr(target), args[0]) if len(args) == 1 and not kwargs else None
        return super().call_module(target, args, kwargs) if known is None else known

    def run_node(self, n: fx.Node) -> Any:
        """Run one node and note its shape."""
        n.meta["shape"] = None
        try:
            value = super().run_node(n)
        except Exception as problem:
            names = dict.fromkeys(name for source in n.all_input_nodes for name in origins(source))
            what = str(problem).partition("\n")[0]
            raise TraceError(f"{n.meta['path'] or n.name} raised {what}", fixed=tuple(names)) from problem
        if isinstance(value, torch.Tensor) and n.op != "output":
            n.meta["shape"] = tuple(value.shape)
        if isinstance(value, (tuple, list)):
            n.meta["parts"] = len(value)
        return value
