"""What the table of traits says of an operator is what it does, and every part of the library acts on it alike."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import stridesurgery as ss
from stridesurgery._rewrite.check_shapes import _is_local
from stridesurgery._trace import copy_to_meta, record
from stridesurgery.ops import module_traits
from stridesurgery.ops.traits import _FUNCTIONS, _MODULES
from tests.models import awake, image

CHANNELS = 4
NEEDS = {nn.Threshold: (0.1, 0.5), nn.BatchNorm1d: None, nn.Embedding: None}  # None: takes no maps


def made(kind: type[nn.Module]) -> nn.Module:
    """A module of a type, for maps of four channels."""
    if kind in NEEDS:
        return kind(*NEEDS[kind])
    for arguments in ((CHANNELS,), ()):
        try:
            module = kind(*arguments) if "Norm" in kind.__name__ or not arguments else kind()
        except TypeError:
            continue
        return awake(module).eval()
    raise AssertionError(f"{kind} cannot be made")


PER_CELL = [
    kind for kind, traits in _MODULES.items() if traits.per_cell and NEEDS.get(kind, ()) is not None
]
MAPS = [kind for kind in _MODULES if NEEDS.get(kind, ()) is not None]


def network(part: Any) -> nn.Module:
    conv = [
        nn.Conv2d(3 if i == 0 else CHANNELS, CHANNELS, 3, s, 1) for i, s in enumerate((1, 2, 2))
    ]
    return awake(nn.Sequential(conv[0], conv[1], part, conv[2])).eval()


@pytest.mark.parametrize(
    "kind", MAPS, ids=lambda kind: f"{kind.__module__.split('.')[0]}.{kind.__name__}"
)
def test_a_cell_of_the_result_depends_on_that_cell_alone(kind: type[nn.Module]) -> None:
    module, x = made(kind), torch.randn(2, CHANNELS, 5, 5)
    before = module(x.clone())
    assert before.shape == x.shape
    if module_traits(module).passes:
        assert torch.equal(before, x)
    other = x.clone()
    other[1, :, 2, 3] += 1
    changed = (module(other) != before).any(1)
    changed[1, 2, 3] = False
    assert not changed.any()


@pytest.mark.parametrize(
    "kind", PER_CELL, ids=lambda kind: f"{kind.__module__.split('.')[0]}.{kind.__name__}"
)
def test_all_parts_of_the_library_agree(kind: type[nn.Module]) -> None:
    """Recording, grid checks, phases, the two paths and frozen norms."""
    net, x = network(made(kind)), image(32, batch=2)
    for options in ({}, {"form": "graph"}, {"dilate": True}):
        fine = ss.eliminate(net, "S1L1", input_size=32, **options)
        assert ss.verify(net, fine, 32).exact
    assert torch.allclose(fine(x)[..., ::2, ::2], net(x), atol=1e-4)
    for norm in ("shared", "frozen"):
        both = ss.dual_path(net, "S1L1", taps="2", large_norm=norm, input_size=32)
        assert [n.target for n in both.graph.nodes].count(
            "2"
        ) == 1  # the norm or activation runs once, for both
        assert torch.equal(both(x)["large.2"], both(x)["small.2"][..., ::2, ::2])
        assert torch.allclose(
            both(x)["large.2"], ss.features(net, "2", input_size=32)(x)["2"], atol=1e-5
        )
        later = nn.Sequential(
            net[0], net[1], nn.ReLU(), nn.Conv2d(CHANNELS, CHANNELS, 3, 1, 1), made(kind)
        ).eval()
        both = ss.dual_path(later, "S1L1", taps="4", large_norm=norm, input_size=32)
        assert torch.allclose(both(x)["large.4"], later(x), atol=1e-5)
        trained = both.train()(x)  # behind another convolution each path runs its own
        assert trained["large.4"].shape[-1] * 2 == trained["small.4"].shape[-1]


class Calls(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        function = getattr(F, self.name, None) or getattr(torch, self.name, None)
        method = getattr(Tensor, self.name, None)
        return function(x) if function is not None else method(x)


def unary() -> list[str]:
    """The functions per cell that take one map alone."""
    names = []
    for name, traits in _FUNCTIONS.items():
        try:
            if (
                traits.per_cell
                and not traits.like_first
                and Calls(name)(torch.rand(1, 2, 3, 3)) is not None
            ):
                names.append(name)
        except (TypeError, RuntimeError, ValueError):
            continue
    return names


@pytest.mark.parametrize("name", unary())
def test_functions_per_cell(name: str) -> None:
    x = torch.rand(2, CHANNELS, 5, 5) + 0.1
    other, before = x.clone(), Calls(name)(x.clone())
    other[1, :, 2, 3] += 1
    changed = (Calls(name)(other) != before).any(1)
    changed[1, 2, 3] = False
    assert before.shape == x.shape and not changed.any()
    net = network(Calls(name))
    assert _is_local(record(copy_to_meta(net), (32, 32)))
    assert ss.verify(net, ss.eliminate(net, "S1L1", input_size=32), 32).exact
    both, seen = ss.dual_path(net, "S1L1", taps="3", input_size=32), image(32, batch=2)
    assert [n.target for n in both.graph.nodes].count("3") == 2  # each path has its own convolution
    assert torch.allclose(both(seen)["large.3"], net(seen), atol=1e-5, equal_nan=True)
