"""The stock detector with other strides: by hand, by the library, on two paths; and photographs as it takes them."""

import copy
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import stridesurgery as ss
from examples.study.stock import HIGH_TAP, INPUT_SIZE, LOW_TAP, Predictions, StockSSD, prepare


def with_stride_patched(net: StockSSD, layers: Sequence[int] = (0,)) -> StockSSD:
    """What one does without a library."""
    patched = copy.deepcopy(net)
    for conv in (
        m for layer in layers for m in patched.backbone[layer].modules() if isinstance(m, nn.Conv2d)
    ):
        conv.stride = (1, 1)
    return patched


def with_stride_eliminated(net: StockSSD, surgery: str = "S1L0") -> StockSSD:
    """The detector on an operated backbone."""
    operated = copy.deepcopy(net)
    operated.backbone = ss.eliminate(net.backbone, surgery, input_size=INPUT_SIZE)  # type: ignore[assignment]
    return operated


class TwoPaths(nn.Module):
    """The detector on a dual-path backbone: the predictions of the small-object path and of the large-object path."""

    def __init__(self, net: StockSSD, surgery: str = "S1L0") -> None:
        super().__init__()
        self.net = net
        self.backbone = ss.dual_path(
            net.backbone, surgery, taps=(LOW_TAP, HIGH_TAP), input_size=INPUT_SIZE
        )

    def forward(self, images: Tensor) -> tuple[Predictions, Predictions]:
        """Images (N, 3, H, W) as `prepare` makes them; both predictions are of the same heads."""
        maps = self.backbone(images)
        small, large = (
            [maps[f"{path}.{tap}"] for tap in (LOW_TAP, HIGH_TAP)] for path in ("small", "large")
        )
        return self.net.predict(*small), self.net.predict(*large)


def resized(photograph: Image.Image, size: int) -> Image.Image:
    return photograph.resize((size, size), Image.Resampling.BILINEAR)


def enlarged(photograph: Image.Image, size: int) -> Image.Image:
    """Of `size` pixels, but no more is known of it than the network is given; bicubic does better than bilinear."""
    return resized(photograph, INPUT_SIZE).resize((size, size), Image.Resampling.BICUBIC)


def as_input(image: Image.Image) -> Tensor:
    """An image of H x W pixels as the network's (1, 3, H, W)."""
    return prepare(torch.tensor(np.asarray(image)).permute(2, 0, 1)[None])
