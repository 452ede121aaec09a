"""The torch.fx graph of a model together with the shape of every value, without running a weight.

The model is copied without its weights (tensors become meta tensors), and its own `forward` runs on that copy
under a mode that records every torch function and every leaf module as an fx node. Values are real tensors and
real ints while the model runs, so control flow, asserts and `isinstance` work as they do in training; sizes are
ints that remember how they were computed, so the graph stays valid at other sizes.
"""

import traceback
from collections.abc import Callable

import torch
from torch import nn

from stridesurgery.errors import TraceError
from stridesurgery.recorder import Recorder
from stridesurgery.skeleton import input_channels, number_format
from stridesurgery.traced import BATCH, Traced


def trace(
    skeleton: nn.Module,
    size: tuple[int, int],
    *,
    training: bool = False,
    leaf: Callable[[nn.Module], bool],
    batch: int = BATCH,
) -> Traced:
    """Record a weightless model on a (batch, C, h, w) input.

    Args:
        skeleton: what `without_weights` gave; any module whose forward takes one image batch.
        size: (h, w) of the input in pixels.
        training: record what the model does after `.train()` instead of `.eval()`.
        leaf: which modules stay one node; the rest is recorded from the inside.
        batch: N of the input.

    Raises:
        TraceError: the forward pass fails, with the submodule and the line where it does.
    """
    skeleton.train(training)
    failures = []
    for channels in input_channels(skeleton):
        recorder = Recorder(skeleton, leaf)
        image = torch.empty(batch, channels, *size, device="meta", dtype=number_format(skeleton))
        try:
            graph = recorder.record(image)
            return Traced(graph, skeleton, size, training, recorder.compares, tuple(recorder.missed))
        except Exception as problem:
            failures.append(_explain(problem, recorder, size))
            failures[-1].__cause__ = problem
    raise failures[0]


def _explain(problem: Exception, recorder: Recorder, size: tuple[int, int]) -> TraceError:
    model = recorder.model
    frames = [f for f in traceback.extract_tb(problem.__traceback__) if "/torch/" not in f.filename]
    own = [f for f in frames if "/stridesurgery/" not in f.filename]
    line = f" ({own[-1].filename.rsplit('/', 1)[-1]}:{own[-1].lineno}: {own[-1].line})" if own else ""
    path, kind = recorder.innermost or ("", type(model).__name__)
    text = " ".join(str(problem).split())
    place = f"submodule {path!r} ({kind})" if path else kind
    small = ("kernel size can't be greater", "output size is too small", "padding size should be less", "too small")
    if any(words in text.lower() for words in small):
        return TraceError(
            f"an input of {size[0]}x{size[1]} pixels is too small for {place}{line}: {text}; give a larger input_size"
        )
    fixed = f"; the size is fixed by {', '.join(recorder.fixed)}" if recorder.fixed else ""
    return TraceError(
        f"{type(model).__name__} cannot be traced at {size[0]}x{size[1]} pixels: {place}{line} "
        f"raised {type(problem).__name__}: {text}{fixed}",
        fixed=tuple(recorder.fixed),
    )
