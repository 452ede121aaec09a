"""The stock COCO detector as one that `examples.ssd` trains: its features, extras, heads and anchors under any surgery.

Before the first step a row finds what the detector finds without training: the boxes that its predictors were trained
with are exchanged for the row's own, and the predictors with them, so that they say the same boxes.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import cast

import torch
import torch.nn.functional as F
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn
from torchvision.ops import sigmoid_focal_loss

import stridesurgery as ss
from examples.ssd.boxes import encode
from examples.ssd.heads import Heads
from examples.ssd.loss import Losses, match
from examples.ssd.model import SSD
from examples.ssd.stock import HIGH_TAP, INPUT_SIZE, LOW_TAP, StockSSD
from examples.ssd.stock_boxes import (
    SCALES,
    anchor_sizes,
    anchors,
    learned_centres,
    six_layers,
    usual_centres,
)

FINE = (
    0.1,
    0.2,
    0.35,
    0.5,
    0.65,
    0.8,
    0.95,
)  # the paper's rule: a map of a step has the boxes of that step
SPLIT = (0.1, 0.2, 0.5, 0.65, 0.8, 0.95, 1.0)  # the maps after the second are those of the original
_SIDE = 5.0  # an offset of 1 is a fifth of a factor e, see `stock_boxes.decode`
_TO_SSD = (1, 0, 3, 2)  # TensorFlow's rows and columns as x and y


@dataclass(frozen=True)
class Row:
    """One network to train."""

    name: str
    surgery: str | None = None
    size: int = INPUT_SIZE  # pixels
    scales: tuple[float, ...] = SCALES  # of the boxes, shares of the image
    finer_maps: int = (
        0  # how many of the six maps have twice the cells that the predictors were trained on
    )
    combine: str | None = None  # two paths: "split" or "concat"
    padded: bool = True  # whether the last extra looks beyond the border; not: the paper's Fmap1


ROWS: Mapping[str, Row] = {
    row.name: row
    for row in (
        Row("base"),
        Row("Size600", size=2 * INPUT_SIZE, scales=FINE, finer_maps=6),
        Row("S1L6", "S1L6", scales=FINE, finer_maps=6),
        Row("S1L4", "S1L4", scales=FINE, finer_maps=6),
        Row("S1L0", "S1L0", scales=FINE, finer_maps=6),
        Row("S1L0-Fmap1", "S1L0", scales=FINE, finer_maps=6, padded=False),
        Row("S1L0-Split", "S1L0", scales=SPLIT, finer_maps=2, combine="split"),
        Row("S1L0-Concat", "S1L0", scales=FINE, finer_maps=6, combine="concat"),
    )
}


class Extras(nn.Module):
    """From the backbone's maps to the six that the heads read."""

    def __init__(self, extras: nn.ModuleList, root: str | None) -> None:
        super().__init__()
        self.extras, self.root = extras, root

    def forward(self, maps: Mapping[str, Tensor]) -> list[Tensor]:
        """maps: (N, C, H, W) by key: for small objects the first two. The extras start from `root`, or the second."""
        low, high, *_ = maps.values()
        start = high if self.root is None else maps[self.root]
        return [
            low,
            high,
            *list(accumulate(self.extras, lambda x, extra: extra(x), initial=start))[1:],
        ]


class StockHeads(nn.Module):
    """The heads as `examples.ssd` reads them, for the categories that are asked for."""

    def __init__(self, heads: nn.ModuleList, category_ids: Sequence[int]) -> None:
        super().__init__()
        self.heads, self.category_ids = heads, list(category_ids)
        self.classes = 1 + len(category_ids)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """maps: (N, C, H, W). Returns offsets (N, P, 4) and logits (N, P, classes - 1): the background has none."""
        pairs = list(zip(self.heads, maps, strict=True))
        offsets = torch.cat(
            [_by_anchor(head.get_submodule("box")(m), 4) for head, m in pairs], dim=1
        )
        scores = torch.cat(
            [_by_anchor(head.get_submodule("cls")(m), 91) for head, m in pairs], dim=1
        )
        return offsets[..., _TO_SSD], scores[..., self.category_ids]


class StockDetector(SSD):
    """A detector of one sigmoid a category, trained as it was trained before.

    The focal loss (Lin et al. 2017, alpha 0.75, gamma 2) over all priors, and offsets that count a quarter, are those
    of TensorFlow's `ssd_mobilenet_v1_0.75_depth_300x300_coco14_sync.config`.
    """

    def scores(self, logits: Tensor) -> Tensor:
        return logits.float().sigmoid()

    def losses(
        self, offsets: Tensor, logits: Tensor, boxes: Tensor, labels: Tensor, counts: Sequence[int]
    ) -> Losses:
        matched = match(self.priors, boxes, counts)
        positive = matched >= 0
        rows = matched[positive]
        targets = torch.zeros_like(logits, dtype=torch.float)
        targets[positive] = F.one_hot(labels[rows] - 1, logits.shape[2]).float()
        wanted = encode(boxes[rows], self.priors.expand(len(matched), -1, -1)[positive])
        return Losses(
            boxes=F.smooth_l1_loss(offsets.float()[positive], wanted, reduction="sum") / 4,
            classes=sigmoid_focal_loss(
                logits.float(), targets, alpha=0.75, gamma=2, reduction="sum"
            ),
            positives=positive.sum(),
        )


