"""Tables of positions on a finer grid: where the cells lie, and the values between them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from stridesurgery.ops.fine_functional import one_node

_CUBIC = -0.75  # the constant of torch's own bicubic interpolation


@dataclass(frozen=True)
class Table:
    """Where the cells lie in a table, and how many times finer they become."""

    grid: tuple[int, ...]  #: cells along each axis of the original
    finer: tuple[int, ...]  #: cells of the finer grid
    by: tuple[int, ...]  #: how many times finer along each axis
    axis: int  #: the first axis of the cells
    flat: bool  #: True if all cells lie along that axis, row by row
    prefix: int  #: entries before the cells that stand for no cell (class tokens)
    suffix: int  #: entries after the cells that stand for none
    offsets: bool  #: True if the entries stand for differences of positions, -(n - 1) to n - 1
    half_pixel: bool  #: True for the centres that timm's `resample_abs_pos_embed` takes


def lengths(grid: Sequence[int], offsets: bool) -> tuple[int, ...]:
    """Return how long a table is along each axis of its grid."""
    return tuple(2 * n - 1 if offsets else n for n in grid)


@one_node
def resample_table(
    table: Tensor,
    grid: tuple[int, ...],
    finer: tuple[int, ...],
    by: tuple[int, ...],
    axis: int,
    flat: bool,
    prefix: int,
    suffix: int,
    offsets: bool,
    half_pixel: bool,
) -> Tensor:
    """Resample a table for finer cells; the arguments are the fields of `Table`.

    A table that a graph reads through its module has been resampled and stays as it is.
    """
    cells, wanted = table.shape[axis] - prefix - suffix, lengths(finer, offsets)
    if wanted == tuple(table.shape[axis : axis + len(grid)]) or (
        flat and cells == math.prod(wanted)
    ):
        return table
    if not flat:
        return _resampled(table, grid, finer, by, axis, offsets, half_pixel)
    first, middle, last = table.split([prefix, cells, suffix], axis)
    middle = middle.unflatten(axis, lengths(grid, offsets))
    middle = _resampled(middle, grid, finer, by, axis, offsets, half_pixel)
    middle = middle.flatten(axis, axis + len(grid) - 1)
    return torch.cat([first, middle, last], axis) if prefix or suffix else middle


def _resampled(
    table: Tensor,
    grid: tuple[int, ...],
    finer: tuple[int, ...],
    by: tuple[int, ...],
    axis: int,
    offsets: bool,
    half_pixel: bool,
) -> Tensor:
    if half_pixel and not offsets and len(grid) == 2:
        maps = table.movedim((axis, axis + 1), (-2, -1))
        flat = maps.reshape(1, -1, *grid).float()
        flat = F.interpolate(flat, size=list(finer), mode="bicubic", antialias=True)
        maps = flat.reshape(*maps.shape[:-2], *finer).to(table.dtype)
        return maps.movedim((-2, -1), (axis, axis + 1))
    for i, (n, m, k) in enumerate(zip(grid, finer, by, strict=True)):
        cells, zero = (range(1 - m, m), n - 1) if offsets else (range(m), 0)
        table = _sample(table, axis + i, [zero + j / k for j in cells]) if k > 1 else table
    return table


def _sample(table: Tensor, axis: int, positions: Sequence[float]) -> Tensor:
    """Sample a table along one axis by cubic convolution, with its end entries repeated."""
    at = torch.tensor(positions, dtype=torch.float64, device="cpu")
    first = at.floor()
    weights = _cubic_weights(at - first)
    shape = [-1 if i == axis % table.dim() else 1 for i in range(table.dim())]
    total: Tensor | None = None
    for tap, weight in enumerate(weights):
        index = (first.long() + tap - 1).clamp(0, table.shape[axis] - 1)
        rows = table.index_select(axis, index.to(table.device))
        term = rows * weight.to(device=table.device, dtype=table.dtype).reshape(shape)
        total = term if total is None else total + term
    assert total is not None
    return total


def _cubic_weights(t: Tensor) -> list[Tensor]:
    """Return the weights of the four neighbours at a distance t behind the second of them."""
    a = _CUBIC
    near = [((a + 2) * d - (a + 3)) * d * d + 1 for d in (t, 1 - t)]
    far = [((a * d - 5 * a) * d + 8 * a) * d - 4 * a for d in (1 + t, 2 - t)]
    return [far[0], near[0], near[1], far[1]]
