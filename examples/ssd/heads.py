"""The predictors: for every box of every cell four offsets and a score for each class."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Heads(nn.Module):
    """One convolution for the offsets and one for the classes on each map, 3x3 with biases."""

    def __init__(
        self, channels: Sequence[int], boxes: Sequence[int], classes: int, kernel: int = 3
    ) -> None:
        super().__init__()
        self.classes = classes  # with the background
        pairs = list(zip(channels, boxes, strict=True))
        self.offsets = nn.ModuleList(
            nn.Conv2d(c, b * 4, kernel, padding=kernel // 2) for c, b in pairs
        )
        self.scores = nn.ModuleList(
            nn.Conv2d(c, b * classes, kernel, padding=kernel // 2) for c, b in pairs
        )

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """maps: (N, C, H, W) each. Returns offsets (N, P, 4) and logits (N, P, classes), P over maps, cells, boxes."""
        offsets = [by_box(conv(x), 4) for conv, x in zip(self.offsets, maps, strict=True)]
        scores = [by_box(conv(x), self.classes) for conv, x in zip(self.scores, maps, strict=True)]
        return torch.cat(offsets, dim=1), torch.cat(scores, dim=1)


def by_box(x: Tensor, values: int) -> Tensor:
    """x: (N, boxes * values, H, W). Returns (N, H * W * boxes, values): row by row, the boxes of a cell together."""
    return x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, values)
