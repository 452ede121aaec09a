"""RFB-Net (Liu, Huang and Wang, ECCV 2018), which the paper compares with: receptive field blocks.

A block sees its map through several branches of growing dilation. Widths and dilations are those of
the authors' published networks for 300 pixels on VGG-16 and on MobileNet v1.
"""

from collections.abc import Mapping, Sequence
from functools import partial

from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

from examples.ssd.configurations import Configuration
from examples.ssd.neck import Concat, Residual, chained

conv = partial(Conv2dNormActivation, norm_layer=partial(nn.BatchNorm2d, momentum=0.01))
linear = partial(conv, activation_layer=None)
TALL, WIDE = (3, 1), (1, 3)


def small_branches(channels: int, depthwise: bool) -> Concat:
    """Return the branches on the first map (RFB-s), as many channels as it has."""
    wide, narrow, middle = channels // 4, channels // 8, channels * 3 // 16
    point = partial(conv, channels, wide, 1)
    last = partial(linear, wide, wide, 3, groups=wide if depthwise else 1)
    longest = (conv(channels, narrow, 1), conv(narrow, middle, WIDE), conv(middle, wide, TALL))
    return Concat(
        [
            nn.Sequential(point(), last(dilation=1)),
            nn.Sequential(point(), conv(wide, wide, TALL), last(dilation=3)),
            nn.Sequential(point(), conv(wide, wide, WIDE), last(dilation=3)),
            nn.Sequential(*longest, last(dilation=5)),
        ]
    )


def vgg_branches(channels: int, stride: int) -> Concat:
    """Return the branches on VGG's later maps, three quarters of the channels."""
    wide, narrow, middle = channels // 4, channels // 8, channels * 3 // 16
    last = partial(linear, wide, wide, 3)
    shorter = (conv(channels, narrow, 1), conv(narrow, wide, 3, stride))
    longest = (conv(channels, narrow, 1), conv(narrow, middle, 3), conv(middle, wide, 3, stride))
    return Concat(
        [
            nn.Sequential(conv(channels, wide, 1, stride), last(dilation=2)),
            nn.Sequential(*shorter, last(dilation=3)),
            nn.Sequential(*longest, last(dilation=5)),
        ]
    )


def mobile_branches(channels: int, stride: int) -> Concat:
    """Return the branches on MobileNet's last map, three eighths of the channels."""
    narrow, middle = channels // 8, channels * 3 // 16
    last = partial(linear, middle, middle, 3, groups=middle)
    flat = (conv(narrow, middle, WIDE), conv(middle, middle, TALL, stride))
    square = (conv(narrow, middle, 3), conv(middle, middle, 3, stride))
    return Concat(
        [
            nn.Sequential(conv(channels, narrow, 1), *flat, last(dilation=3)),
            nn.Sequential(conv(channels, narrow, 1), *square, last(dilation=5)),
        ]
    )


def block(channels: int, depth: int, stride: int = 1, mobile: bool = False) -> Residual:
    """Return the branches of a later map, joined, beside a projection of the map."""
    branches = mobile_branches(channels, stride) if mobile else vgg_branches(channels, stride)
    join = linear(channels * 3 // (8 if mobile else 4), depth, 1)
    return Residual(nn.Sequential(branches, join), linear(channels, depth, 1, stride))


def extra(channels: int, inner: int, depth: int, stride: int = 1) -> nn.Sequential:
    """Return a smaller map: half as large with stride 2, else two cells smaller for want of padding."""
    padding = 1 if stride == 2 else 0
    return nn.Sequential(conv(channels, inner, 1), conv(inner, depth, 3, stride, padding))


class RFBNeck(nn.Module):
    """A block on the first map, on VGG one on the second, then smaller maps."""

    def __init__(self, row: Configuration, keys: Sequence[str], channels: Sequence[int]) -> None:
        super().__init__()
        large, small = channels
        self.keys, vgg = keys, row.neck == "rfb"
        self.out_channels = (large, small, *row.depths)
        seen = nn.Sequential(small_branches(large, depthwise=not vgg), linear(large, large, 1))
        self.first = Residual(seen, linear(large, large, 1) if vgg else nn.Identity())
        self.between = block(small, small) if vgg else nn.Identity()
        if vgg:
            extras: list[nn.Module] = [block(small, 512, 2), block(512, 256, 2)]
            extras += [extra(256, 128, 256), extra(256, 128, 256)]
        else:
            extras = [block(small, 512, 2, mobile=True), extra(512, 128, 256, 2)]
            extras += [extra(256, 128, 256, 2), extra(256, 64, 128, 2)]
        self.extras = nn.ModuleList(extras)

    def forward(self, maps: Mapping[str, Tensor]) -> list[Tensor]:
        """maps: (N, C, H, W) by key. Returns one map for each predictor."""
        large, small = (maps[key] for key in self.keys)
        return [self.first(large), *chained(self.extras, self.between(small))]
