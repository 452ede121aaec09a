"""How long networks take, in turn: a machine that slows down slows all of them."""

from collections.abc import Callable, Mapping
from time import perf_counter

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

WARMUP = 5  # runs that are not counted


def caller(net: nn.Module, images: Tensor, compiled: bool = False) -> Callable[[], object]:
    """Return what runs a network on images, and waits for the device."""
    net = net.eval().to(images)
    if compiled:
        net.compile()

    @torch.inference_mode()
    def call() -> None:
        net(images)
        if images.is_cuda:
            torch.cuda.synchronize()

    return call


def measure(calls: Mapping[str, Callable[[], object]], runs: int) -> dict[str, list[float]]:
    """Return milliseconds of each call, made in turn."""
    rounds = []
    for _ in tqdm(range(WARMUP + runs), desc="rounds", leave=False):
        times = [perf_counter()]
        for call in calls.values():
            call()
            times.append(perf_counter())
        rounds.append(np.diff(times) * 1e3)
    return dict(zip(calls, np.array(rounds[WARMUP:]).T.tolist(), strict=True))
