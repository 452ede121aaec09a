"""What `cost` tells: torch's own count, hand counts, and the memory that a real run takes."""

import random

import pytest
import timm
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

import stridesurgery as ss
from tests.models import SAMPLE, awake, create, size_of


@pytest.mark.parametrize("name", SAMPLE)
def test_equals_the_counter_of_torch(name):
    net = create(name)
    told = ss.cost(net, size_of(name))
    with torch.no_grad(), torch.device("meta"), FlopCounterMode(display=False) as counter:
        net.to("meta").eval()(torch.empty(1, 3, *told.input_size))
    assert told.flops == counter.get_total_flops() > 0
    assert told.parameters == sum(p.numel() for p in net.parameters())
    for sums in (told.per_layer(), told.per_reduction()):
        assert sum(part.macs for part in sums.values()) == told.macs
        assert sum(part.bytes for part in sums.values()) == told.activation_bytes


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 4, stride=4)
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8, bias=False)

    def forward(self, x):
        tokens = self.patch(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(tokens).view(x.shape[0], -1, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        return self.out(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def test_hand_counts():
    """Convolutions: cells * out * in / groups * kernel; linear layers: rows * in * out; attention: 2 * N * N * C."""
    stem = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),  # 16 x 16 cells
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, (1, 5), padding=(0, 2), groups=4),
        nn.ConvTranspose2d(8, 4, 2, stride=2),  # a kernel for every cell of its input
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 10),
    )
    told = ss.cost(stem, 32)
    by_hand = {"0": 256 * 8 * 3 * 9, "3": 256 * 8 * 2 * 5, "4": 256 * 8 * 4 * 4, "7": 4 * 10}
    assert {part.name: part.macs for part in told.parts if part.macs} == by_hand
    assert told.macs == sum(by_hand.values()) and told.flops == 2 * told.macs
    # a batch norm hands out its means and deviations too
    image, half, full = 3 * 32 * 32, 8 * 256, 4 * 1024
    assert {part.name: part.bytes // 4 for part in told.parts} == {
        "0": half, "1": half + 2 * 8, "2": half, "3": half, "4": full, "5": 4, "7": 10,
    }  # fmt: skip
    assert told.peak_bytes == 4 * (
        image + half + full
    )  # the map is held by the call until the next is made

    net, cells = Attention(), 64
    assert (
        ss.cost(net, 32).macs
        == cells * 8 * 3 * 16 + cells * 8 * 24 + 2 * cells * cells * 8 + cells * 8 * 8
    )


class Keeps(nn.Module):
    """Its first convolution does not take the image; it keeps a table that is no buffer, and draws a number."""

    def __init__(self):
        super().__init__()
        self.conv, self.open = nn.Conv2d(12, 4, 3, padding=1), nn.Conv2d(3, 12, 2, stride=2)
        self.table = torch.zeros(1000, 16, 16)

    def forward(self, x):
        return self.conv(self.open(x)) * (1 + 0 * random.random()) + self.table[:4]


def test_what_a_module_holds_is_no_activation():
    state = random.getstate()
    told = ss.cost(Keeps(), 32)
    assert random.getstate() == state
    assert told.macs == 256 * 4 * 12 * 9 + 256 * 12 * 3 * 4
    assert told.peak_bytes < 5 * 3 * 32 * 32 * 4


def test_no_operator_is_silently_zero():
    told = ss.cost(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)), 16
    )
    assert sum(told.uncounted.values()) == 3
    assert all(name in str(told) for name in told.uncounted)


@pytest.mark.parametrize(
    "name",
    [
        "mobilenetv1_100",
        "densenet121",
        "convnext_atto",
        "inception_v3",
        "swin_tiny_patch4_window7_224",
        "vit_tiny_patch16_224",
    ],
)
def test_peak_is_that_of_a_run(name):
    """Within 5% of what the profiler sees a CPU allocate (the image was there before).

    Where kernels take memory for themselves, as for VGG's reordered weights, a run takes more.
    """
    net = awake(timm.create_model(name)).eval()
    told = ss.cost(net)
    image = torch.randn(1, 3, *told.input_size)
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as run:
        net(image)
    held = most = 0
    for event in run.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    assert told.peak_bytes == pytest.approx(most + image.nbytes, rel=0.05)


def test_nothing_is_run_and_the_model_is_left_alone():
    net = timm.create_model("resnet18").train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    seen = []
    net.conv1.register_forward_hook(lambda module, args, result: seen.append(result.sum().item()))
    ss.cost(net, 64)
    assert net.training and not seen
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_what_was_operated_is_counted_too():
    net = timm.create_model("mobilenetv1_100").eval()
    plain, larger = ss.cost(net, 64), ss.cost(net, 128)
    fine = ss.cost(ss.eliminate(net, "S1L0"), 64)
    assert fine.parameters == plain.parameters
    stem = plain.per_layer()[0].macs
    assert fine.macs - plain.macs * 4 == pytest.approx(
        0, abs=stem * 4
    )  # all but the classifier grows fourfold
    assert fine.per_reduction()[16, 16].macs == larger.per_reduction()[32, 32].macs
    maps = ss.cost(ss.features(net, taps=11), 64)
    assert 0 < maps.macs < plain.macs
    both = ss.cost(ss.dual_path(net, "S1L0", taps=(11, 13)), 64)
    assert both.macs > fine.macs - fine.parts[-1].macs
    dilated = ss.cost(ss.eliminate(net, "S1L12", dilate=True), 64)
    assert dilated.per_reduction()[16, 16].macs > plain.per_reduction()[16, 16].macs
    assert (32, 32) not in dilated.per_reduction()
