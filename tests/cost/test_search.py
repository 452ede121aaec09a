"""What `search` finds: forecasts that equal what is built, sets that are complete, and fronts that nothing beats."""

from itertools import chain, combinations

import pytest
import timm
import torch
from torch import nn

import stridesurgery as ss
from stridesurgery._analysis import analyse
from stridesurgery._cost.forecast import CostEstimate, Forecast, estimates
from stridesurgery._rewrite import plan
from stridesurgery._trace import copy_to_meta
from tests.models import SAMPLE, create, size_of


@pytest.mark.parametrize(
    "name", dict.fromkeys((*SAMPLE[::4], "resnetblur18", "torchvision/swin_t"))
)
def test_forecasts_equal_the_networks_that_are_built(name):
    net, size = copy_to_meta(create(name)), size_of(name)
    analysis = analyse(net, size)
    forecast = Forecast(analysis)
    assert forecast.original.peak_bytes is not None
    assert told(ss.cost(net, size)) == forecast.original
    for request in ({"S": 1}, {"S": len(analysis.transitions)}, {"S": 1, "dilate": True}):
        try:
            fine = ss.eliminate(net, input_size=size, **request)
        except ss.SurgeryError:
            continue
        planned = plan(analysis, fine.surgery)
        assert list(estimates(forecast, [planned])) == [(planned, told(ss.cost(fine, size)))]


def told(cost):
    return CostEstimate(cost.macs, cost.activation_bytes, cost.peak_bytes)


class Padded(nn.Module):
    """Pads maps of odd sizes, which come up where some strides go and others stay."""

    def __init__(self):
        super().__init__()
        self.stages = nn.ModuleList(
            nn.Conv2d(n, m, 3, stride=2) for n, m in ((3, 4), (4, 5), (5, 6), (6, 7))
        )

    def forward(self, x):
        for stage in self.stages:
            if x.shape[-1] % 2:
                x = nn.functional.pad(x, (0, 1, 0, 1))
            x = stage(x)
        return x


def test_forward_code_that_compares_sizes_is_built_and_counted():
    net = Padded()
    assert (
        analyse(net, 254).recording.compares
        and not analyse(timm.create_model("resnet18"), 64).recording.compares
    )
    found = ss.search(net, 2000, input_size=254)
    for candidate in found.candidates:
        assert candidate.macs == ss.cost(ss.eliminate(net, candidate.surgery), 254).macs