def _by_anchor(x: Tensor, values: int) -> Tensor:
    """(N, anchors * values, H, W) to (N, H * W * anchors, values)."""
    return x.permute(0, 2, 3, 1).reshape(len(x), -1, values)


def build(row: Row, stock: StockSSD, category_ids: Sequence[int]) -> StockDetector:
    """The network of a row with the stock detector's weights; `stock` is left alone."""
    net = copy.deepcopy(stock).requires_grad_(True)
    places = _places(row, net)
    features = _features(row, net)
    if row.combine == "concat":
        more = _channels(features)[1] - _inputs(net.heads[1])
        for conv in (net.extras[0].get_submodule("reduce"), *net.heads[1].children()):
            _widen(cast(nn.Conv2d, conv), more)
    if not row.padded:
        _unpad(cast(nn.Conv2d, net.extras[-1].get_submodule("conv")), net.extras[-1])
    for level, head in enumerate(net.heads):
        _rebase(cast(nn.Conv2d, head.get_submodule("box")), level, row)
    root = f"large.{HIGH_TAP}" if row.combine == "split" else None
    heads = cast(Heads, StockHeads(net.heads, category_ids))
    ssd = StockDetector(features, Extras(net.extras, root), heads, row.size)
    ssd.mean.fill_(128)
    ssd.std.fill_(128)
    ssd.priors = places[:, _TO_SSD]  # not clipped: the detector was trained so
    return ssd


def _features(row: Row, net: StockSSD) -> nn.Module:
    taps = (LOW_TAP, HIGH_TAP)
    if row.combine == "split":
        chosen = {"small": taps, "large": (HIGH_TAP,)}
        return ss.dual_path(net.backbone, row.surgery, taps=chosen, input_size=row.size)
    if row.combine == "concat":
        return ss.dual_path(
            net.backbone, row.surgery, taps=taps, combine="concat", input_size=row.size
        )
    operated = (
        ss.eliminate(net.backbone, row.surgery, input_size=row.size)
        if row.surgery
        else net.backbone
    )
    return ss.features(operated, taps, input_size=row.size)


def _channels(features: nn.Module) -> list[int]:
    return cast(list[int], features.feature_info.channels())  # type: ignore[operator, union-attr]


def _inputs(head: nn.Module) -> int:
    return cast(nn.Conv2d, head.get_submodule("box")).in_channels


def _places(row: Row, net: StockSSD) -> Tensor:
    """The anchors (P, 4): on the finer maps where `stock_boxes.learned_centres` puts them, else the predictors' own."""
    trained = six_layers(net, INPUT_SIZE)
    finer = copy.copy(net)
    if row.surgery is not None:
        finer = copy.deepcopy(net)
        finer.backbone = ss.eliminate(net.backbone, row.surgery, input_size=row.size)  # type: ignore[assignment]
    if not row.padded:
        _unpad(cast(nn.Conv2d, finer.extras[-1].get_submodule("conv")), finer.extras[-1])
    layers = six_layers(finer, row.size)
    learned = learned_centres(layers, row.size, trained, INPUT_SIZE)[: row.finer_maps]
    return anchors([*learned, *usual_centres(trained)[row.finer_maps :]], scales=row.scales)


def _rebase(box: nn.Conv2d, level: int, row: Row) -> None:
    """Change what a box predictor says so that it means the same boxes from the row's anchors.

    On a map with twice the cells it takes objects for twice as large: what it says is meant from anchors half as large.
    """
    meant = anchor_sizes(level) * (
        0.5 if level < row.finer_maps else 1.0
    )  # (anchors, 2): height, width
    factor = meant / anchor_sizes(level, row.scales)
    weight, bias = box.weight.data.unflatten(0, (-1, 4)), box.bias.data.view(-1, 4)  # type: ignore[union-attr]
    weight[:, :2] *= factor[:, :, None, None, None]
    bias[:, :2] *= factor
    bias[:, 2:] += _SIDE * factor.log()


def _widen(conv: nn.Conv2d, more: int) -> None:
    """Further input channels, which count nothing before they are trained."""
    out, _, *kernel = conv.weight.shape
    conv.weight = nn.Parameter(
        torch.cat([conv.weight.data, conv.weight.new_zeros(out, more, *kernel)], dim=1)
    )
    conv.in_channels += more


def _unpad(conv: nn.Conv2d, block: nn.Module) -> None:
    """No padding instead of "same": 3 cells become 1."""
    assert isinstance(conv, Conv2dSame)
    plain = nn.Conv2d(conv.in_channels, conv.out_channels, 3, stride=2)
    plain.load_state_dict(conv.state_dict())
    block.conv = plain
