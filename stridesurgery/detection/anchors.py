"""torchvision's two anchor generators, standing where the cells of the maps look."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList

from stridesurgery._analysis import MapGeometry
from stridesurgery._hw import HW
from stridesurgery.detection.levels import Level
from stridesurgery.errors import GridError, RequestError


@dataclass(frozen=True)
class Stand:
    """Where the anchors of one map stand, and how large they are beside the stock ones."""

    at: MapGeometry  # its `centres` are the anchors' centres
    scale: tuple[float, float] = (1.0, 1.0)  # (rows, columns), of the boxes' heights and widths


def stands(
    stock: nn.Module,
    size: HW[int],
    before: Sequence[Level],
    after: Sequence[Level],
    *,
    sizes: str = "follow",
    centres: str = "looks",
) -> tuple[Stand, ...]:
    """Return where anchors belong after a surgery.

    Args:
        stock: the anchor generator of the detector as it was.
        size: (h, w) pixels of the input at which the levels were found.
        before: the maps of the detector as it was.
        after: the maps as they are.
        sizes: "follow": boxes stay as many cells large as they were, so that the trained predictors
            fit and small objects find anchors; "stay": as many pixels large, for predictors that
            are trained anew.
        centres: "looks": the centre of what a cell sees; "carried": as far from there, in cells, as
            the stock generator put them on average, because that is what trained predictors have
            learned.

    Raises:
        RequestError: there are not as many maps as the generator has shapes for.
        GridError: a map whose cells are no place for anchors, see `check_looks`.
    """
    if len(shapes := stock.num_anchors_per_location()) != len(before):  # type: ignore[operator]
        raise RequestError(
            f"{type(stock).__name__} has anchors for {len(shapes)} maps, and the backbone gives "
            f"{len(before)}"
        )
    check_looks(after)
    at = (
        carried(stock, size, before, after)
        if centres == "carried"
        else tuple(level.looks for level in after)
    )
    scales = [
        _scale(old.looks, new.looks) if sizes == "follow" else (1.0, 1.0)
        for old, new in _pairs(before, after)
    ]
    return tuple(map(Stand, at, scales))


def check_looks(levels: Sequence[Level]) -> None:
    """Refuse maps whose cells look nowhere, or out of the image.

    Raises:
        GridError: one of them does. Networks that merge coarser maps into finer ones (HRNet) give
            such maps: a cell sees a repeated coarser one too, and the middle of all that it sees
            lies far up and left.

    Example:
        >>> import torchvision, stridesurgery as ss
        >>> net = torchvision.models.detection.ssd300_vgg16(weights=None, weights_backbone=None)
        >>> ss.detection.check_looks(ss.detection.levels(net.backbone, 300))  # raises nothing
    """
    for level in levels:
        for step, offset in zip(level.looks.step, level.looks.offset, strict=True):
            if math.isnan(offset):
                raise GridError(
                    f"map {level.name} hides where its cells look; tap a map before the operator "
                    "that does"
                )
            if math.isnan(step):
                raise GridError(
                    f"the cells of map {level.name} are not evenly spaced: dilate the last strides "
                    "before it, not one that a later stride follows"
                )
            if offset + 0.5 < -step / 2:
                raise GridError(
                    f"the first cell of map {level.name} looks at pixel {offset:g}, outside the "
                    "image, because coarser maps are merged into it; tap the maps before the merge"
                )


def carried(
    stock: nn.Module, size: HW[int], before: Sequence[Level], after: Sequence[Level]
) -> tuple[MapGeometry, ...]:
    """Return where stock anchors go with the maps: as many cells off the cells' centres as before.

    The average, because some stock steps are not the network's (SSD300's 3x3 map: 100 pixels, but
    its cells are 64 apart), and then every cell has a distance of its own. Anchors of border cells
    may so leave the image.
    """
    moved = []
    for anchors, (old, new) in zip(
        stock_anchors(stock, size, before), _pairs(before, after), strict=True
    ):
        looks = points(old.looks, old.grid)
        right, down = (
            (middles(anchors).view(len(looks), -1, 2) - looks[:, None]).mean((0, 1)).tolist()
        )
        row, column = new.looks.carry(
            (float(looks[0, 1]) + down, float(looks[0, 0]) + right), old.looks
        )
        moved.append(replace(new.looks, offset=(row - 0.5, column - 0.5)))
    return tuple(moved)


def stock_anchors(
    generator: nn.Module, size: HW[int], levels: Sequence[Level]
) -> tuple[Tensor, ...]:
    """Return the (A, 4) anchors that a generator puts on each map of an image of (h, w) pixels."""
    image = ImageList(torch.empty((1, 3, *size), device="meta"), [size])
    per_cell = generator.num_anchors_per_location()  # type: ignore[operator]
    # A copy: torchvision's moves its boxes to the device and type of the maps it is given.
    [anchors] = copy.deepcopy(generator)(
        image, [torch.zeros(1, 1, *level.grid) for level in levels]
    )
    return anchors.split(
        [n * level.grid[0] * level.grid[1] for n, level in zip(per_cell, levels, strict=True)]
    )


def points(geometry: MapGeometry, grid: Sequence[int]) -> Tensor:
    """Return the (h * w, 2) points (x, y), in pixels, at which the cells of a map look."""
    return torch.cartesian_prod(*geometry.centres(grid)).flip(1)


def middles(boxes: Tensor) -> Tensor:
    """Return the (A, 2) centres (x, y) of boxes (A, 4)."""
    return (boxes[:, :2] + boxes[:, 2:]) / 2


def _scale(old: MapGeometry, new: MapGeometry) -> tuple[float, float]:
    return new.step[0] / old.step[0], new.step[1] / old.step[1]


def _pairs(before: Sequence[Level], after: Sequence[Level]) -> list[tuple[Level, Level]]:
    return list(zip(before, after, strict=True))


class GeometryBoxes(DefaultBoxGenerator):
    """SSD's default boxes, for `torchvision.models.detection.SSD`.

    The shapes are the stock generator's, clipped where it clips, and scaled map by map.
    """

    def __init__(self, stock: DefaultBoxGenerator, where: Sequence[Stand]) -> None:
        super().__init__(stock.aspect_ratios, scales=stock.scales, clip=stock.clip)
        self.where = tuple(where)
        # (boxes, 2): w, h in 0..1
        shapes = [pairs.clamp(0, 1) if stock.clip else pairs for pairs in stock._wh_pairs]
        self._wh_pairs = [
            p * torch.tensor(s.scale).flip(0) for p, s in zip(shapes, where, strict=True)
        ]

    def num_anchors_per_location(self) -> list[int]:
        """Return how many boxes a cell of each map has."""
        return list(map(len, self._wh_pairs))

    def _grid_default_boxes(
        self, grid_sizes: list[list[int]], image_size: list[int], dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Return all boxes (A, 4): centre x, centre y, width, height, in fractions of the image."""
        boxes = super()._grid_default_boxes(grid_sizes, image_size, dtype)
        centres = [
            points(stand.at, grid).repeat_interleave(len(pairs), dim=0)
            for stand, grid, pairs in zip(self.where, grid_sizes, self._wh_pairs, strict=True)
        ]
        boxes[:, :2] = torch.cat(centres) / torch.tensor([image_size[1], image_size[0]])
        return boxes

    def __repr__(self) -> str:
        name, ratios = type(self).__name__, self.aspect_ratios
        return f"{name}(aspect_ratios={ratios}, clip={self.clip}, where={self.where})"


