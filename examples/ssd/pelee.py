"""PeleeNet (Wang, Li and Ling, NeurIPS 2018), which the paper compares with: a two-way dense network and its SSD.

The layers are those of the authors' published network for 304 pixels on COCO.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn

from examples.ssd.configurations import Configuration

GROWTH = 32
STAGES = (
    (3, 1),
    (4, 2),
    (8, 4),
    (6, 4),
)  # dense layers, and their bottleneck as a multiple of half the growth
FIRST = 32  # channels of the stem


def conv(
    channels: int,
    width: int,
    kernel: int,
    stride: int = 1,
    padding: int | None = None,
    relu: bool = True,
) -> nn.Sequential:
    """Convolution, batch norm and, unless told otherwise, ReLU; padded to keep the size if `padding` is None."""
    pad = kernel // 2 if padding is None else padding
    parts = [
        nn.Conv2d(channels, width, kernel, stride, pad, bias=False),
        nn.BatchNorm2d(width, eps=1e-3),
    ]
    return nn.Sequential(*parts, *([nn.ReLU(inplace=True)] if relu else []))


class Stem(nn.Module):
    """(N, 3, H, W) to (N, FIRST, H/4, W/4): a convolution and a pool side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.first = conv(3, FIRST, 3, stride=2)
        self.narrow = nn.Sequential(
            conv(FIRST, FIRST // 2, 1), conv(FIRST // 2, FIRST, 3, stride=2)
        )
        self.pool = nn.MaxPool2d(2, stride=2)
        self.join = conv(2 * FIRST, FIRST, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.join(torch.cat([self.pool(x), self.narrow(x)], dim=1))


class DenseLayer(nn.Module):
    """Adds GROWTH channels: half seen through one 3x3 convolution, half through two."""

    def __init__(self, channels: int, bottleneck: int) -> None:
        super().__init__()
        half = GROWTH // 2
        inner = half * bottleneck
        self.near = nn.Sequential(conv(channels, inner, 1), conv(inner, half, 3))
        self.far = nn.Sequential(
            conv(channels, inner, 1), conv(inner, half, 3), conv(half, half, 3)
        )

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, C, H, W). Returns (N, C + GROWTH, H, W)."""
        return torch.cat([x, self.near(x), self.far(x)], dim=1)


def peleenet() -> nn.Sequential:
    """The backbone: `stem`, then `stage1` to `stage4` with a pool before each but the first."""
    parts: OrderedDict[str, nn.Module] = OrderedDict(stem=Stem())
    channels = FIRST
    for number, (layers, bottleneck) in enumerate(STAGES, start=1):
        dense = [DenseLayer(channels + GROWTH * i, bottleneck) for i in range(layers)]
        channels += GROWTH * layers
        if number > 1:
            parts[f"pool{number}"] = nn.AvgPool2d(2, stride=2, ceil_mode=True)
        parts[f"stage{number}"] = nn.Sequential(*dense, conv(channels, channels, 1))
    return nn.Sequential(parts)


class ResidualPrediction(nn.Module):
    """What stands before each predictor: a bottleneck beside a projection."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        half = width // 2
        self.project = conv(channels, width, 1, relu=False)
        self.bottleneck = nn.Sequential(
            conv(channels, half, 1), conv(half, half, 3), conv(half, width, 1, relu=False)
        )
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, C, H, W). Returns (N, width, H, W)."""
        return self.relu(self.project(x) + self.bottleneck(x))


class PeleeNeck(nn.Module):
    """Five maps, each with its prediction block; the first feeds two predictors of different box sizes.

    keys: of the two maps of the backbone, the larger first.
    """

    def __init__(self, keys: Sequence[str], channels: Sequence[int], depths: Sequence[int]) -> None:
        super().__init__()
        large, small = keys
        self.sources, self.root = (large, large, small), small
        inputs = (channels[-1], *depths)
        self.extras = nn.ModuleList(
            nn.Sequential(
                conv(before, 256 if i == 0 else 128, 1),
                self._smaller(256 if i == 0 else 128, depth, i),
            )
            for i, (before, depth) in enumerate(zip(inputs, depths, strict=False))
        )
        self.blocks = nn.ModuleList(ResidualPrediction(c, 256) for c in (*channels, *depths))
        self.out_channels = (256,) * (1 + len(self.blocks))

    @staticmethod
    def _smaller(inner: int, depth: int, number: int) -> nn.Sequential:
        return (
            conv(inner, depth, 3, stride=2, padding=1)
            if number == 0
            else conv(inner, depth, 3, padding=0)
        )

    def forward(self, maps: Mapping[str, Tensor]) -> list[Tensor]:
        """maps: (N, C, H, W) by key. Returns one map for each predictor."""
        _, large, small = (maps[key] for key in self.sources)
        found = [large, *accumulate(self.extras, lambda x, extra: extra(x), initial=small)]
        seen = [block(x) for block, x in zip(self.blocks, found, strict=True)]
        return [seen[0], *seen]


def pelee_neck(row: Configuration, keys: Sequence[str], channels: Sequence[int]) -> PeleeNeck:
    return PeleeNeck(keys, channels, row.depths)
