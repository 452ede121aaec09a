"""Prior boxes: where they are centred and how large they are, from a configuration or from the true geometry."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor

from examples.ssd.errors import RequestError

Pair = tuple[float, float]  # rows, columns
ASPECTS = {
    4: (2.0,),
    6: (2.0, 3.0),
}  # boxes per cell: the aspect ratios beside 1, each also upright


@dataclass(frozen=True)
class Cells:
    """Where the cells of one predictor's map look; pixels, the image spanning 0 to its size."""

    count: tuple[int, int]
    step: Pair
    first: Pair  # the centre of cell (0, 0)

    def centres(self) -> Tensor:
        """(cells, 2): x, y; row by row."""
        ys, xs = (
            self.first[axis] + self.step[axis] * torch.arange(self.count[axis]) for axis in (0, 1)
        )
        return torch.cartesian_prod(ys, xs).reshape(-1, 2).flip(1)


def printed_cells(count: tuple[int, int], step: float) -> Cells:
    """The paper's: the first centre half a step from the corner, so that the last may lie outside the image."""
    return Cells(count, (step, step), (step / 2, step / 2))


def shapes(boxes: int, size: float, following: float) -> Tensor:
    """(boxes, 2): width, height of a cell's boxes in pixels.

    size: of this predictor's boxes; following: of the next one's. An extra square lies between the two.
    """
    if boxes not in ASPECTS:
        raise RequestError(f"{boxes} boxes per cell; there are {' or '.join(map(str, ASPECTS))}.")
    between = sqrt(size * following)
    oblong = [
        pair
        for a in ASPECTS[boxes]
        for pair in ((size * sqrt(a), size / sqrt(a)), (size / sqrt(a), size * sqrt(a)))
    ]
    return torch.tensor([(size, size), (between, between), *oblong])


def unclipped_priors(
    cells: Sequence[Cells], boxes: Sequence[int], sizes: Sequence[float]
) -> Tensor:
    """(P, 4): centre x, centre y, width, height in pixels, in the order of the heads' outputs."""
    parts = []
    for grid, count, size, following in zip(cells, boxes, sizes[:-1], sizes[1:], strict=True):
        centres, sides = grid.centres(), shapes(count, size, following)
        spread = centres[:, None].expand(-1, count, 2), sides[None].expand(len(centres), count, 2)
        parts.append(torch.cat(spread, dim=2).reshape(-1, 4))
    return torch.cat(parts)


def clipped(priors: Tensor, side: int) -> Tensor:
    """(P, 4) as centre and size in pixels to shares of the image, each number limited to 0..1 as SSD does."""
    return (priors / side).clamp(0, 1)


def outside(priors: Tensor, side: int) -> int:
    """How many of the (P, 4) priors are centred outside the image."""
    centres = priors[:, :2]
    return int(((centres < 0) | (centres > side)).any(dim=1).sum())