class GeometryAnchors(AnchorGenerator):
    """The anchors of `torchvision.models.detection.RetinaNet` and of region proposal networks.

    The shapes are the stock generator's, scaled map by map; `sizes` are those before the scaling.
    """

    def __init__(self, stock: AnchorGenerator, where: Sequence[Stand]) -> None:
        super().__init__(stock.sizes, stock.aspect_ratios)
        self.where = tuple(where)
        # (anchors, 4), around (0, 0)
        shapes = [cell.to("cpu", torch.float32) for cell in stock.cell_anchors]
        self.cell_anchors = [
            c * torch.tensor(s.scale).flip(0).repeat(2) for c, s in zip(shapes, where, strict=True)
        ]

    def grid_anchors(
        self, grid_sizes: list[list[int]], strides: list[list[Tensor]]
    ) -> list[Tensor]:
        """Return the (A, 4) anchors of each map; `strides`, guessed from sizes, are not used."""
        anchors = []
        for stand, grid, cell in zip(self.where, grid_sizes, self.cell_anchors, strict=True):
            centres = points(stand.at, grid).to(cell).repeat(1, 2)  # x, y, x, y
            anchors.append((centres[:, None] + cell).reshape(-1, 4))
        return anchors

    def __repr__(self) -> str:
        return f"{type(self).__name__}(aspect_ratios={self.aspect_ratios}, where={self.where})"
