"""Record a model: run its forward code once, or replay its graph if it is one already.

A recording is the torch.fx graph of a model together with the shape of every value. No weight is
used.

The model is copied without its weights: its tensors become meta tensors. Its own `forward` runs on
that copy under a mode that records every torch function and every leaf module as an fx node. Values
are real tensors and real ints while the model runs. Control flow, asserts and `isinstance`
therefore work as they do in training. Sizes are ints that remember how they were computed, so the
graph stays valid at other sizes.
"""

import traceback
from collections.abc import Callable
from contextlib import nullcontext, suppress
from typing import Any

import torch
from torch import fx, nn

from stridesurgery._node import BATCH, info, origins
from stridesurgery._trace.graph_model import RewrittenModel, copied
from stridesurgery._trace.meta_copy import input_channels, number_format
from stridesurgery._trace.numbers import Numbers
from stridesurgery._trace.recorder import Recorder
from stridesurgery._trace.recording import Recording
from stridesurgery.errors import GridError, OperatorError, TraceError
from stridesurgery.ops import Watch, is_leaf, known_result


@torch.inference_mode(False)  # whose tensors do not count what is written into them
def record(
    meta_model: nn.Module,
    size: tuple[int, int],
    *,
    training: bool = False,
    batch: int = BATCH,
    watch: Watch | None = None,
) -> Recording:
    """Record a weightless model at an input size (h, w) in pixels.

    A `RewrittenModel` is replayed, so that its nodes keep the module paths and keys of the model it
    came from. With `watch`, the meta of every node lists in `mixes` those of its operators that mix
    the images of the batch.

    Raises:
        TraceError: the forward pass fails; the message names the submodule and the line.
    """
    if not isinstance(meta_model, RewrittenModel):
        return trace(meta_model, size, training=training, leaf=is_leaf, batch=batch, watch=watch)
    meta_model.train(training)
    if meta_model.only_at not in (None, tuple(size)):
        raise TraceError(
            f"this graph computes with sizes fixed at {meta_model.only_at} and cannot run at "
            f"{tuple(size)}; give input_size={meta_model.only_at}, or operate the original at the "
            "size you need"
        )
    graph = copied(meta_model.graphs[training])
    replay = _Replay(meta_model, graph, watch)
    image = image_for(meta_model, size, batch)
    with torch.no_grad(), torch.device("meta"), Numbers(), watch or nullcontext():
        replay.run(image)
    return Recording(graph, meta_model, (size[0], size[1]), training)


def image_for(meta_model: nn.Module, size: tuple[int, int], batch: int) -> torch.Tensor:
    """Return a weightless (batch, C, h, w) image as the model takes it."""
    if isinstance(meta_model, RewrittenModel):  # its graph has been recorded
        channels = (info(_image_node(meta_model.graph)).shape or ())[1]
    else:
        channels = input_channels(meta_model)[0]
    return torch.empty(batch, channels, *size, device="meta", dtype=number_format(meta_model))


def one_image(recording: Recording) -> torch.Tensor:
    """Return a weightless (1, C, h, w) image as the recorded model took it."""
    shape = info(_image_node(recording.graph)).shape or ()
    return torch.empty(1, *shape[1:], device="meta", dtype=number_format(recording.model))


def _image_node(graph: fx.Graph) -> fx.Node:
    return next(node for node in graph.nodes if node.op == "placeholder")