class Repeated(nn.Module):
    """One pool at two places: neither stride can go alone."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.last, self.pool = nn.Conv2d(4, 4, 3, stride=2, padding=1), nn.MaxPool2d(2)

    def forward(self, x):
        return self.last(self.pool(self.second(self.pool(self.first(x)))))


def test_what_can_only_go_together_is_found():
    found = ss.search(Repeated(), 2000, input_size=64)
    assert {c.name for c in found.candidates} == {"S1L4", "S2L1-3", "S3L1-3-4"}
    assert ["called at several reductions" in why for why in found.refused] == [True]


def test_every_set_of_transitions_is_there_and_costs_what_it_costs():
    net = timm.create_model("mobilenetv1_100").eval()
    found = ss.search(net, 2000, input_size=64)
    strided = (0, 2, 4, 6, 12)
    sets = chain.from_iterable(combinations(strided, n) for n in range(1, 6))
    assert sorted(c.surgery.L for c in found.candidates) == sorted(sets)
    for candidate in found.candidates[::7]:
        told = ss.cost(ss.eliminate(net, candidate.surgery), 64)
        assert (candidate.macs, candidate.peak_bytes) == (told.macs, told.peak_bytes)
    assert found.original.macs == ss.cost(net, 64).macs


def test_the_front_is_what_no_other_beats():
    net = timm.create_model("mobilenetv1_100").eval()
    found = ss.search(net, 2000, taps=(11, 13), input_size=64, dilate=True)

    def merits(c):
        sides = [side for reduction in c.reductions for side in reduction]
        return (*sides, c.macs, c.first, not c.surgery.dilate)

    def beats(a, b):
        return a != b and all(x <= y for x, y in zip(a, b, strict=True))

    for candidate in found.candidates:
        beaten = any(beats(merits(other), merits(candidate)) for other in found.candidates)
        assert beaten == (candidate not in found.front)
    last = [(c.reductions[-1], c.first) for c in found]
    assert last == sorted(
        last, key=lambda pair: (-pair[0][0], pair[1])
    )  # early eliminations first among equals
    assert 0 < len(found.front) < len(found.candidates)


def test_bounds_and_wanted_reductions_hold():
    net = timm.create_model("mobilenetv1_100").eval()
    base = ss.cost(net, 64)
    bounds = ss.Budget(
        macs=5 * base.macs,
        activation_bytes=4 * base.activation_bytes,
        peak_bytes=2 * base.peak_bytes,
    )
    found = ss.search(net, bounds, taps=(11, 13), reduction=(8, 32), input_size=64)
    assert found.candidates
    for candidate in found.candidates:
        assert candidate.macs <= bounds.macs
        assert candidate.activation_bytes <= bounds.activation_bytes
        assert candidate.peak_bytes <= bounds.peak_bytes
        assert candidate.reductions[0][0] <= 8
    everything = ss.search(net, 2000, taps=(11, 13), input_size=64).candidates
    names = {c.name for c in found.candidates}
    assert all(
        c.name in names
        or c.macs > bounds.macs
        or c.activation_bytes > bounds.activation_bytes
        or c.peak_bytes > bounds.peak_bytes
        or c.reductions[0][0] > 8
        for c in everything
    )


def test_partial_strides_and_axes():
    found = ss.search(timm.create_model("convnext_atto"), 2000, input_size=64, axes=("hw", "w"))
    names = {c.name for c in found.candidates}
    assert {
        "S1L0",
        "S1L0, to stride 2",
        "S1L0, columns only",
        "S1L0, to stride 2, columns only",
    } <= names
    columns = next(c for c in found.candidates if c.name == "S1L0, columns only")
    assert columns.reductions[-1] == (32, 8)


def test_refusals_are_listed():
    found = ss.search(timm.create_model("vit_tiny_patch16_224"), 300)
    assert not found.candidates and not found.front
    assert "pos_embed" in found.refused[0] and found.refused[0] in str(found)
    kept = ss.search(timm.create_model("vit_tiny_patch16_224"), 300, dilate=True)
    assert {c.surgery.stride for c in kept.candidates} == {1, 2, 4, 8}
    assert all(c.surgery.dilate for c in kept.candidates)


def test_seconds_are_measured():
    net = timm.create_model("mobilenetv3_small_050").eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    found = ss.search(net, ss.Budget(macs=9e6, seconds=60), input_size=64)
    assert found.front and all(c.latency.median < 60 for c in found)
    assert "ms" in str(found)
    assert not ss.search(net, ss.Budget(macs=9e6, seconds=1e-9), input_size=64).front
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize(
    "budget, options, said",
    [
        (0, {}, "budget is a Budget"),
        ("4x", {}, "budget is a Budget"),
        (4, {"axes": "x"}, "axes are"),
        (4, {"axes": ()}, "axes are"),
        (4, {"axes": None}, "axes are"),
        (4, {"reduction": (8, 8), "taps": 11}, "names 2 maps"),
        (4, {"reduction": -1}, "positive number of pixels"),
        (4, {"taps": 99}, "does not exist"),
    ],
)
def test_bad_requests_are_told(budget, options, said):
    with pytest.raises(ss.RequestError, match=said):
        ss.search(timm.create_model("mobilenetv1_100"), budget, input_size=64, **options)


def test_a_budget_is_positive():
    with pytest.raises(ss.RequestError, match="no multiply-accumulates"):
        ss.search(nn.Sequential(nn.MaxPool2d(2), nn.MaxPool2d(2)), 4, input_size=64)
    with pytest.raises(ss.RequestError, match="peak_bytes of a Budget"):
        ss.Budget(peak_bytes=-1)
