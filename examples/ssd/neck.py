"""The neck between the backbone's maps and the predictors: a scale on the first, smaller maps.

Every neck takes the backbone's maps by key, and has the `out_channels` of the maps that it gives.
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.ssd.configurations import Configuration


class L2Norm(nn.Module):
    """Scale each cell's channel vector to a learned length (ParseNet, Liu et al. 2015)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels,), 20.0))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=1) * self.weight[:, None, None]


def smaller(channels: int, depth: int, kind: str, groups: int = 1, bias: bool = True) -> nn.Conv2d:
    """Return an extra's 3x3 convolution. kind: as in `Configuration.extras`."""
    stride, padding = 1 if kind == " " else 2, 1 if kind == "S" else 0
    return nn.Conv2d(channels, depth, 3, stride, padding, groups=groups, bias=bias)


class SeparableExtra(nn.Sequential):
    """A smaller map as MobileNet makes it: pointwise, depthwise, pointwise, each with batch norm."""

    def __init__(self, channels: int, depth: int, kind: str) -> None:
        super().__init__(
            nn.Conv2d(channels, depth, 1, bias=False),
            nn.BatchNorm2d(depth),
            nn.ReLU6(inplace=True),
            smaller(depth, depth, kind, groups=depth, bias=False),
            nn.BatchNorm2d(depth),
            nn.ReLU6(inplace=True),
            nn.Conv2d(depth, depth, 1, bias=False),
            nn.BatchNorm2d(depth),
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x))


class PlainExtra(nn.Module):
    """A smaller map as SSD makes it on VGG: half the depth pointwise, then 3x3, with biases."""

    def __init__(self, channels: int, depth: int, kind: str) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, depth // 2, 1)
        self.conv = smaller(depth // 2, depth, kind)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(F.relu(self.reduce(x))))


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
        make = SeparableExtra if row.separable else PlainExtra
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
    """Return a map, and what each of some modules makes of the one before."""
    return list(accumulate(extras, lambda x, extra: extra(x), initial=root))
