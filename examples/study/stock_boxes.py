"""The stock detector's anchors, on its own grid and on a finer one, and what becomes of its predictions.

Until they are scaled to an image, boxes are fractions of it, so that the same anchors serve any size: (top, left,
bottom, right) as corners, (row, column, height, width) as centres, as TensorFlow orders them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import batched_nms

import stridesurgery as ss

from .stock import HIGH_TAP, LOW_TAP, Predictions, StockSSD

SCALES = (
    0.2,
    0.35,
    0.5,
    0.65,
    0.8,
    0.95,
    1.0,
)  # of the six maps, as a share of the image; one more to interpolate
_ASPECTS = (1.0, 2.0, 0.5, 3.0, 1 / 3)  # width / height
_FIRST_BOXES = (
    (0.5, 1.0),
    (1.0, 2.0),
    (1.0, 0.5),
)  # the first map has three anchors a cell: (share of scale, aspect)
_VARIANCES = (
    10.0,
    10.0,
    5.0,
    5.0,
)  # by which the network's (row, column, height, width) are divided

_LEAST_SCORE = 0.02  # the 100 boxes that are kept of a photograph score more
CANDIDATES = 2000  # that enter the suppression; 1000 or 5000 give the same AP
_MAX_OVERLAP = 0.6  # IoU of two boxes of one class, as the detector's own post-processing has it
_MOST_DETECTIONS = 100  # an image


# ---- anchors


@dataclass(frozen=True)
class Centres:
    """Where the cells of one map have their anchors, as fractions of the image."""

    rows: Tensor  # (H,)
    columns: Tensor  # (W,)


def six_layers(net: StockSSD, size: int) -> tuple[ss.Layer, ...]:
    """The layers that make the maps that the six heads read, for images of size x size pixels."""
    report = ss.inspect(nn.Sequential(net.backbone, *net.extras), size)
    return (report[LOW_TAP], *report.layers[HIGH_TAP:])  # each of the extras holds one layer


def usual_centres(layers: Sequence[ss.Layer]) -> list[Centres]:
    """The middles of equal cells; what the predictors were trained with."""
    return [Centres(*(_middles(cells) for cells in layer.out_grid)) for layer in layers]


def looking_centres(layers: Sequence[ss.Layer], size: int) -> list[Centres]:
    """The points of an image of size x size pixels that the cells look at."""
    return [Centres(*(_looks(layer, axis, size) for axis in (0, 1))) for layer in layers]


def learned_centres(
    layers: Sequence[ss.Layer], size: int, trained: Sequence[ss.Layer], trained_size: int
) -> list[Centres]:
    """Centres on a grid that the predictors were not trained on, which stand to it as their own did to theirs.

    A predictor knows nothing of pixels: it has learned how far its anchor lies from the point that its cell looks at.
    In this detector that is up to a third of a cell, since "same" padding shifts the points and not the anchors. The
    distance in cells is what holds on any grid. (training_free.py measures this beside the two simpler rules.)

    layers: of the six maps for images of size x size pixels; trained: as the network was trained, at trained_size.
    """

    def along(axis: int, layer: ss.Layer, old: ss.Layer) -> Tensor:
        return (
            _looks(layer, axis, size)
            + _learned_shift(old, axis, trained_size) * layer.step[axis] / size
        )

    return [Centres(along(0, *pair), along(1, *pair)) for pair in zip(layers, trained, strict=True)]


def _middles(cells: int) -> Tensor:
    return (torch.arange(cells) + 0.5) / cells


def _looks(layer: ss.Layer, axis: int, size: int) -> Tensor:
    """(cells,), fractions of the image; half a pixel is added because the centre of pixel 0 is at 0."""
    return (layer.step[axis] * torch.arange(layer.out_grid[axis]) + layer.offset[axis] + 0.5) / size


def _learned_shift(layer: ss.Layer, axis: int, size: int) -> float:
    """From the point that a cell looks at to its usual centre, in cells, averaged over the map."""
    shifts = _middles(layer.out_grid[axis]) - _looks(layer, axis, size)
    return float(shifts.mean()) * size / layer.step[axis]


def anchors(
    centres: Sequence[Centres], scale: float = 1.0, scales: Sequence[float] = SCALES
) -> Tensor:
    """The anchors (A, 4) of six maps as centres; `scale` times as large as those the network was trained with.

    scales: of the maps, where they are others than the network was trained with.
    """
    return torch.cat(
        [_level_anchors(c, anchor_sizes(level, scales) * scale) for level, c in enumerate(centres)]
    )


def anchor_sizes(level: int, scales: Sequence[float] = SCALES) -> Tensor:
    """Height and width of one cell's anchors on map `level` of the six, (anchors a cell, 2), fractions of the image."""
    size, next_size = scales[level : level + 2]
    kinds = [(size, aspect) for aspect in _ASPECTS] + [(math.sqrt(size * next_size), 1.0)]
    if level == 0:
        kinds = [(size * share, aspect) for share, aspect in _FIRST_BOXES]
    return torch.tensor([(s / math.sqrt(aspect), s * math.sqrt(aspect)) for s, aspect in kinds])


