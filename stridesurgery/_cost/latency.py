"""Measures the latency of networks. Rounds are interleaved, so that clock drift affects all of them equally."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median, quantiles

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.benchmark import Timer

from stridesurgery._trace import copied_model, number_format
from stridesurgery.errors import ModelError


@dataclass(frozen=True)
class Timing:
    """Seconds that a call takes."""

    seconds: tuple[float, ...]  #: of every round

    @property
    def median(self) -> float:
        """The median of the rounds."""
        return median(self.seconds)

    @property
    def spread(self) -> tuple[float, float]:
        """The first and the third quartile."""
        if len(self.seconds) < 2:
            return self.seconds[0], self.seconds[0]
        first, _, third = quantiles(self.seconds, n=4, method="inclusive")
        return first, third

    def ratio(self, base: "Timing") -> float:
        """Return the median over rounds of the ratio to what another call took in the same round."""
        return median(own / other for own, other in zip(self.seconds, base.seconds, strict=True))


def in_turn(calls: Sequence[Callable[[], object]], rounds: int) -> list[Timing]:
    """Time calls round by round, after one round that does not count; a GPU is waited for."""
    timers = [Timer("call()", globals={"call": call}) for call in calls]
    for timer in timers:
        timer.timeit(1)
    seconds = [[timer.timeit(1).mean for timer in timers] for _ in range(rounds)]
    return [Timing(of_one) for of_one in zip(*seconds, strict=True)]


def random_images(model: nn.Module, shape: Sequence[int]) -> Tensor:
    """Random images (N, C, h, w) in the number format and on the device of a model; the same at every call.

    Raises:
        ModelError: the model's weights are on the meta device.
    """
    device = next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    if device.type == "meta":
        raise ModelError(f"{type(model).__name__} has no weights to run with (they are on the meta device)")
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
    """Return a call that runs a copy of a model forward and backward on images, without an optimiser."""
    net, images = copied_model(model).train().requires_grad_(), random_images(model, shape)

    def run() -> None:
        net.zero_grad(set_to_none=True)
        with torch.random.fork_rng(devices=[]):
            loss = sum(value.float().sum() for value in tree_leaves(net(images)) if isinstance(value, Tensor))
        assert isinstance(loss, Tensor)
        loss.backward()

    return run
