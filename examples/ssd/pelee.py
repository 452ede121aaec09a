"""PeleeNet (Wang, Li and Ling, NeurIPS 2018), which the paper compares with, and its SSD.

The layers are those of the authors' published network for 304 pixels on COCO.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import partial

from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

from examples.ssd.configurations import Configuration
from examples.ssd.neck import Concat, Residual, chained

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
    """Return the backbone: `stem`, then `stage1` to `stage4`, with a pool before all but the first."""
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
