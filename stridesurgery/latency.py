"""How long networks take, measured in turn: every round runs each of them, so that a machine's moods meet all alike."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median, quantiles

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.benchmark import Timer

from stridesurgery.operate import copied_model
from stridesurgery.report import Pair
from stridesurgery.skeleton import input_channels, number_format


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
        """The median over rounds of the ratio to what another call took in the same round."""
        return median(own / other for own, other in zip(self.seconds, base.seconds, strict=True))


def in_turn(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Timing]:
    """Time calls round by round, after one round that does not count; a GPU is waited for."""
    timers = {name: Timer("call()", globals={"call": call}) for name, call in calls.items()}
    for timer in timers.values():
        timer.timeit(1)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, timer in timers.items():
            seconds[name].append(timer.timeit(1).mean)
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def random_images(model: nn.Module, size: Pair, batch: int) -> Tensor:
    """Random images as a model takes them, on its device."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    return torch.randn(batch, input_channels(model)[0], *size, dtype=number_format(model), device=device)


def inference(model: nn.Module, size: Pair) -> Callable[[], object]:
    """A call that runs a copy of a model on one image."""
    net, image = copied_model(model).eval(), random_images(model, size, 1)

    def run() -> object:
        with torch.inference_mode():
            return net(image)

    return run


def training_step(model: nn.Module, size: Pair) -> Callable[[], object]:
    """A call that runs a copy of a model forward and backward on two images, the optimiser apart."""
    net, images = copied_model(model).train(), random_images(model, size, 2)

    def run() -> None:
        net.zero_grad(set_to_none=True)
        loss = sum(value.float().sum() for value in tree_leaves(net(images)) if isinstance(value, Tensor))
        assert isinstance(loss, Tensor)
        loss.backward()

    return run
