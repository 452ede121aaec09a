"""A COCO-trained SSD on MobileNet v1, rebuilt from the layer table beside its weights.

The network is TensorFlow's: "same" padding, ReLU6, batch norm folded into the convolutions, 300x300 pixels. Its
anchors, and what becomes of its predictions, are in stock_boxes.py.
"""

import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn

NAME = "ssd_mobilenet_v1_075_coco_300"
INPUT_SIZE = 300  # pixels
CLASSES = 91  # sigmoid outputs of an anchor; number k is COCO's category id k, 0 the background
LOW_TAP, HIGH_TAP = (
    11,
    13,
)  # the backbone's layers whose maps are predicted from; the other maps are the extras'


@dataclass(frozen=True)
class Predictions:
    """What the heads say, over all anchors A of the six maps: map by map, row by row, the anchors of a cell last."""

    boxes: Tensor  # (N, A, 4): offsets from the anchors, see `stock_boxes.decode`
    scores: Tensor  # (N, A, 90): in 0..1; column k is COCO's category id k + 1


class StockSSD(nn.Module):
    """The detector in three parts: `backbone` is an image's way to one map, `extras` and `heads` come after it."""

    backbone: nn.Sequential  # block i holds layer i
    extras: nn.ModuleList
    heads: nn.ModuleList

    def __init__(self, table: Sequence[Mapping[str, Any]]) -> None:
        super().__init__()
        rows = [(str(row["name"]).split("."), row) for row in table]
        self.backbone = nn.Sequential(*_blocks(rows, "backbone"))
        self.extras = nn.ModuleList(_blocks(rows, "extras"))
        self.heads = nn.ModuleList(
            nn.ModuleDict(dict(block.named_children())) for block in _blocks(rows, "heads")
        )

    def six_maps(self, low: Tensor, high: Tensor) -> list[Tensor]:
        """The maps that the heads read, from the backbone's maps at LOW_TAP and HIGH_TAP, each (N, C, H, W)."""
        maps = [low, high]
        for block in self.extras:
            maps.append(block(maps[-1]))
        return maps

    def predict(self, low: Tensor, high: Tensor) -> Predictions:
        """The heads' predictions from the backbone's maps at LOW_TAP and HIGH_TAP, each (N, C, H, W)."""
        return self.predict_from(self.six_maps(low, high))

    def predict_from(self, maps: Sequence[Tensor]) -> Predictions:
        """The heads' predictions from their six maps, each (N, C, H, W)."""
        pairs = list(zip(self.heads, maps, strict=True))
        boxes = torch.cat([_by_anchor(head.get_submodule("box")(m), 4) for head, m in pairs], dim=1)
        scores = torch.cat(
            [_by_anchor(head.get_submodule("cls")(m), CLASSES) for head, m in pairs], dim=1
        ).sigmoid()
        return Predictions(boxes, scores[..., 1:])

    def forward(self, images: Tensor) -> Predictions:
        """Images (N, 3, H, W) as `prepare` makes them."""
        low = self.backbone[: LOW_TAP + 1](images)
        return self.predict(low, self.backbone[LOW_TAP + 1 :](low))


def load_stock(folder: str | PathLike[str]) -> StockSSD:
    """The detector from the layer table and the weights in a folder, in eval mode.

    Raises:
        ValueError: the table holds something that this file does not build.
    """
    table = json.loads((Path(folder) / f"{NAME}.json").read_text(encoding="utf-8"))
    state = load_file(Path(folder) / f"{NAME}.safetensors")
    net = StockSSD(table["layers"])
    # The anchors of the 8-bit model, rounded to steps of 2 pixels: `stock_boxes.anchors` gives the exact ones.
    state.pop("anchors_tflite", None)
    net.load_state_dict(state)
    return net.eval().requires_grad_(False)


def prepare(pixels: Tensor) -> Tensor:
    """Pixels (N, 3, H, W), RGB in 0..255, to what the network was trained on."""
    return (pixels.float() - 128) / 128


# ---- building from the table


def _blocks(
    rows: Sequence[tuple[Sequence[str], Mapping[str, Any]]], part: str
) -> list[nn.Sequential]:
    """The blocks of one part; the modules of each keep the table's names, so that the weights' keys fit."""
    blocks: OrderedDict[str, OrderedDict[str, nn.Module]] = OrderedDict()
    for (owner, number, name), row in rows:
        if owner == part:
            blocks.setdefault(number, OrderedDict()).update(_layer(name, row))
    return [nn.Sequential(block) for block in blocks.values()]


def _layer(name: str, row: Mapping[str, Any]) -> dict[str, nn.Module]:
    """The modules of one row of the table: a convolution and the activation after it."""
    if row["padding"] != "SAME" or row["activation"] not in ("relu6", None):
        raise ValueError(
            f"{row['name']}: cannot build padding {row['padding']}, activation {row['activation']}"
        )
    out_channels, per_group, kernel, _ = row["shape"]
    # "same" padding adds nothing around one cell
    convolution = nn.Conv2d if kernel == 1 else Conv2dSame
    conv = convolution(
        per_group * row["groups"], out_channels, kernel, stride=row["stride"], groups=row["groups"]
    )
    return {name: conv} if row["activation"] is None else {name: conv, f"{name}_act": nn.ReLU6()}


def _by_anchor(x: Tensor, values: int) -> Tensor:
    """A head's map (N, anchors * values, H, W) to (N, H * W * anchors, values)."""
    return x.permute(0, 2, 3, 1).reshape(len(x), -1, values)
