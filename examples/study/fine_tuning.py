"""The stock COCO detector under each surgery, to train on (`examples.study.trained coco`).

Before the first step a row finds what the detector finds without training: the boxes that its
predictors were trained with are exchanged for the row's own, and the predictors with them, so that
they say the same boxes.
"""

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

from torch import Tensor, nn

import stridesurgery as ss
from examples.study import stock
from examples.study.stock import SCALES, SIZE, TAPS, StockDetector
from stridesurgery.detection import GeometryBoxes, Stand, levels

# The paper's rule: a map of a step has the boxes of that step; split: the maps after the second are
# those of the original.
FINE = (0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95)
SPLIT = (0.1, 0.2, 0.5, 0.65, 0.8, 0.95, 1.0)
FINER = 2  # maps that a split network has finer
SIDE = 5.0  # an offset of 1 is a fifth of a factor e


class Row(NamedTuple):
    """One network to train."""

    surgery: str | None = None
    size: int = SIZE  # pixels
    scales: tuple[float, ...] = FINE  # of the boxes, shares of the image
    split: bool = False  # predictors on the maps of both paths


ROWS = {
    "base": Row(scales=SCALES),
    "Size600": Row(size=2 * SIZE),
    **{surgery: Row(surgery) for surgery in ("S1L6", "S1L4", "S1L0")},
    "S1L0-Split": Row("S1L0", scales=SPLIT, split=True),
}


def build(row: Row, parts: nn.ModuleDict, categories: Sequence[int]) -> StockDetector:
    """Return the network of a row with the stock detector's weights; `parts` are left alone."""
    parts = copy.deepcopy(parts)
    whole: Any = stock.at_size(parts, row.size)
    old, root = levels(stock.at_size(parts, SIZE).backbone, SIZE), None
    if row.surgery is not None:
        whole = ss.eliminate(whole, row.surgery, centres="carried", sizes="stay")
    features, where = whole.backbone.features, getattr(whole.anchor_generator, "where", ())
    if row.split:
        root, taps = f"large.{TAPS[1]}", {"small": TAPS, "large": TAPS[1:]}
        features = ss.dual_path(parts["backbone"], row.surgery, taps=taps, input_size=SIZE)
        where = [*where[:FINER], *(Stand(stock.middles(level)) for level in old[FINER:])]
    for level, head in enumerate(cast(Any, parts["heads"])):
        _rebase(head.box, level, row)
    boxes: Any = stock.Boxes(row.scales)
    boxes = GeometryBoxes(boxes, where) if where else boxes
    how: dict[str, Any] = {"size": row.size, "root": root, "categories": categories}
    return stock.detector(parts, features, boxes, **how)


def _rebase(box: nn.Conv2d, level: int, row: Row) -> None:
    """Change what a box predictor says so that it means the same boxes from the row's anchors.

    On a map with twice the cells it takes objects for twice as large: what it says is meant from
    anchors half as large.
    """
    meant, own = (stock.Boxes(scales)._wh_pairs[level] for scales in (SCALES, row.scales))
    finer = row.scales == FINE or row.split and level < FINER
    factor = (meant / own).flip(1) * (0.5 if finer else 1.0)  # height, width
    weights = box.weight.data.unflatten(0, (-1, 4))
    biases = cast(Tensor, box.bias).data.view(-1, 4)
    weights[:, :2] *= factor[:, :, None, None, None]
    biases[:, :2] *= factor
    biases[:, 2:] += SIDE * factor.log()
