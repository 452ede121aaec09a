"""No operator with a stride passes unseen: what no table knows and makes a map coarser is a layer, refused by name."""

import warnings
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

import stridesurgery as ss
from stridesurgery._analysis.hidden import _first
from tests.models import awake, image

SIZE, C = 32, 8
W = torch.randn(C, C, 2, 2)
Call = Callable[[Any, Tensor, Tensor], Any]
CALLS: tuple[Call, ...] = (
    lambda f, x, w: f(x, 2),
    lambda f, x, w: f(x, 2, 2),
    lambda f, x, w: f(x, w, stride=2),
    lambda f, x, w: f(x, 2.0, 2, 2),
    lambda f, x, w: f(x, scale_factor=0.5),
    lambda f, x, w: f(x, 2, output_size=SIZE // 2),
    lambda f, x, w: f(x, torch.zeros(x.shape[0], SIZE // 2, SIZE // 2, 2, device=x.device)),
    lambda f, x, w: f(x, x.new_zeros(x.shape[0], 8, SIZE // 2, SIZE // 2), w, None, 2),
    lambda f, x, w: f(x, [x.new_tensor([[0, 0, 16, 16]])] * x.shape[0], SIZE // 2),
)


def first(result: Any) -> Any:
    return result[0] if isinstance(result, (tuple, list)) else result


class Between(nn.Module):
    """A function between two convolutions, or the last thing that the network does."""

    def __init__(self, function: Any, call: Call, ends: bool = False) -> None:
        super().__init__()
        channels = first(call(function, torch.randn(2, C, SIZE, SIZE), W)).shape[1]
        self.a, self.b = nn.Conv2d(3, C, 3, 1, 1), nn.Conv2d(channels, 4, 3, 2, 1)
        self.w = nn.Parameter(W)
        self.function, self.call, self.ends = function, call, ends

    def forward(self, x: Tensor) -> Tensor:
        y = first(self.call(self.function, self.a(x), self.w))
        return y if self.ends else self.b(y)


def halving() -> dict[str, tuple[Any, Call]]:
    """Every function of torch and torchvision that some call of the list makes halve a map."""
    found: dict[str, tuple[Any, Call]] = {}
    x = torch.randn(2, C, SIZE, SIZE)
    for module in (F, torchvision.ops):
        for name in dir(module):
            function = getattr(module, name)
            if name.startswith("_") or not callable(function) or isinstance(function, type):
                continue
            for call in CALLS:
                try:
                    y = first(call(function, x, W))
                except Exception:
                    continue
                if isinstance(y, Tensor) and y.shape[:1] + y.shape[2:] == (2, 16, 16):
                    found.setdefault(name, (function, call))
    return {name: f for name, f in found.items() if not name.startswith("adaptive")}


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of old names
    HALVING = halving()


def test_the_functions_are_found() -> None:
    known = {"conv2d", "max_pool2d", "lp_pool2d", "grid_sample", "interpolate", "pixel_unshuffle"}
    assert known | {"deform_conv2d", "roi_align", "max_pool3d"} <= HALVING.keys()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", HALVING)
def test_what_halves_a_map_is_a_layer(name: str) -> None:
    for ends in (False, True):
        net = awake(Between(*HALVING[name], ends)).eval()
        report = ss.inspect(net, SIZE)
        (layer,) = (found for found in report if found.name not in ("a", "b"))
        assert (
            layer.stride == (2, 2) and layer.reduction == (2, 2) and layer.index in report.strided
        )
        assert layer.operator in (name, "interpolate"), "the culprit is named"
        try:
            fine = ss.eliminate(net, L=layer.index, input_size=SIZE)
        except ss.OperatorError as problem:
            assert layer.name in str(problem)
        else:
            assert fine(image(SIZE)).shape[-1] == net(image(SIZE)).shape[-1] * 2


class Patches(nn.Module):
    """Lays blocks of the map over the channels, in one of the ways of MLP mixers and vision transformers."""

    def __init__(self, way: str, norm: bool = False) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, C, 3, 1, 1)
        self.norm = nn.LayerNorm(C * 8) if norm else nn.Identity()
        self.b, self.way = nn.Linear(C * 8, 4), way

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = (y := self.a(x)).shape
        if self.way == "unfold":
            tokens = F.unfold(y, (2, 4), stride=(2, 4)).transpose(1, 2)
        elif self.way == "einops":
            tokens = y.view(n, c, h // 2, 2, w // 4, 4).permute(0, 2, 4, 3, 5, 1).flatten(3)
            tokens = tokens.reshape(n, -1, c * 8)
        else:
            blocks = y.reshape(n, c, h // 2, 2, w // 4, 4).transpose(3, 4)
            tokens = blocks.movedim(1, 3).reshape(n, h // 2, w // 4, c * 8)
        return self.b(self.norm(tokens))


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("way", ["unfold", "einops", "map"])
def test_blocks_that_become_channels_are_a_layer(way: str, norm: bool) -> None:
    net = awake(Patches(way, norm)).eval()
    report = ss.inspect(net, (32, 48))
    assert [(found.stride, found.out_grid) for found in report][1:] == [((2, 4), (16, 12))]
    with pytest.raises(ss.OperatorError, match=report[1].name):
        ss.eliminate(net, S=1, input_size=(32, 48))


class Windows(nn.Module):
    """Attention within windows, and mixing of tokens: no cell is laid over the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 16, 3, 2, 1)
        self.inside, self.across, self.head = (
            nn.Linear(16, 16),
            nn.Linear(64, 64),
            nn.Linear(256, 4),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        n, c, h, w = y.shape
        rows = y.view(n, c, h // 4, 4, w // 4, 4).permute(0, 2, 4, 3, 5, 1).reshape(-1, 16, c)
        y = self.inside(rows).view(n, h // 4, w // 4, 4, 4, c).permute(0, 5, 1, 3, 2, 4)
        y = self.b(y.reshape(n, c, h, w))
        return self.head(self.across(y.flatten(2)).flatten(1)[:, :256])


def test_windows_and_mixed_tokens_are_no_layers() -> None:
    report = ss.inspect(awake(Windows()).eval(), SIZE)
    assert [found.name for found in report] == ["a", "b"]
    assert [Fraction(found.reduction[0]) for found in report] == [2, 4]


def test_a_deformable_convolution_is_refused_by_its_name_and_may_stay() -> None:
    class Deformed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.offsets = nn.Conv2d(3, 18, 3, 2, 1)
            self.a = torchvision.ops.DeformConv2d(3, C, 3, stride=2, padding=1)
            self.b, self.c = nn.Conv2d(C, 18, 3, 1, 1), torchvision.ops.DeformConv2d(C, C, 3, 1, 1)
            self.d = nn.Conv2d(C, C, 3, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x, self.offsets(x))
            return self.d(self.c(y, self.b(y)))

    net = awake(Deformed()).eval()
    with pytest.raises(ss.OperatorError, match=r"a \(DeformConv2d\) would have to change"):
        ss.eliminate(net, L="offsets", input_size=SIZE)
    fine = ss.eliminate(net, L="d", input_size=SIZE)
    assert torch.allclose(fine(image(SIZE))[..., ::2, ::2], net(image(SIZE)), atol=1e-6)
    ss.verify(net, ss.eliminate(net, L="d", dilate=True, input_size=SIZE))


def test_a_pool_beyond_its_map_is_global_pooling() -> None:
    net = awake(nn.Sequential(nn.Conv2d(3, C, 3, 2, 1), nn.AvgPool2d(640, ceil_mode=True))).eval()
    assert [found.name for found in ss.inspect(net, SIZE)] == ["0"]
    fine = ss.eliminate(net, S=1, input_size=SIZE)
    assert fine(image(SIZE)).shape[2:] == (1, 1)
    ss.verify(net, fine)


def test_the_first_numbers_are_read_without_a_copy_of_all() -> None:
    """As blocks of a map of millions of cells would be, for every image and channel."""
    whole = torch.arange(6 * 8).view(1, 1, 6, 8).expand(3, 4, 6, 8)
    blocks = whole.reshape(3, 4, 3, 2, 4, 2).permute(0, 2, 4, 3, 5, 1)
    for count in (1, 4, 16, 17, 100, blocks.numel()):
        assert torch.equal(_first(blocks, count), blocks.reshape(-1)[:count])
    huge = torch.arange(4).view(1, 1, 2, 2).expand(10**6, 10**6, 2, 2).permute(0, 2, 3, 1)
    assert _first(huge, 3).tolist() == [0, 0, 0]
