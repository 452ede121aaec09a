"""Numbers for the small models: really built, awake, verified, run, and compared with the original's tail."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import stridesurgery as ss
from stridesurgery._analysis import analyse
from stridesurgery._analysis.inspect import make_report
from stridesurgery._trace.meta_copy import input_channels
from tests.zoo.tail import logits_of, tail_errors

SMALL = 96  # pixels, for networks of convolutions; others run at their own size
TOLERANCE = 1e-3  # of how much two images' results differ
ATTENTION = {"softmax", "scaled_dot_product_attention", "matmul", "einsum", "bmm"}


@dataclass
class Check:
    """What was computed for one transition."""

    L: int
    verified: bool = False  # by stridesurgery.verify
    output: tuple[int, ...] = ()  # of the operated network on one image; the original's is the same
    logits: float | None = (
        None  # difference from the original's tail, over how much two images' logits differ
    )
    features: float | None = None  # the same of the last map
    why: str = ""  # what does not hold, or could not be computed

    @property
    def holds(self) -> bool:
        return self.verified and not self.why


def check_numbers(model: nn.Module, seconds: int = 60) -> tuple[tuple[int, int], list[Check]]:
    """Check every transition of a small model that is awake, each in so many seconds; also gives the size in pixels."""
    report = make_report("", analyse(model, _size(model)))
    return report.input_size, [
        _check(model, t.layers[0], max(t.factor), report.input_size, seconds)
        for t in report.transitions
    ]


def _size(model: nn.Module) -> int | None:
    """96 pixels where the network is made of convolutions and has the same layers then, else None: its own size."""
    own = analyse(model)
    targets = {str(getattr(n.target, "__name__", n.target)) for n in own.recording.graph.nodes}
    if targets & ATTENTION or max(own.recording.size) <= SMALL:
        return None
    try:
        small = analyse(model, SMALL)
    except ss.SurgeryError:
        return None
    same = [s.name for s in small.layers if s.is_strided] == [
        s.name for s in own.layers if s.is_strided
    ]
    return SMALL if same else None


def _check(
    model: nn.Module, layer: int, factor: float, size: tuple[int, int], seconds: int
) -> Check:
    check = Check(layer)
    remains = (
        int(factor) // 2 if factor > 4 else 1
    )  # a 16x16 patch stem at stride 1 is too much to run
    try:
        with _within(seconds):
            operated = ss.eliminate(model, L=layer, stride=remains, input_size=size)
            ss.verify(model, operated)
            check.verified = True
            _compare(check, model, operated, size)
    except ss.SurgeryError as problem:
        check.why = f"{'refused' if not check.verified else 'off'}: {problem}"
    except LookupError as problem:
        check.why = f"not compared: {problem}"
    except Exception as problem:
        check.why = f"{type(problem).__name__}: {problem}"
    return check


def _compare(check: Check, model: nn.Module, operated: nn.Module, size: tuple[int, int]) -> None:
    image = torch.randn(
        2, input_channels(model)[0], *size, generator=torch.Generator().manual_seed(3)
    )
    with torch.no_grad():
        before, after = (tuple(logits_of(m(image[:1])).shape) for m in (model, operated))
    check.output = after
    if before != after:
        check.why = f"the output has shape {after}, the original's {before}"
        return
    check.logits, check.features = tail_errors(model, operated, image)
    if not max(check.logits, check.features) <= TOLERANCE:
        check.why = f"off the original's tail: logits by {check.logits:.1g}, last map by {check.features:.1g}"


@contextmanager
def _within(seconds: int) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise TimeoutError(f"took more than {seconds} s")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
