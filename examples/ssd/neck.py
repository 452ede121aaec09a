"""Necks between the backbone's maps and the predictors: the paper's, and those of Table 3.

Every neck takes the backbone's maps by key, and has the `out_channels` of the maps that it gives.

PeleeNet (Wang, Li and Ling, NeurIPS 2018) and RFB-Net (Liu, Huang and Wang, ECCV 2018) have the
layers, widths and dilations of their authors' published networks for COCO.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

from examples.ssd.configurations import Configuration


class L2Norm(nn.Module):
    """Scale each cell's channel vector to a learned length (ParseNet, Liu et al. 2015)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels,), 20.0))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=1) * self.weight[:, None, None]


STRIDES = {"S": (2, 1), "P": (2, 0), " ": (1, 0)}  # stride and padding of each kind of extra


def separable_extra(channels: int, depth: int, kind: str) -> nn.Sequential:
    """Return what makes a smaller map as MobileNet does: pointwise, depthwise, pointwise."""
    unit, stride = partial(Conv2dNormActivation, activation_layer=nn.ReLU6), STRIDES[kind]
    return nn.Sequential(
        unit(channels, depth, 1),
        unit(depth, depth, 3, *stride, groups=depth),
        unit(depth, depth, 1, activation_layer=None),
    )


class PlainExtra(nn.Module):
    """A smaller map as SSD makes it on VGG: half the depth pointwise, then 3x3, with biases."""

    def __init__(self, channels: int, depth: int, kind: str) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, depth // 2, 1)
        self.conv = nn.Conv2d(depth // 2, depth, 3, *STRIDES[kind])

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.relu(self.reduce(x)))


class Neck(nn.Module):
    """The paper's: the backbone's maps and the extras'; the first is scaled.

    keys: of the maps, as `ss.features` and `ss.dual_path` order them.
    """

    def __init__(self, row: Configuration, keys: Sequence[str], channels: Sequence[int]) -> None:
        super().__init__()
        width = dict(zip(keys, channels, strict=True))
        self.own, more = keys[: len(row.small)], keys[len(row.small) :]
        split = row.combine == "split" and bool(row.large)
        self.root = more[-1] if split else self.own[-1]  # which the extras start from
        self.joined = more if row.widen_third else ()
        self.norm = L2Norm(width[self.own[0]])
        make: Any = separable_extra if row.separable else PlainExtra
        inputs = (width[self.root], *row.depths)
        self.extras = nn.ModuleList(map(make, inputs, row.depths, row.extras))
        third, *others = row.depths
        third += sum(width[key] for key in self.joined)
        self.out_channels = (*(width[key] for key in self.own), third, *others)

    def forward(self, maps: Mapping[str, Tensor]) -> list[Tensor]:
        """maps: (N, C, H, W) by key. Returns one map for each predictor."""
        first, *others = (maps[key] for key in self.own)
        extras = chained(self.extras, maps[self.root])[1:]
        if self.joined:
            extras[0] = torch.cat([extras[0], *(maps[key] for key in self.joined)], dim=1)
        return [self.norm(first), *others, *extras]


def chained(extras: nn.ModuleList, root: Tensor) -> list[Tensor]:
    """Return a map, and what each of some modules and a ReLU make of the one before."""
    return list(accumulate(extras, lambda x, extra: F.relu(extra(x)), initial=root))


# ---- what the networks of Table 3 are made of