def _level_anchors(centres: Centres, sizes: Tensor) -> Tensor:
    points = torch.cartesian_prod(centres.rows, centres.columns)  # (H * W, 2), row by row
    cells, kinds = len(points), len(sizes)
    both = (points[:, None].expand(cells, kinds, 2), sizes[None].expand(cells, kinds, 2))
    return torch.cat(both, dim=2).reshape(cells * kinds, 4)


def decode(offsets: Tensor, anchors: Tensor) -> Tensor:
    """Predicted offsets (..., A, 4) from anchors (A, 4) to corners, clipped to the image (Liu et al. 2016)."""
    offsets = offsets / offsets.new_tensor(_VARIANCES)
    centres = anchors[:, :2] + offsets[..., :2] * anchors[:, 2:]
    halves = anchors[:, 2:] * offsets[..., 2:].exp() / 2
    return torch.cat([centres - halves, centres + halves], dim=-1).clamp(0, 1)


# ---- detections


@dataclass(frozen=True)
class Candidates:
    """Boxes found in one image of H x W pixels."""

    boxes: Tensor  # (K, 4): corners in pixels of that image
    scores: Tensor  # (K,)
    categories: Tensor  # (K,): COCO's ids

    def __getitem__(self, chosen: Tensor) -> "Candidates":
        return Candidates(self.boxes[chosen], self.scores[chosen], self.categories[chosen])


def candidates(predictions: Predictions, anchors: Tensor, image: tuple[int, int]) -> Candidates:
    """Every box of a batch of one whose score is worth a look. anchors: (A, 4); image: its (height, width)."""
    corners = decode(predictions.boxes[0], anchors) * anchors.new_tensor([*image, *image])
    scores, places = predictions.scores[0], predictions.scores[0] > _LEAST_SCORE
    anchor, column = places.nonzero(as_tuple=True)
    return Candidates(corners[anchor], scores[places], column + 1)


def merged(*parts: Candidates) -> Candidates:
    """The candidates of several views of one image."""
    fields = ((part.boxes, part.scores, part.categories) for part in parts)
    return Candidates(*(torch.cat(field) for field in zip(*fields, strict=True)))


def below(found: Candidates, bound: float) -> Candidates:
    """The boxes whose side (the square root of the area) is less than `bound` pixels."""
    sides = found.boxes[:, 2:] - found.boxes[:, :2]
    return found[sides.prod(dim=1) < bound**2]


def suppress(found: Candidates) -> Candidates:
    """The best 100 after one non-maximum suppression within each class, best first."""
    found = found[found.scores.topk(min(CANDIDATES, len(found.scores))).indices]
    kept = batched_nms(found.boxes[:, [1, 0, 3, 2]], found.scores, found.categories, _MAX_OVERLAP)
    return found[kept[:_MOST_DETECTIONS]]


def as_results(found: Candidates, image_id: int) -> list[dict[str, Any]]:
    """In COCO's results format."""
    entries = zip(
        found.boxes.tolist(), found.scores.tolist(), found.categories.tolist(), strict=True
    )
    return [
        {
            "image_id": image_id,
            "category_id": k,
            "bbox": [left, top, right - left, bottom - top],
            "score": score,
        }
        for (top, left, bottom, right), score, k in entries
    ]
