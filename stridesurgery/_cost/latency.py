"""Measure the latency of networks.

Rounds are interleaved so that clock drift affects all networks equally.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from stridesurgery._tables import in_sight
from stridesurgery._trace import copied_model, number_format
from stridesurgery.errors import ModelError


@dataclass(frozen=True)
class Timing:
    """Seconds that a call takes.

    Example:
        >>> import stridesurgery as ss
        >>> timing = ss.Timing((0.25, 0.75, 0.5))
        >>> timing.median, timing.spread
        (0.5, (0.375, 0.625))
        >>> timing.ratio(ss.Timing((0.25, 0.25, 0.25)))
        2.0
    """

    seconds: tuple[float, ...]  #: one value for each round

    @property
    def median(self) -> float:
        """Median of the rounds."""
        return median(self.seconds)

    @property
    def spread(self) -> tuple[float, float]:
        """First and third quartile of the rounds."""
        if len(self.seconds) < 2:
            return self.seconds[0], self.seconds[0]
        first, _, third = quantiles(self.seconds, n=4, method="inclusive")
        return first, third

    def to_dict(self) -> dict[str, Any]:
        """Return the median, the quartiles and the number of rounds."""
        rounds = len(self.seconds)
        return {"median": self.median, "quartiles": list(self.spread), "rounds": rounds}

    def ratio(self, base: "Timing") -> float:
        """Return the median of the ratios to the time of another call in the same round."""
        return median(own / other for own, other in zip(self.seconds, base.seconds, strict=True))


def in_turn(calls: Sequence[Callable[[], object]], rounds: int) -> list[Timing]:
    """Time calls round by round, after one round that is not counted.

    Each timing waits until the GPU has finished.
    """
    from torch.utils.benchmark import Timer  # looks for a CUDA compiler, and may warn

    timers = [Timer("call()", globals={"call": call}) for call in calls]
    for timer in timers:
        timer.timeit(1)
    seconds = [
        [timer.timeit(1).mean for timer in timers]
        for _ in in_sight(range(rounds), rounds, "rounds")
    ]
    return [Timing(of_one) for of_one in zip(*seconds, strict=True)]


def random_images(model: nn.Module, shape: Sequence[int]) -> Tensor:
    """Return random images (N, C, h, w) in the number format and on the device of a model.

    Every call returns the same images.

    Raises:
        ModelError: the model's weights are on the meta device.
    """
    device = next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    if device.type == "meta":
        raise ModelError(
            f"{type(model).__name__} has no weights to run with (they are on the meta device)"
        )
    pixels = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    return pixels.to(device, number_format(model))


def inference(model: nn.Module, shape: Sequence[int]) -> Callable[[], object]:
    """Return a call that runs a copy of a model on images (N, C, h, w)."""
    net, images = copied_model(model).eval(), random_images(model, shape)

    def run() -> object:
        with torch.inference_mode():
            return net(images)

    return run


def training_step(model: nn.Module, shape: Sequence[int]) -> Callable[[], object]:
    """Return a call that runs a copy of a model forward and backward, without an optimiser."""
    net, images = copied_model(model).train().requires_grad_(), random_images(model, shape)

    def run() -> None:
        net.zero_grad(set_to_none=True)
        with torch.random.fork_rng(devices=[]):
            loss = sum(
                value.float().sum()
                for value in tree_leaves(net(images))
                if isinstance(value, Tensor)
            )
        assert isinstance(loss, Tensor)
        loss.backward()

    return run