class Concat(nn.ModuleList):
    """Modules side by side on one map; what they make is concatenated over the channels."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([part(x) for part in self], dim=1)


class Residual(nn.Module):
    """A ReLU of the sum of what two modules make of one map."""

    def __init__(self, main: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.main, self.shortcut, self.relu = main, shortcut, nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.main(x) + self.shortcut(x))


# ---- PeleeNet

GROWTH, FIRST = 32, 32  # channels that a dense layer adds, and of the stem
# Dense layers, and their bottleneck as a multiple of half the growth.
STAGES = ((3, 1), (4, 2), (8, 4), (6, 4))

conv = partial(Conv2dNormActivation, norm_layer=partial(nn.BatchNorm2d, eps=1e-3))
linear = partial(conv, activation_layer=None)


def stem() -> nn.Sequential:
    """Return two strides, the second taken twice: by a pool and by a convolution."""
    narrow = nn.Sequential(conv(FIRST, FIRST // 2, 1), conv(FIRST // 2, FIRST, 3, stride=2))
    halved = Concat([nn.MaxPool2d(2, stride=2), narrow])
    return nn.Sequential(conv(3, FIRST, 3, stride=2), halved, conv(2 * FIRST, FIRST, 1))


def dense_layer(channels: int, bottleneck: int) -> Concat:
    """Return what adds GROWTH channels: half seen through one 3x3 convolution, half through two."""
    half = GROWTH // 2
    inner = half * bottleneck
    near = nn.Sequential(conv(channels, inner, 1), conv(inner, half, 3))
    far = nn.Sequential(conv(channels, inner, 1), conv(inner, half, 3), conv(half, half, 3))
    return Concat([nn.Identity(), near, far])


def peleenet() -> nn.Sequential:
    """Return the backbone: `stem`, then `stage1` to `stage4`, between them pools."""
    parts: OrderedDict[str, nn.Module] = OrderedDict(stem=stem())
    channels = FIRST
    for stage, (layers, bottleneck) in enumerate(STAGES, start=1):
        dense = [dense_layer(channels + GROWTH * i, bottleneck) for i in range(layers)]
        channels += GROWTH * layers
        if stage > 1:
            parts[f"pool{stage}"] = nn.AvgPool2d(2, stride=2, ceil_mode=True)
        parts[f"stage{stage}"] = nn.Sequential(*dense, conv(channels, channels, 1))
    return nn.Sequential(parts)


def prediction_block(channels: int, width: int = 256) -> Residual:
    """Return what stands before each predictor: a bottleneck beside a projection."""
    half = width // 2
    narrow = nn.Sequential(conv(channels, half, 1), conv(half, half, 3), linear(half, width, 1))
    return Residual(narrow, linear(channels, width, 1))


class PeleeNeck(nn.Module):
    """Five maps, each with its prediction block; the first feeds two predictors."""

    def __init__(self, row: Configuration, keys: Sequence[str], channels: Sequence[int]) -> None:
        super().__init__()
        self.large, self.root = keys
        first, *others = row.depths
        extras = [nn.Sequential(conv(channels[-1], 256, 1), conv(256, first, 3, stride=2))]
        for before, depth in zip(row.depths, others, strict=False):
            extras.append(nn.Sequential(conv(before, 128, 1), conv(128, depth, 3, padding=0)))
        self.extras = nn.ModuleList(extras)
        self.blocks = nn.ModuleList(map(prediction_block, (*channels, *row.depths)))
        self.out_channels = (256,) * (1 + len(self.blocks))

    def forward(self, maps: Mapping[str, Tensor]) -> list[Tensor]:
        """maps: (N, C, H, W) by key. Returns one map for each predictor."""
        found = [maps[self.large], *chained(self.extras, maps[self.root])]
        seen = [block(x) for block, x in zip(self.blocks, found, strict=True)]
        return [seen[0], *seen]


# ---- RFB-Net: a block sees its map through several branches of growing dilation

rconv = partial(Conv2dNormActivation, norm_layer=partial(nn.BatchNorm2d, momentum=0.01))
rlinear = partial(rconv, activation_layer=None)
TALL, WIDE = (3, 1), (1, 3)


def small_block(channels: int, mobile: bool) -> Residual:
    """Return the branches of the first map (RFB-s), as many channels as it has."""
    wide, narrow, middle = channels // 4, channels // 8, channels * 3 // 16
    point = partial(rconv, channels, wide, 1)
    last = partial(rlinear, wide, wide, 3, groups=wide if mobile else 1)
    long = (rconv(channels, narrow, 1), rconv(narrow, middle, WIDE), rconv(middle, wide, TALL))
    branches = [
        nn.Sequential(point(), last(dilation=1)),
        nn.Sequential(point(), rconv(wide, wide, TALL), last(dilation=3)),
        nn.Sequential(point(), rconv(wide, wide, WIDE), last(dilation=3)),
        nn.Sequential(*long, last(dilation=5)),
    ]
    seen = nn.Sequential(Concat(branches), rlinear(channels, channels, 1))
    return Residual(seen, nn.Identity() if mobile else rlinear(channels, channels, 1))


def block(channels: int, depth: int, stride: int = 1, mobile: bool = False) -> Residual:
    """Return the branches of a later map, on VGG or MobileNet, beside its projection."""
    wide, narrow, middle = channels // 4, channels // 8, channels * 3 // 16
    point, width = partial(rconv, channels, narrow, 1), 2 * middle if mobile else 3 * wide
    if mobile:
        last = partial(rlinear, middle, middle, 3, groups=middle)
        flat = (point(), rconv(narrow, middle, WIDE), rconv(middle, middle, TALL, stride))
        square = (point(), rconv(narrow, middle, 3), rconv(middle, middle, 3, stride))
        branches = [
            nn.Sequential(*flat, last(dilation=3)),
            nn.Sequential(*square, last(dilation=5)),
        ]
    else:
        last = partial(rlinear, wide, wide, 3)
        long = (point(), rconv(narrow, middle, 3), rconv(middle, wide, 3, stride))
        branches = [
            nn.Sequential(rconv(channels, wide, 1, stride), last(dilation=2)),
            nn.Sequential(point(), rconv(narrow, wide, 3, stride), last(dilation=3)),
            nn.Sequential(*long, last(dilation=5)),
        ]
    seen = nn.Sequential(Concat(branches), rlinear(width, depth, 1))
    return Residual(seen, rlinear(channels, depth, 1, stride))


def halved(channels: int, inner: int, depth: int) -> nn.Sequential:
    """Return an extra of stride 2."""
    return nn.Sequential(rconv(channels, inner, 1), rconv(inner, depth, 3, stride=2))


def trimmed(channels: int) -> nn.Sequential:
    """Return an extra without padding, which makes a map two cells smaller."""
    return nn.Sequential(rconv(channels, 128, 1), rconv(128, channels, 3, padding=0))


class RFBNeck(nn.Module):
    """A block on the first map, on VGG one on the second, then smaller maps."""

    def __init__(self, row: Configuration, keys: Sequence[str], channels: Sequence[int]) -> None:
        super().__init__()
        large, small = channels
        self.keys, mobile = keys, row.neck == "rfb_mobile"
        self.out_channels = (large, small, *row.depths)
        self.first = small_block(large, mobile)
        self.between = nn.Identity() if mobile else block(small, small)
        extras: list[nn.Module] = [block(small, 512, 2, mobile)]
        if mobile:
            extras += [halved(512, 128, 256), halved(256, 128, 256), halved(256, 64, 128)]
        else:
            extras += [block(512, 256, 2), trimmed(256), trimmed(256)]
        self.extras = nn.ModuleList(extras)

    def forward(self, maps: Mapping[str, Tensor]) -> list[Tensor]:
        """maps: (N, C, H, W) by key. Returns one map for each predictor."""
        large, small = (maps[key] for key in self.keys)
        return [self.first(large), *chained(self.extras, self.between(small))]
