"""Describe the maps that a detector is given: channels, reductions, names and geometry."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stridesurgery._analysis.geometry import Geometry
from stridesurgery._analysis.grid import GridInfo
from stridesurgery._hw import HW
from stridesurgery._node import Key
from stridesurgery.errors import GridError


@dataclass(frozen=True)
class MapGeometry:
    """Step, offset and receptive field of a map's cells, in input pixels.

    Every pair is (rows, columns). Cell i looks at `receptive_field` pixels around pixel
    `step * i + offset`. The centre of pixel 0 is at 0.

    An offset is nan where the network hides it, that is, after an operator that is not understood.
    A step is nan where the cells are not evenly spaced. This happens in a dilated network, behind a
    stride that is later than the eliminated one.

    Example:
        >>> import stridesurgery, torchvision
        >>> maps = stridesurgery.features(torchvision.models.resnet18(), input_size=64)
        >>> geometry = maps.feature_info.geometry(-1)
        >>> geometry.step, geometry.receptive_field
        ((32.0, 32.0), (435.0, 435.0))
    """

    step: HW[float]
    offset: HW[float]
    receptive_field: HW[float]  #: infinite after attention

    def centres(self, grid: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return the image coordinates at which the cells of an (h, w) map look.

        Pixel i covers the interval from i to i + 1, as in box coordinates.

        Returns:
            The (h,) rows and the (w,) columns in pixels; anchors stand at every pair of them.

        Raises:
            GridError: the cells are not evenly spaced, or the network hides where they look.
        """
        if any(math.isnan(v) for v in (*self.step, *self.offset)):
            raise GridError(
                "the cells of this map are not evenly spaced, or the network hides where they "
                "look: a dilated network has even maps up to the next stride; dilate the last "
                "stride before the map"
            )
        rows, columns = (
            torch.arange(cells, dtype=torch.float32) * step + (offset + 0.5)
            for cells, step, offset in zip(grid, self.step, self.offset, strict=True)
        )
        return rows, columns

    def carry(self, point: HW[float], before: "MapGeometry") -> HW[float]:
        """Return the point on this map that replaces an anchor point of the old map's first cell.

        A detector that was trained with an anchor at `point` has learned the distance, in cells,
        from there to where the cell looks. Its predictions fit again at the same distance, in
        cells, from where the first cell of this map looks.

        Args:
            point: (row, column) in image coordinates.
            before: the geometry of the map that the detector was trained on.
        """
        rows, columns = (
            offset + 0.5 + (p - old - 0.5) * step / old_step
            for p, offset, step, old, old_step in zip(
                point, self.offset, self.step, before.offset, before.step, strict=True
            )
        )
        return rows, columns


def geometry_of(rows: Geometry, columns: Geometry) -> MapGeometry:
    """Return the geometry of a map, given the geometry of each axis."""
    return MapGeometry(
        step=(rows.step, columns.step),
        offset=(rows.offset, columns.offset),
        receptive_field=(rows.receptive_field, columns.receptive_field),
    )


def reduction_of(place: GridInfo) -> HW[float]:
    """Return the nominal input pixels per cell of a map, whole numbers as ints."""
    rows, columns = (
        int(r) if r.denominator == 1 else float(r) for r in place.reassembled.reduction
    )
    return rows, columns


@dataclass(frozen=True)
class Source:
    """The origin of a returned map, or of one part of a concatenated map."""

    name: str
    #: "operated", "original", or "sliced": the original's later layers on a slice at a removed pool
    network: str
    key: Key  #: key of the value in a recording of that network
    channels: int
    channel_axis: int
    tokens: Any = None  #: the layout of the tokens that the map is made of


@dataclass(frozen=True)
class Feature:
    """One map that a network returns.

    Example:
        >>> import stridesurgery, torchvision
        >>> maps = stridesurgery.features(torchvision.models.resnet18(), input_size=64)
        >>> last = maps.feature_info.features[-1]
        >>> last.module, last.channels, last.reduction
        ('layer4', 512, (32, 32))
    """

    name: str  #: its key in the result of forward
    module: str  #: the outermost module that makes it
    channels: int
    reduction: HW[float]  #: nominal input pixels per cell
    geometry: MapGeometry
    sources: tuple[Source, ...] = ()  #: in the order of their channels


@dataclass(frozen=True)
class FeatureInfo:
    """The maps that a network returns, in order, with the methods of timm's `FeatureInfo`.

    Every method takes an index, a sequence of indices, or None for all.

    Example:
        >>> import stridesurgery, torchvision
        >>> maps = stridesurgery.features(torchvision.models.resnet18(), input_size=64)
        >>> maps.feature_info.channels()
        [64, 64, 128, 256, 512]
        >>> maps.feature_info.reduction(-1)
        32
    """

    features: tuple[Feature, ...]

    @property
    def out_indices(self) -> tuple[int, ...]:
        """The positions of the maps."""
        return tuple(range(len(self.features)))

    def channels(self, idx: int | Sequence[int] | None = None) -> Any:
        """Return the number of channels of each map."""
        return self._each([f.channels for f in self.features], idx)

    def reduction(self, idx: int | Sequence[int] | None = None) -> Any:
        """Return the nominal input pixels per cell: a number, or (rows, columns) if they differ."""
        return self._each([_one(f.reduction) for f in self.features], idx)

    def module_name(self, idx: int | Sequence[int] | None = None) -> Any:
        """Return the names of the modules that make the maps."""
        return self._each([f.module for f in self.features], idx)

    def geometry(self, idx: int | Sequence[int] | None = None) -> Any:
        """Return the `MapGeometry` of each map."""
        return self._each([f.geometry for f in self.features], idx)

    def get_dicts(
        self, keys: Sequence[str] | None = None, out_indices: Sequence[int] | None = None
    ) -> list[Any]:
        """Return the maps as dicts with num_chs, reduction, module and index.

        Args:
            keys: the entries to return; None for all.
            out_indices: the positions of the maps to return; None for all.
        """
        rows = [
            {"num_chs": f.channels, "reduction": _one(f.reduction), "module": f.module, "index": i}
            for i, f in enumerate(self.features)
        ]
        rows = rows if out_indices is None else [rows[i] for i in out_indices]
        return rows if keys is None else [{key: row[key] for key in keys} for row in rows]

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.get_dicts()[index]

    @staticmethod
    def _each(values: list[Any], idx: int | Sequence[int] | None) -> Any:
        if idx is None:
            return values
        return values[idx] if isinstance(idx, int) else [values[i] for i in idx]


def _one(sides: HW[float]) -> Any:
    return sides[0] if sides[0] == sides[1] else sides
