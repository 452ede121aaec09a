"""What stands between the backbone's maps and the predictors: a scale on the first map, and smaller maps."""

from collections.abc import Mapping, Sequence
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.ssd.configurations import Configuration, Extra


class L2Norm(nn.Module):
    """Scale each cell's channel vector to a learned length (ParseNet, Liu et al. 2015)."""

    def __init__(self, channels: int, length: float = 20) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels,), float(length)))

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, C, H, W). Returns (N, C, H, W)."""
        return F.normalize(x, dim=1) * self.weight[:, None, None]


def smaller(
    channels: int, depth: int, kind: Extra, groups: int = 1, bias: bool = True
) -> nn.Conv2d:
    """An extra's 3x3 convolution."""
    stride, padding = 1 if kind == " " else 2, 1 if kind == "S" else 0
    return nn.Conv2d(channels, depth, 3, stride, padding, groups=groups, bias=bias)


class SeparableExtra(nn.Sequential):
    """A smaller map as MobileNet makes it: pointwise, depthwise, pointwise, each with batch norm."""

    def __init__(self, channels: int, depth: int, kind: Extra) -> None:
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
        """x: (N, C, H, W). Returns (N, depth, about H/2, about W/2)."""
        return F.relu(super().forward(x))


class PlainExtra(nn.Module):
    """A smaller map as SSD makes it on VGG: half the depth pointwise, then 3x3, with biases."""

    def __init__(self, channels: int, depth: int, kind: Extra) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, depth // 2, 1)
        self.conv = smaller(depth // 2, depth, kind)

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, C, H, W). Returns (N, depth, H', W')."""
        return F.relu(self.conv(F.relu(self.reduce(x))))


class Neck(nn.Module):
    """The backbone's maps and the extras', in the order of the predictors; the first is scaled.

    sources: the keys of the maps that predictors read as they are, largest first.
    root: the key of the map that the extras start from.
    joined: keys of maps concatenated, for its predictor alone, to the first extra's map.
    """

    def __init__(
        self,
        channels: Mapping[str, int],
        sources: Sequence[str],
        root: str,
        joined: Sequence[str],
        row: Configuration,
    ) -> None:
        super().__init__()
        self.sources, self.root, self.joined = tuple(sources), root, tuple(joined)
        self.norm = L2Norm(channels[sources[0]])
        make = SeparableExtra if row.separable else PlainExtra
        inputs = (channels[root], *row.depths)
        self.extras = nn.ModuleList(
            make(c, d, k) for c, d, k in zip(inputs, row.depths, row.extras, strict=False)
        )
        widened = [
            d + sum(channels[key] for key in joined) * (i == 0) for i, d in enumerate(row.depths)
        ]
        self.out_channels = (*(channels[key] for key in sources), *widened)

    def forward(self, maps: Mapping[str, Tensor]) -> list[Tensor]:
        """maps: (N, C, H, W) by key. Returns one map for each predictor."""
        first, *others = (maps[key] for key in self.sources)
        extras = list(accumulate(self.extras, lambda x, extra: extra(x), initial=maps[self.root]))[
            1:
        ]
        if self.joined:
            extras[0] = torch.cat([extras[0], *(maps[key] for key in self.joined)], dim=1)
        return [self.norm(first), *others, *extras]


def neck_for(row: Configuration, keys: Sequence[str], channels: Sequence[int]) -> Neck:
    """The neck of a configuration on maps with those keys, as `ss.features` and `ss.dual_path` order them."""
    own, more = list(keys[: len(row.small)]), list(keys[len(row.small) :])
    split = row.combine == "split" and bool(row.large)
    root = more[-1] if split else own[-1]
    return Neck(
        dict(zip(keys, channels, strict=True)), own, root, more if row.widen_third else [], row
    )
