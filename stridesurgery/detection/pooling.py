"""The scales of a RoI pooling, and which map it takes a box from."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.boxes import box_area

from stridesurgery.errors import RequestError


@dataclass(frozen=True)
class MapsByStep:
    """Choose the map that a box is pooled from; torchvision's `LevelMapper` where steps double.

    Torchvision numbers the maps by powers of two and takes it that none is missing, so after the
    elimination of a late stride it would never use the last map. Here a box changes from one map to
    the next when its side is `cells` * sqrt(2) geometric means of their steps long: 224 pixels
    between steps of 8 and 16, as in the FPN paper.
    """

    steps: tuple[float, ...]  # pixels, finest first
    cells: float

    @property
    def limits(self) -> list[float]:
        """Sides of boxes in pixels at which the map changes."""
        pairs = zip(self.steps, self.steps[1:], strict=False)
        return [self.cells * math.sqrt(2 * a * b) for a, b in pairs]

    def __call__(self, boxes: list[Tensor]) -> Tensor:
        """Return the numbers of the maps, (all R,), for boxes (R, 4) of each image in pixels."""
        sides = torch.cat([box_area(b) for b in boxes]).sqrt()
        return torch.bucketize(sides, torch.tensor(self.limits, device=sides.device), right=True)


def set_scales(pool: MultiScaleRoIAlign, steps: Sequence[tuple[float, float]]) -> None:
    """Set the steps (rows, columns) in pixels of a RoI pooling's maps, which it would guess.

    Raises:
        RequestError: rows and columns differ.

    Example:
        >>> import torchvision, stridesurgery as ss
        >>> pool = torchvision.ops.MultiScaleRoIAlign(["0", "1"], 7, sampling_ratio=2)
        >>> ss.detection.set_scales(pool, [(2, 2), (4, 4)])
        >>> pool.scales
        [0.5, 0.25]
    """
    if any(rows != columns for rows, columns in steps):
        raise RequestError(
            "RoIAlign has one scale for rows and columns; eliminate strides of both axes "
            "(axis='hw')"
        )
    pool.scales = [1 / rows for rows, _ in steps]
    pool.map_levels = MapsByStep(
        tuple(rows for rows, _ in steps), pool.canonical_scale / 2**pool.canonical_level
    )
