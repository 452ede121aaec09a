"""Merges the grid information of the inputs of one operator."""

import math
from dataclasses import replace

from torch import fx

from stridesurgery._analysis.geometry import Geometry
from stridesurgery._analysis.grid import GridInfo
from stridesurgery._node import shape_of
from stridesurgery.ops import function_traits


def merge(node: fx.Node, grid_of: list[GridInfo]) -> GridInfo:
    """Return the grid information of a value that is made from several values.

    It is that of the finest one, or of the query in attention. Its cells see all that the cells of
    the maps with that reduction see.
    """
    traits = function_traits(node)
    if traits.like_first:
        return grid_of[0]
    batch = max(p.batch for p in grid_of)
    if all(p is grid_of[0] for p in grid_of) and (
        grid_of[0].pooled or not _is_pooled(shape_of(node), batch)
    ):
        return grid_of[0]
    grid_of = [p for p in grid_of if not p.pooled] or grid_of
    mixes = traits.mixes_cells and len(grid_of) > 1
    first = (
        _query(grid_of, shape_of(node) or ()) if mixes else min(grid_of, key=lambda p: p.reduction)
    )
    alike = [p for p in grid_of if p.reduction == first.reduction]
    rows, columns = _seen_by(alike)
    own = [p for p in alike if not p.resampled]
    if 0 < len(own) < len(alike):  # keep the cells of maps not resampled (HRNet, FPN)
        (up, left), wide = _seen_by(own), (rows, columns)
        rows, columns = (
            replace(g, receptive_field=w.receptive_field)
            for g, w in zip((up, left), wide, strict=True)
        )
    if mixes:
        rows, columns = (replace(g, receptive_field=math.inf) for g in (rows, columns))
    grid = next((p.grid for p in alike if p.grid is not None), None)
    pooled = all(p.pooled for p in grid_of) or (
        grid != (1, 1) and _is_pooled(shape_of(node), batch)
    )
    return replace(
        first,
        grid=None if pooled else grid,
        geometry=(rows, columns),
        pooled=pooled,
        resampled=not own,
    )


def _seen_by(grid_of: list[GridInfo]) -> tuple[Geometry, Geometry]:
    """Return the geometry of a cell that sees all that the cells of several maps see."""
    rows, columns = grid_of[0].geometry
    for place in grid_of[1:]:
        rows, columns = rows.joined(place.geometry[0]), columns.joined(place.geometry[1])
    return rows, columns


def _query(grid_of: list[GridInfo], shape: tuple[int, ...]) -> GridInfo:
    """Return the first factor of a matrix product whose cells the result still has."""
    return next(
        (p for p in grid_of if p.grid is not None and math.prod(p.grid) in shape), grid_of[0]
    )


def _is_pooled(shape: tuple[int, ...] | None, batch: int) -> bool:
    """Tell whether a value has one cell per image.

    Its shape is then (N, C), (N, 1, C), (N, C, 1, 1) or (N, 1, 1, C).
    """
    if shape is None or shape[:1] != (batch,):
        return False
    if len(shape) == 3:
        return shape[1] == 1
    return len(shape) == 2 or (len(shape) == 4 and (1, 1) in (shape[2:], shape[1:3]))
