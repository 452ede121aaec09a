"""New statistics for the norms of an operated network, and nothing else changed."""

import pytest
import timm
import torch
from torch import nn

import stridesurgery as ss
from tests.models import awake


def images(count=3, size=64):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(4, 3, size, size, generator=generator) for _ in range(count)]


def test_statistics_are_those_of_the_images():
    net = nn.Sequential(
        nn.Conv2d(3, 5, 3, stride=2, padding=1), nn.BatchNorm2d(5, momentum=0.3), nn.ReLU()
    )
    fine, batches = ss.eliminate(net, "S1L0", input_size=64), images()
    assert ss.recalibrate(fine, batches) == 3
    maps = [fine[0](batch) for batch in batches]
    torch.testing.assert_close(
        fine[1].running_mean, torch.stack([m.mean((0, 2, 3)) for m in maps]).mean(0)
    )
    torch.testing.assert_close(
        fine[1].running_var, torch.stack([m.var((0, 2, 3)) for m in maps]).mean(0)
    )
    assert fine[1].momentum == 0.3
    assert torch.equal(net[1].running_mean, torch.zeros(5))


@pytest.mark.parametrize("form", ["module", "graph", "dual"])
def test_only_statistics_change(form):
    net = awake(timm.create_model("resnet18", drop_rate=0.5)).eval()
    given = (
        ss.dual_path(net, "S1L0", taps="layer1")
        if form == "dual"
        else ss.eliminate(net, "S1L0", form=form)
    )
    given.layer1.train()  # modes are kept one by one
    modes = [module.training for module in given.modules()]
    weights = {name: p.clone() for name, p in given.named_parameters()}
    before = given.bn1.running_mean.clone()
    state = torch.get_rng_state()
    ss.recalibrate(given, iter(images()), limit=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in given.modules()] == modes
    assert all(torch.equal(p, weights[name]) for name, p in given.named_parameters())
    assert not torch.equal(given.bn1.running_mean, before)
    assert given.bn1.num_batches_tracked == 2

    once = {name: value.clone() for name, value in given.state_dict().items()}
    ss.recalibrate(given, images(), limit=2)  # seeded: the same again
    assert all(torch.equal(value, once[name]) for name, value in given.state_dict().items())


class Frozen(nn.BatchNorm2d):
    def train(self, mode=True):
        return super().train(False)


def test_what_takes_no_part_stays():
    stem = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.utils.parametrizations.spectral_norm(nn.Conv2d(4, 4, 3))
    )
    net = nn.Sequential(
        stem, nn.BatchNorm2d(4), Frozen(4), nn.InstanceNorm2d(4, track_running_stats=True)
    )
    net.add_module("unused", nn.BatchNorm2d(4))
    net.forward = lambda x: net[3](net[2](net[1](net[0](x))))
    awake(net).eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    ss.recalibrate(net, images())
    changed = {
        name for name, value in net.state_dict().items() if not torch.equal(value, before[name])
    }
    assert changed == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    with pytest.raises(ss.ModelError, match="takes part"):
        ss.recalibrate(nn.Sequential(nn.Conv2d(3, 4, 3), Frozen(4)), images())


def bad_batches():
    yield images(1)[0]
    yield "not an image"


@pytest.mark.parametrize(
    "batches, said",
    [
        (bad_batches(), "batch 1 is no image batch"),
        (None, "iterable of image batches"),
        (torch.zeros(2, 3, 64, 64), "iterable of image batches"),
        ([torch.zeros(2, 5, 64, 64)], "does not run on batch 0"),
        ([torch.zeros(0, 3, 64, 64)], "no image batch"),
        ([], "empty"),
        ([torch.full((2, 3, 64, 64), torch.nan)], "no numbers"),
        ([torch.zeros(3, 64, 64)], r"a tensor \(3, 64, 64\)"),
    ],
)
def test_what_fails_changes_nothing(batches, said):
    net = awake(timm.create_model("resnet18")).eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    momentum = net.bn1.momentum
    with pytest.raises(ss.RequestError, match=said):
        ss.recalibrate(net, batches)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not any(module.training for module in net.modules())
    assert net.bn1.momentum == momentum


def test_a_network_without_statistics_is_refused():
    with pytest.raises(ss.ModelError, match="no batch norm with running statistics"):
        ss.recalibrate(timm.create_model("convnext_atto"), images())
    for option, value in (("limit", 0), ("seed", "x")):
        with pytest.raises(ss.RequestError, match=option):
            ss.recalibrate(timm.create_model("resnet18"), images(), **{option: value})
    with pytest.raises(ss.ModelError, match="meta device"):
        ss.recalibrate(timm.create_model("resnet18").to("meta"), images())
