"""RFB-Net (Liu, Huang and Wang, ECCV 2018), which the paper compares with: receptive field blocks.

A block sees its map through several branches of growing dilation. Widths and dilations are those of
the authors' published networks for 300 pixels on VGG-16 and on MobileNet v1.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

from examples.ssd.configurations import Configuration
from examples.ssd.neck import chained

conv = partial(Conv2dNormActivation, norm_layer=partial(nn.BatchNorm2d, momentum=0.01))
linear = partial(conv, activation_layer=None)


@dataclass(frozen=True)
class Step:
    """One convolution of a branch; the last of a branch has no ReLU."""

    width: float  # channels, as a share of the incoming map's
    kernel: tuple[int, int] = (3, 3)
    strided: bool = False  # takes the block's stride
    dilation: int = 1
    depthwise: bool = False


POINT, TALL, WIDE = (1, 1), (3, 1), (1, 3)
Branches = tuple[tuple[Step, ...], ...]


def small_branches(depthwise: bool) -> Branches:
    """Return the branches on the first map (RFB-s), with 1x3 and 3x1 convolutions."""

    def last(dilation: int) -> Step:
        return Step(1 / 4, dilation=dilation, depthwise=depthwise)

    point = Step(1 / 4, POINT)
    return (
        (point, last(1)),
        (point, Step(1 / 4, TALL), last(3)),
        (point, Step(1 / 4, WIDE), last(3)),
        (Step(1 / 8, POINT), Step(3 / 16, WIDE), Step(1 / 4, TALL), last(5)),
    )


VGG: Branches = (
    (Step(1 / 4, POINT, strided=True), Step(1 / 4, dilation=2)),
    (Step(1 / 8, POINT), Step(1 / 4, strided=True), Step(1 / 4, dilation=3)),
    (Step(1 / 8, POINT), Step(3 / 16), Step(1 / 4, strided=True), Step(1 / 4, dilation=5)),
)
MOBILE: Branches = (
    (
        Step(1 / 8, POINT),
        Step(3 / 16, WIDE),
        Step(3 / 16, TALL, strided=True),
        Step(3 / 16, dilation=3, depthwise=True),
    ),
    (
        Step(1 / 8, POINT),
        Step(3 / 16),
        Step(3 / 16, strided=True),
        Step(3 / 16, dilation=5, depthwise=True),
    ),
)


def branch(channels: int, steps: Sequence[Step], stride: int) -> nn.Sequential:
    """Return one branch of a block."""
    layers, before = [], channels
    for step in steps:
        width = int(channels * step.width)
        make = linear if step is steps[-1] else conv
        layers.append(
            make(
                before,
                width,
                step.kernel,
                stride if step.strided else 1,
                groups=width if step.depthwise else 1,
                dilation=step.dilation,
            )
        )
        before = width
    return nn.Sequential(*layers)


class ReceptiveFieldBlock(nn.Module):
    """Branches side by side, joined by a pointwise convolution and added to the projected map."""

    def __init__(
        self, channels: int, depth: int, branches: Branches, stride: int = 1, project: bool = True
    ) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branch(channels, steps, stride) for steps in branches)
        self.join = linear(sum(int(channels * steps[-1].width) for steps in branches), depth, 1)
        self.shortcut = linear(channels, depth, 1, stride) if project else nn.Identity()
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        seen = torch.cat([b(x) for b in self.branches], dim=1)
        return self.relu(self.join(seen) + self.shortcut(x))


def halved(channels: int, inner: int, depth: int) -> nn.Sequential:
    """Return an extra of stride 2."""
    return nn.Sequential(conv(channels, inner, 1), conv(inner, depth, 3, stride=2))


def trimmed(channels: int, inner: int, depth: int) -> nn.Sequential:
    """Return an extra without padding, which makes a map two cells smaller."""
    return nn.Sequential(conv(channels, inner, 1), conv(inner, depth, 3, padding=0))


class RFBNeck(nn.Module):
    """A block on the first source, on VGG one on the second, then smaller maps."""

    def __init__(self, row: Configuration, keys: Sequence[str], channels: Sequence[int]) -> None:
        super().__init__()
        large, small = channels
        self.sources, self.root = tuple(keys), keys[-1]
        self.out_channels = (large, small, *row.depths)
        vgg, block = row.neck == "rfb", ReceptiveFieldBlock
        self.first = block(large, large, small_branches(depthwise=not vgg), project=vgg)
        self.between = block(small, small, VGG) if vgg else nn.Identity()
        if vgg:
            extras: list[nn.Module] = [block(small, 512, VGG, 2), block(512, 256, VGG, 2)]
            extras += [trimmed(256, 128, 256), trimmed(256, 128, 256)]
        else:
            extras = [block(small, 512, MOBILE, 2), halved(512, 128, 256)]
            extras += [halved(256, 128, 256), halved(256, 64, 128)]
        self.extras = nn.ModuleList(extras)

    def forward(self, maps: Mapping[str, Tensor]) -> list[Tensor]:
        """maps: (N, C, H, W) by key. Returns one map for each predictor."""
        large, small = (maps[key] for key in self.sources)
        return [self.first(large), *chained(self.extras, self.between(small))]
