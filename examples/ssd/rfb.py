"""RFB-Net (Liu, Huang and Wang, ECCV 2018), which the paper compares with: SSD with receptive field blocks.

A block sees its map through several branches of growing dilation. Widths and dilations are those of the authors'
published networks for 300 pixels on VGG-16 and on MobileNet v1.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor, nn

from examples.ssd.configurations import Configuration

Kernel = tuple[int, int]


@dataclass(frozen=True)
class Step:
    """One convolution of a branch."""

    width: float  # channels, as a share of the incoming map's
    kernel: Kernel = (3, 3)
    strided: bool = False  # takes the block's stride
    dilation: int = 1
    relu: bool = True
    depthwise: bool = False


def last(width: float, dilation: int, depthwise: bool = False) -> Step:
    """The dilated convolution at the end of a branch."""
    return Step(width, dilation=dilation, relu=False, depthwise=depthwise)


POINT = (1, 1)
Branches = tuple[tuple[Step, ...], ...]


def first_map_branches(depthwise: bool) -> Branches:
    """On the first map (RFB-s): like the population of small fields, with 1x3 and 3x1 convolutions."""
    quarter, eighth = 1 / 4, 1 / 8
    return (
        (Step(quarter, POINT), last(quarter, 1, depthwise)),
        (Step(quarter, POINT), Step(quarter, (3, 1)), last(quarter, 3, depthwise)),
        (Step(quarter, POINT), Step(quarter, (1, 3)), last(quarter, 3, depthwise)),
        (
            Step(eighth, POINT),
            Step(3 / 16, (1, 3)),
            Step(quarter, (3, 1)),
            last(quarter, 5, depthwise),
        ),
    )


VGG_BRANCHES: Branches = (
    (Step(1 / 4, POINT, strided=True), last(1 / 4, 2)),
    (Step(1 / 8, POINT), Step(1 / 4, strided=True), last(1 / 4, 3)),
    (Step(1 / 8, POINT), Step(3 / 16), Step(1 / 4, strided=True), last(1 / 4, 5)),
)
MOBILE_BRANCHES: Branches = (
    (
        Step(1 / 8, POINT),
        Step(3 / 16, (1, 3)),
        Step(3 / 16, (3, 1), strided=True),
        last(3 / 16, 3, True),
    ),
    (Step(1 / 8, POINT), Step(3 / 16), Step(3 / 16, strided=True), last(3 / 16, 5, True)),
)


class ConvNorm(nn.Sequential):
    """A convolution that keeps the size of the map but for its stride, batch norm, and ReLU unless told otherwise."""

    def __init__(
        self,
        channels: int,
        width: int,
        kernel: Kernel,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        relu: bool = True,
        padded: bool = True,
    ) -> None:
        padding = (dilation * (kernel[0] // 2), dilation * (kernel[1] // 2)) if padded else (0, 0)
        conv = nn.Conv2d(channels, width, kernel, stride, padding, dilation, groups, bias=False)
        super().__init__(
            conv, nn.BatchNorm2d(width, momentum=0.01), *([nn.ReLU(inplace=True)] if relu else [])
        )


def branch(channels: int, steps: Sequence[Step], stride: int) -> nn.Sequential:
    widths = (channels, *(int(channels * step.width) for step in steps))
    return nn.Sequential(
        *(
            ConvNorm(
                before,
                width,
                step.kernel,
                stride if step.strided else 1,
                step.dilation,
                width if step.depthwise else 1,
                step.relu,
            )
            for step, before, width in zip(steps, widths, widths[1:], strict=False)
        )
    )


class ReceptiveFieldBlock(nn.Module):
    """Branches side by side, joined by a pointwise convolution and added to the (projected) map."""

    def __init__(
        self, channels: int, depth: int, branches: Branches, stride: int = 1, projected: bool = True
    ) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branch(channels, steps, stride) for steps in branches)
        joined = sum(int(channels * steps[-1].width) for steps in branches)
        self.join = ConvNorm(joined, depth, POINT, relu=False)
        self.shortcut = (
            ConvNorm(channels, depth, POINT, stride, relu=False) if projected else nn.Identity()
        )
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, C, H, W). Returns (N, depth, H/stride, W/stride)."""
        return self.relu(
            self.join(torch.cat([b(x) for b in self.branches], dim=1)) + self.shortcut(x)
        )


def small_extra(channels: int, inner: int, depth: int, padded: bool) -> nn.Sequential:
    """A smaller map: pointwise, then 3x3; padded with stride 2, or not padded with stride 1."""
    reduce = ConvNorm(channels, inner, POINT)
    return nn.Sequential(
        reduce, ConvNorm(inner, depth, (3, 3), stride=2 if padded else 1, padded=padded)
    )


class RFBNeck(nn.Module):
    """The maps of the predictors: a block on the first source, `between` on the second, then smaller maps.

    sources: the keys of the two maps, the larger first.
    """

    def __init__(
        self,
        sources: Sequence[str],
        first: nn.Module,
        between: nn.Module,
        extras: Sequence[nn.Module],
        channels: Sequence[int],
    ) -> None:
        super().__init__()
        self.sources, self.root = tuple(sources), sources[-1]
        self.first, self.between, self.extras = first, between, nn.ModuleList(extras)
        self.out_channels = tuple(channels)

    def forward(self, maps: Mapping[str, Tensor]) -> list[Tensor]:
        """maps: (N, C, H, W) by key. Returns one map for each predictor."""
        large, small = (maps[key] for key in self.sources)
        return [
            self.first(large),
            *accumulate(self.extras, lambda x, extra: extra(x), initial=self.between(small)),
        ]


def vgg_neck(row: Configuration, keys: Sequence[str], channels: Sequence[int]) -> RFBNeck:
    large, small = channels
    extras = [
        ReceptiveFieldBlock(small, 512, VGG_BRANCHES, stride=2),
        ReceptiveFieldBlock(512, 256, VGG_BRANCHES, stride=2),
        small_extra(256, 128, 256, padded=False),
        small_extra(256, 128, 256, padded=False),
    ]
    first = ReceptiveFieldBlock(large, large, first_map_branches(depthwise=False))
    between = ReceptiveFieldBlock(small, small, VGG_BRANCHES)
    return RFBNeck(keys, first, between, extras, (large, small, *row.depths))


def mobile_neck(row: Configuration, keys: Sequence[str], channels: Sequence[int]) -> RFBNeck:
    large, small = channels
    extras = [
        ReceptiveFieldBlock(small, 512, MOBILE_BRANCHES, stride=2),
        small_extra(512, 128, 256, padded=True),
        small_extra(256, 128, 256, padded=True),
        small_extra(256, 64, 128, padded=True),
    ]
    first = ReceptiveFieldBlock(large, large, first_map_branches(depthwise=True), projected=False)
    return RFBNeck(keys, first, nn.Identity(), extras, (large, small, *row.depths))
