"""Operator modules at a fraction of their stride, where the plain module cannot express it.

Each is a subclass of the module it stands in for, holding the same parameters under the same names;
`registry` turns a module into one of these by changing its class, so that hooks, state_dict and
references stay.
"""

from typing import Any

from timm.layers import BlurPool2d, ScaledStdConv2d, ScaledStdConv2dSame, StdConv2d
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.space_to_depth import SpaceToDepth
from timm.layers.std_conv import StdConv2dSame
from timm.models.swin_transformer import PatchMerging as SwinMerging
from timm.models.swin_transformer_v2 import PatchMerging as SwinV2Merging
from timm.models.swin_transformer_v2_cr import PatchMerging as SwinV2CrMerging
from torch import Tensor, nn
from torchvision.models.swin_transformer import PatchMerging as VisionSwinMerging
from torchvision.models.swin_transformer import PatchMergingV2 as VisionSwinV2Merging

from stridesurgery.ops import fine_functional
from stridesurgery.ops.window import Windows


class Windowed(nn.Module):
    """Holds the (rows, columns) windows; its parent operator is told to pad nothing."""

    windows: Windows

    def extra_repr(self) -> str:
        steps = tuple(w.step for w in self.windows)
        return f"{super().extra_repr()}, runs at stride {steps} padded by rule".removeprefix(", ")


class _FineConv(Windowed):
    pad_mode: str

    def forward(self, x: Tensor) -> Any:
        return super().forward(self.padded(x))  # type: ignore[misc]

    def padded(self, x: Tensor) -> Tensor:
        return fine_functional.pad(x, self.windows, mode=self.pad_mode)


class FineConv2d(_FineConv, nn.Conv2d):
    """`nn.Conv2d` at a fraction of its stride."""


class FineConv2dSame(_FineConv, Conv2dSame):
    """timm's `Conv2dSame` at a fraction of its stride, padded on the left as before."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.Conv2d.forward(self, self.padded(x))  # its own forward would pad once more


class FineStdConv2d(_FineConv, StdConv2d):
    """timm's `StdConv2d` at a fraction of its stride."""


class FineStdConv2dSame(_FineConv, StdConv2dSame):
    """timm's `StdConv2dSame` at a fraction of its stride."""


class FineScaledStdConv2d(_FineConv, ScaledStdConv2d):
    """timm's `ScaledStdConv2d` at a fraction of its stride."""


class FineScaledStdConv2dSame(_FineConv, ScaledStdConv2dSame):
    """timm's `ScaledStdConv2dSame` at a fraction of its stride."""


class FineMaxPool2d(Windowed, nn.MaxPool2d):
    """A max-pool at a fraction of its stride, or removed."""

    def forward(self, x: Tensor) -> Tensor:
        return fine_functional.max_pool2d(x, self.windows)


class FineAvgPool2d(Windowed, nn.AvgPool2d):
    """An average-pool at a fraction of its stride, or removed."""

    def forward(self, x: Tensor) -> Tensor:
        return fine_functional.avg_pool2d(
            x, self.windows, self.count_include_pad, self.divisor_override
        )


class FineBlurPool2d(Windowed, BlurPool2d):
    """timm's `BlurPool2d` at a fraction of its stride, or removed."""

    filt: Tensor
    pad_mode: str

    def forward(self, x: Tensor) -> Tensor:
        return fine_functional.blur_pool2d(x, self.filt, self.windows, self.pad_mode)


class FineSpaceToDepth(Windowed, SpaceToDepth):
    """timm's `SpaceToDepth` at a fraction of its stride: overlapping blocks."""

    def forward(self, x: Tensor) -> Tensor:
        return fine_functional.space_to_depth(x, self.windows)


class FinePixelUnshuffle(Windowed, nn.PixelUnshuffle):
    """`nn.PixelUnshuffle` at a fraction of its stride: overlapping blocks."""

    def forward(self, x: Tensor) -> Tensor:
        return fine_functional.space_to_depth(x, self.windows, channels_first=True)


class FineSwinMerging(Windowed, SwinMerging):
    """timm Swin's patch merging at a fraction of its stride: overlapping 2 x 2 neighbourhoods."""

    norm: nn.Module
    reduction: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        return self.reduction(self.norm(fine_functional.merge_patches(x, self.windows)))


class FineSwinV2CrMerging(Windowed, SwinV2CrMerging):
    """timm Swin v2-CR's patch merging at a fraction of its stride."""

    norm: nn.Module
    reduction: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        return self.reduction(self.norm(fine_functional.merge_patches(x, self.windows)))


class FineSwinV2Merging(Windowed, SwinV2Merging):
    """timm Swin v2's patch merging at a fraction of its stride."""

    norm: nn.Module
    reduction: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.reduction(fine_functional.merge_patches(x, self.windows)))


class FineVisionSwinMerging(Windowed, VisionSwinMerging):
    """torchvision Swin's patch merging at a fraction of its stride."""

    norm: nn.Module
    reduction: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        return self.reduction(self.norm(fine_functional.merge_patches(x, self.windows)))


class FineVisionSwinV2Merging(Windowed, VisionSwinV2Merging):
    """torchvision Swin v2's patch merging at a fraction of its stride."""

    norm: nn.Module
    reduction: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.reduction(fine_functional.merge_patches(x, self.windows)))
