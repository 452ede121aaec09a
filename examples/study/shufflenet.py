"""ShuffleNetV2 0.5x (Ma et al., ECCV 2018) as its authors write it, in the keys of FastestDet's backbone (BSD-3).

torchvision's halves and mixes the channels in another order: weights of one do not fit the other.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def conv(
    inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]


class Unit(nn.Module):
    """ShuffleNetV2's: half of the channels pass, half are worked on; with a stride, all go both ways."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        middle = outputs // 2
        worked = inputs if stride == 2 else inputs // 2
        self.stride = stride
        self.branch_main = nn.Sequential(
            *(*conv(worked, middle), nn.ReLU()),
            *conv(middle, middle, 3, stride, groups=middle),
            *(*conv(middle, outputs - worked), nn.ReLU()),
        )
        if stride == 2:
            self.branch_proj = nn.Sequential(
                *conv(inputs, inputs, 3, stride, groups=inputs), *(*conv(inputs, inputs), nn.ReLU())
            )

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == 2:
            return torch.cat([self.branch_proj(x), self.branch_main(x)], 1)
        return torch.cat([x[:, ::2], self.branch_main(x[:, 1::2])], 1)


class ShuffleNetV2(nn.Module):
    """images (N, 3, H, W) -> the maps of reductions 8, 16 and 32."""

    def __init__(self) -> None:
        super().__init__()
        self.first_conv = nn.Sequential(*conv(3, 24, 3, 2), nn.ReLU())
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.stage2, self.stage3, self.stage4 = (
            stage(24, 48, 4),
            stage(48, 96, 8),
            stage(96, 192, 4),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        first = self.stage2(self.maxpool(self.first_conv(x)))
        second = self.stage3(first)
        return first, second, self.stage4(second)


def stage(inputs: int, outputs: int, units: int) -> nn.Sequential:
    return nn.Sequential(
        Unit(inputs, outputs, 2), *(Unit(outputs, outputs, 1) for _ in range(units - 1))
    )


def for_rgb(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights that were learned from BGR, as all of the authors' were, for a network that is given RGB."""
    first = "first_conv.0.weight"
    return {k: v.flip(1) if k == first else v for k, v in state.items()}
