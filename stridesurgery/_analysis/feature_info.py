"""What a detector must know of the maps it is given: channels, reductions, names, and where their cells look."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stridesurgery._analysis.geometry import Geometry
from stridesurgery._analysis.grid import GridInfo
from stridesurgery._node import Key
from stridesurgery.errors import GridError

Sides = tuple[float, float]  # (rows, columns)


@dataclass(frozen=True)
class MapGeometry:
    """Where the cells of a map look, in input pixels; every pair is (rows, columns).

    Cell i looks at pixel `step * i + offset`, where pixel 0 has its centre at 0, through `receptive_field` pixels.
    An offset is nan where the network hides it (after an operator that is not understood). A step is nan where the
    cells are not evenly spaced: in a dilated network, behind a stride that is later than the eliminated one.
    """

    step: Sides
    offset: Sides
    receptive_field: Sides  #: infinite after attention

    def centres(self, grid: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Where a map of (h, w) cells looks, in image coordinates: pixel i covers i to i + 1, as for boxes.

        Returns:
            The (h,) rows and the (w,) columns in pixels; anchors stand at every pair of them.

        Raises:
            GridError: the cells are not evenly spaced, or the network hides where they look.
        """
        if any(math.isnan(v) for v in (*self.step, *self.offset)):
            raise GridError(
                "the cells of this map are not evenly spaced, or the network hides where they look: a dilated network "
                "has even maps up to the next stride; dilate the last stride before the map"
            )
        rows, columns = (
            torch.arange(cells, dtype=torch.float32) * step + (offset + 0.5)
            for cells, step, offset in zip(grid, self.step, self.offset, strict=True)
        )
        return rows, columns

    def carry(self, point: Sides, before: "MapGeometry") -> Sides:
        """Where a point of the old map's first cell belongs on this one.

        A detector that was trained with an anchor at `point` has learned how far that is from where the cell looks,
        in cells. The same number of cells away from where this map's first cell looks, its predictions fit again.

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
    """The geometry of a map from that of its axes."""
    return MapGeometry(
        step=(rows.step, columns.step),
        offset=(rows.offset, columns.offset),
        receptive_field=(rows.receptive_field, columns.receptive_field),
    )


def reduction_of(place: GridInfo) -> Sides:
    """Nominal input pixels per cell of a map, whole numbers as such."""
    rows, columns = (int(r) if r.denominator == 1 else float(r) for r in place.reassembled.reduction)
    return rows, columns


@dataclass(frozen=True)
class Source:
    """Which map of which network a returned map is, or a part of it is where several are concatenated."""

    name: str
    network: str  #: "operated", "original", or "sliced": the original's later layers on a slice at a removed pool
    key: Key  #: of the value in a recording of that network
    channels: int
    channel_axis: int


@dataclass(frozen=True)
class Feature:
    """One map that a network returns."""

    name: str  #: its key in what forward returns
    module: str  #: the outermost module that makes it
    channels: int
    reduction: Sides  #: nominal input pixels per cell
    geometry: MapGeometry
    sources: tuple[Source, ...] = ()  #: in the order of their channels


@dataclass(frozen=True)
class FeatureInfo:
    """The maps that a network returns, in order; asked as timm's `FeatureInfo` is.

    Every method takes an index, a sequence of indices, or None for all.
    """

    features: tuple[Feature, ...]

    @property
    def out_indices(self) -> tuple[int, ...]:
        """The positions of the maps."""
        return tuple(range(len(self.features)))

    def channels(self, idx: int | Sequence[int] | None = None) -> Any:
        """The number of channels of the maps."""
        return self._each([f.channels for f in self.features], idx)

    def reduction(self, idx: int | Sequence[int] | None = None) -> Any:
        """Input pixels per cell, nominal: a number, or (rows, columns) where they differ."""
        return self._each([_one(f.reduction) for f in self.features], idx)

    def module_name(self, idx: int | Sequence[int] | None = None) -> Any:
        """The modules that make the maps."""
        return self._each([f.module for f in self.features], idx)

    def geometry(self, idx: int | Sequence[int] | None = None) -> Any:
        """Where the maps' cells look: a `MapGeometry` each."""
        return self._each([f.geometry for f in self.features], idx)

    def get_dicts(self, keys: Sequence[str] | None = None, out_indices: Sequence[int] | None = None) -> list[Any]:
        """The maps as dicts with num_chs, reduction, module and index, or those of them that `keys` names."""
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


def _one(sides: Sides) -> Any:
    return sides[0] if sides[0] == sides[1] else sides
