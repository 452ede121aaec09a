"""A recording leaves nothing behind: attributes of modules and caches are as if the model had not run."""

import functools
from contextvars import ContextVar
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import stridesurgery as ss
from stridesurgery._node import BATCH
from tests.models import awake, image

SIZE = 32
FORMS: tuple[dict[str, Any], ...] = ({}, {"form": "graph"}, {"dilate": True})


@functools.lru_cache
def by_size(h: int, w: int, device: torch.device) -> Tensor:
    return torch.arange(h * w, device=device).view(h, w) / (h * w)


@functools.lru_cache
def recipe(n: int, h: int, w: int) -> tuple[int, int]:
    """What einops does: numbers of one map, kept for all maps of its size."""
    return n * 1, h * w


@functools.lru_cache
def by_nothing() -> Tensor:
    return torch.ones(8, 1, 1)


class Caching(nn.Module):
    """Caches by size, by device and by nothing, outside of itself and in its attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1)
        self.kept: dict[tuple[int, int], Tensor] = {}
        self.largest = 64
        self.scale = np.float64(0.5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        h, w = y.shape[2:]
        self.largest = min(self.largest, h)
        if (h, w) not in self.kept:
            self.kept[h, w] = torch.ones(h, w, device=x.device) * float(self.scale)
        y = y + by_size(h, w, x.device) + by_nothing() + self.kept[h, w].mul(self.scale)
        n, cells = recipe(y.shape[0], h, w)
        return self.b(y.reshape(n, 8, cells).view(n, 8, h, w))


@pytest.mark.parametrize("options", FORMS)
@pytest.mark.parametrize("has_run", [False, True])
def test_caches_hold_nothing_of_a_recording(options: dict[str, Any], has_run: bool) -> None:
    for cache in (by_size, recipe, by_nothing):
        cache.cache_clear()
    net = awake(Caching()).eval()
    if has_run:
        net(image(SIZE))
    for _ in range(2):
        fine = ss.eliminate(net, L="b", input_size=SIZE, **options)
        ss.verify(net, fine)
        answer = net(image(SIZE))
        assert torch.allclose(fine(image(SIZE))[..., ::2, ::2], answer, atol=1e-6)
    assert {type(number) for number in recipe(BATCH, 16, 16)} == {int}


def test_a_model_keeps_what_it_had_in_its_attributes() -> None:
    net = awake(Caching()).eval()
    ss.eliminate(net, S=2, input_size=SIZE)
    assert net.kept == {} and net.largest == 64
    assert ss.inspect(net, 128).layers[0].out_grid == (64, 64)
    assert net.largest == 64


class Collected:
    """Collects what modules return while a model runs, as transformers does."""

    def __init__(self) -> None:
        self.current: ContextVar[list[Tensor] | None] = ContextVar("current", default=None)


collected = Collected()


def collect(module: nn.Module, args: Any, result: Tensor) -> None:
    found = collected.current.get()
    if found is not None:
        found.append(result)


class Collecting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1)
        self.a.register_forward_hook(collect)

    def forward(self, x: Tensor) -> list[Tensor]:
        token = collected.current.set([])
        last = self.b(self.a(x))
        maps = collected.current.get() or []
        collected.current.reset(token)
        return [*maps, last]


@pytest.mark.parametrize("options", FORMS)
def test_hooks_that_write_into_a_context_variable_run_along(options: dict[str, Any]) -> None:
    net = awake(Collecting()).eval()
    fine = ss.eliminate(net, L="b", input_size=SIZE, **options)
    assert [tuple(m.shape[2:]) for m in fine(image(SIZE))] == [(16, 16), (16, 16)]
    ss.verify(net, fine)