class _Replay(fx.Interpreter):
    """Run a graph node by node and note the shapes at the nodes."""

    def __init__(self, model: nn.Module, graph: fx.Graph, watch: Watch | None) -> None:
        super().__init__(model, graph=graph)
        self.extra_traceback = False  # our errors name the place in the model's words
        self.watch = watch

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Run a module, or return its result without running it if that is known."""
        is_short = len(args) == 1 and not kwargs and self.watch is None
        known = known_result(self.fetch_attr(target), args[0]) if is_short else None
        return super().call_module(target, args, kwargs) if known is None else known

    def run_node(self, n: fx.Node) -> Any:
        """Run one node and note its shape."""
        info(n).shape = None
        try:
            value = super().run_node(n)
        except Exception as problem:
            names = dict.fromkeys(name for source in n.all_input_nodes for name in origins(source))
            what = str(problem).partition("\n")[0]
            raise TraceError(
                f"{info(n).path or n.name} raised {what}", fixed=tuple(names)
            ) from problem
        if isinstance(value, torch.Tensor) and n.op != "output":
            info(n).shape = tuple(value.shape)
        if isinstance(value, (tuple, list)):
            info(n).parts = len(value)
        if self.watch is not None:
            info(n).mixes = self.watch.take()
        return value


def trace(
    meta_model: nn.Module,
    size: tuple[int, int],
    *,
    training: bool = False,
    leaf: Callable[[nn.Module], bool],
    batch: int = BATCH,
    watch: Watch | None = None,
) -> Recording:
    """Record a weightless model on a (batch, C, h, w) input.

    Args:
        meta_model: a copy that `copy_to_meta` returned. Its forward takes one image batch.
        size: (h, w) of the input in pixels.
        training: record what the model does after `.train()` instead of `.eval()`.
        leaf: tells which modules stay one node; the rest is recorded from the inside.
        batch: N of the input.
        watch: as for `record`.

    Raises:
        TraceError: the forward pass fails; the message names the submodule and the line.
    """
    meta_model.train(training)
    failures = []
    todo = input_channels(meta_model)
    for channels in todo:
        recorder = Recorder(meta_model, leaf, watch)
        image = torch.empty(batch, channels, *size, device="meta", dtype=number_format(meta_model))
        try:
            graph = recorder.record(image)
            return Recording(
                graph,
                meta_model,
                size,
                training,
                recorder.compares,
                tuple(recorder.missed),
                recorder.adds_to_answer,
            )
        except Exception as problem:
            failures.append(_explain(problem, recorder, size))
            failures[-1].__cause__ = problem
            if recorder.meets_unknown and len(todo) == len(dict.fromkeys(todo)):
                todo.append(channels)  # again: the caches that may have held it are cleared by now
    raise failures[0]


def _explain(problem: Exception, recorder: Recorder, size: tuple[int, int]) -> TraceError:
    model = recorder.model
    frames = [f for f in traceback.extract_tb(problem.__traceback__) if "/torch/" not in f.filename]
    own = [f for f in frames if "/stridesurgery/" not in f.filename]
    line = (
        f" ({own[-1].filename.rsplit('/', 1)[-1]}:{own[-1].lineno}: {own[-1].line})" if own else ""
    )
    path, kind = recorder.innermost or ("", type(model).__name__)
    text = " ".join(str(problem).split())
    place = f"submodule {path!r} ({kind})" if path else kind
    small = (
        "kernel size can't be greater",
        "output size is too small",
        "padding size should be less",
        "too small",
    )
    if any(words in text.lower() for words in small):
        return TraceError(
            f"an input of {size[0]}x{size[1]} pixels is too small for {place}{line}: {text}; give "
            "a larger input_size"
        )
    if isinstance(problem, TraceError):  # our own, which names the place
        return TraceError(
            f"{type(model).__name__} cannot be traced at {size[0]}x{size[1]} pixels{line}: {text}"
        )
    if kind.endswith("3d"):
        return TraceError(
            f"{type(model).__name__} takes no images: {place}{line} works on volumes (N, C, D, H, "
            "W). Models of images (N, C, H, W) can be operated"
        )
    fixed = f"; the size is fixed by {', '.join(recorder.fixed)}" if recorder.fixed else ""
    inside = [name for name, _ in model.named_modules() if name.endswith("backbone")]
    part = next((name for name in inside if not f"{path}.".startswith(f"{name}.")), None)
    hint = f". A submodule can be operated by itself: at={part!r}" if part else ""
    return TraceError(
        f"{type(model).__name__} cannot be traced at {size[0]}x{size[1]} pixels: {place}{line} "
        f"raised {type(problem).__name__}: {text}{fixed}{hint}",
        fixed=tuple(recorder.fixed),
    )


def is_fixed_size(recording: Recording) -> bool:
    """Tell whether a graph holds sizes as constants.

    Such a graph would be another one at another input size.

    Raises:
        OperatorError: the forward code does something that a graph cannot hold.
        GridError: the forward code computes with the batch size as a constant.
    """
    meta_model = recording.model
    if recording.missed:
        raise OperatorError(
            f"{recording.missed[0]}, which is lost in a graph; take that out, or leave the result "
            "a module"
        )
    h, w = recording.size
    # without comparisons only sizes in the graph can differ: one other size is enough to tell
    if not recording.compares:
        with suppress(TraceError):
            if str(record(meta_model, (h + 65, w + 67), batch=BATCH + 2).graph) == str(
                recording.graph
            ):
                return False
    if str(record(meta_model, recording.size, batch=BATCH + 2).graph) != str(recording.graph):
        raise GridError(
            "the model computes with the batch size as a constant (len(x), int(x.shape[0])), which "
            "no graph can follow; use x.shape[0] as it is"
        )
    same = []
    for size in ((h + 64, w), (h + 65, w + 67), (h // 2, w // 2)):  # not square, odd, smaller
        try:
            other = record(meta_model, size)
        except TraceError:
            continue  # the model itself refuses this size
        same.append(str(other.graph) == str(recording.graph))
    return not same or not all(same)
