"""Parts of maps as a batch: choose tiles of the image, cut them out with a border, put them back.

A tile is `tile` x `tile` pixels; on a map of reduction r it is tile / r cells. `mask` (N, rows,
columns) says which tiles are wanted, `index` (K, 3) the image, the row and the column of each tile
that runs.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from stridesurgery.errors import TraceError
from stridesurgery.ops.fine_functional import one_node
from stridesurgery.ops.window import Window, Windows

_CELLS = (Window(), Window())
Chain = Sequence[Windows]  # the windows that lead from a whole map to a value in tiles


@one_node
def tile_mask(chosen: Tensor, image: Tensor, tile: int, budget: int | None = None) -> Tensor:
    """Return the wanted tiles, (N, rows, columns): those that a chosen cell reaches into.

    Args:
        chosen: (N, h, w) on any grid over the image; bool, or scores, of which the `budget` best
            tiles of each image are taken.
        image: (N, C, H, W).
        tile: pixels.
        budget: tiles of each image.
    """
    if chosen.dim() != 3 or (chosen.dtype == torch.bool) == (budget is not None):
        what = (
            "scores, as there is a budget" if budget is not None else "bool, as there is no budget"
        )
        raise ValueError(
            f"the choice is (N, h, w), {what}; got {chosen.dtype} {tuple(chosen.shape)}"
        )
    best = chosen.to(image.dtype)
    for axis in (1, 2):
        cells, pixels = chosen.shape[axis], image.shape[axis + 1]
        first = torch.arange(-(-pixels // tile), device=chosen.device)[:, None] * tile * cells
        cell = torch.arange(cells, device=chosen.device) * pixels
        reaches = (cell < first + tile * cells) & (cell + pixels > first)  # (tiles, cells)
        spread = best.movedim(axis, -1).unsqueeze(-2)
        best = spread.where(reaches, -torch.inf).amax(-1).movedim(-1, axis)
    if budget is None:
        return best > 0.5
    flat = best.flatten(1)
    taken = flat.topk(min(budget, flat.shape[1]), sorted=False).indices
    return torch.zeros_like(flat, dtype=torch.bool).scatter(1, taken, True).view_as(best)


@one_node
def tile_index(mask: Tensor, ring: int = 0, budget: int | None = None) -> Tensor:
    """Return (image, row, column) of wanted tiles and `ring` around; a budget fixes the count."""
    if budget is not None:
        flat, columns = mask.flatten(1), mask.shape[2]
        places = flat.to(torch.uint8).topk(min(budget, flat.shape[1]), sorted=False).indices
        image = torch.arange(len(mask), device=mask.device)[:, None].expand_as(places)
        return torch.stack((image, places // columns, places % columns), -1).flatten(0, 1)
    if ring:
        mask = F.max_pool2d(mask[:, None].float(), 2 * ring + 1, 1, ring)[:, 0] > 0
    if mask.is_meta:
        raise TraceError(
            "a sparse path runs as many tiles as its numbers ask for, which shapes do not tell; "
            "take the dual path that it was made of, or give a budget"
        )
    return mask.nonzero()


@one_node
def all_tiles(image: Tensor, tile: int) -> Tensor:
    """Return the mask of all tiles of an image, (N, rows, columns)."""
    rows, columns = (-(-side // tile) for side in image.shape[2:])
    return torch.ones(image.shape[0], rows, columns, dtype=torch.bool, device=image.device)


@one_node
def per_tile(x: Tensor, index: Tensor) -> Tensor:
    """Return a value of each image for each of its tiles."""
    return x[index[:, 0]]


@one_node
def cut_tiles(
    x: Tensor,
    mask: Tensor,
    index: Tensor,
    cells: tuple[int, int],
    windows: Windows = _CELLS,
    fill: float = 0.0,
    bare: bool = False,
) -> Tensor:
    """Cut tiles out of a map (N, C, h, w), with the border that windows need: (K, C, ., .).

    What lies beyond the map is `fill`. bare: the operator will not pad, so that it makes exactly
    the tile.
    """
    pads, sides = [], []
    for axis, (window, own) in enumerate(zip(windows, cells, strict=True)):
        size = x.shape[2 + axis]
        left, right = _border(window, size, own, bare)
        reach = mask.shape[1 + axis] * own + right
        pads.append((left, reach - size))
        sides.append((left + own + right, own))
    (top, bottom), (left, right) = pads
    tiles = F.pad(x, (left, right, top, bottom), value=fill)
    for axis, (length, step) in enumerate(sides):
        tiles = tiles.unfold(2 + axis, length, step)
    return tiles[index[:, 0], :, index[:, 1], index[:, 2]]


Border = tuple[Tensor, Tensor, Tensor]


@one_node
def border_cells(
    mask: Tensor,
    index: Tensor,
    start: Tensor,
    chain: Chain,
    cells: tuple[int, int],
    windows: Windows,
    by: tuple[int, int] = (1, 1),
    bare: bool = False,
) -> Border:
    """Return where the cells of tiles with a border come from, for `with_border`.

    Args:
        mask: of the tiles that are wanted.
        index: of the tiles that run.
        start: a whole map (N, C, H, W) from which `chain` leads to the values.
        chain: windows.
        cells: of a tile.
        windows: of the operator that runs next.
        by: by how much the cells of the coarse path's map are larger, (rows, columns).
        bare: the operator will not pad, so that it makes exactly the tile.

    Returns:
        The cell of all tiles that each takes, (K, h, w). Of those that no tile has: which they are
        among all, and the image, row and column of the coarse map that stand for them, (G, 4).
        Which are beyond the map, (B,).
    """
    at, beyond = [], []
    for axis, (window, own) in enumerate(zip(windows, cells, strict=True)):
        size = _size(start, chain, axis)
        left, right = _border(window, size, own, bare)
        along = torch.arange(-left, own + right, device=index.device)
        cell = index[:, 1 + axis, None] * own + along
        beyond.append((cell < 0) | (cell >= size))
        at.append(cell.clamp(0, size - 1))
    rows, columns = at[0][:, :, None], at[1][:, None, :]
    outside = beyond[0][:, :, None] | beyond[1][:, None, :]
    image = index[:, 0, None, None]
    numbers = torch.full_like(mask, -1, dtype=torch.long)
    numbers[tuple(index.T)] = torch.arange(index.shape[0], device=index.device)
    tile = numbers[image, rows // cells[0], columns // cells[1]]
    taken = (tile.clamp(min=0) * cells[0] + rows % cells[0]) * cells[1] + columns % cells[1]
    gap = (tile < 0) & ~outside
    coarse = (image, rows // by[0], columns // by[1])
    places = [gap.flatten().nonzero()[:, 0], *(c.expand_as(gap)[gap] for c in coarse)]
    return taken, torch.stack(places, 1), outside.flatten().nonzero()[:, 0]


@one_node
def with_border(tiles: Tensor, border: Border, fill: float, coarse: Tensor | None = None) -> Tensor:
    """Give tiles (K, C, h, w) a border from the tiles beside them, as `border_cells` has it.

    Where none runs it is that of the coarse path's map (N, C, h, w), or zero; beyond the image it
    is `fill`.
    """
    taken, gaps, outside = border
    found = tiles.permute(0, 2, 3, 1).flatten(0, 2).index_select(0, taken.flatten())
    place, image, row, column = gaps.T
    found[place] = 0 if coarse is None else coarse[image, :, row, column]
    found[outside] = fill
    return found.view(*taken.shape, tiles.shape[1]).permute(0, 3, 1, 2)


@one_node
def inside(
    tiles: Tensor, start: Tensor, chain: Chain, cells: tuple[int, int], windows: Windows
) -> Tensor:
    """Cut off what an operator made of its tiles' border; they were of `cells` before it."""
    for axis, (window, own) in enumerate(zip(windows, cells, strict=True)):
        left, _ = _border(window, _size(start, chain, axis), own)
        tiles = tiles.narrow(2 + axis, left // window.step, own // window.step)
    return tiles


@one_node
def put_tiles(
    tiles: Tensor,
    mask: Tensor,
    index: Tensor,
    start: Tensor,
    chain: Chain,
    cells: tuple[int, int],
    fill: float,
) -> Tensor:
    """Put wanted tiles (K, C, h, w) back into a map whose rest is `fill`; see `border_rows`."""
    (rows, columns), (height, width) = mask.shape[1:], cells
    wanted = mask[index[:, 0], index[:, 1], index[:, 2], None, None, None]
    grid = tiles.new_full((start.shape[0], tiles.shape[1], rows, height, columns, width), fill)
    places = grid.permute(0, 2, 4, 1, 3, 5)
    places[index[:, 0], index[:, 1], index[:, 2]] = tiles.where(wanted, fill)
    sizes = [_size(start, chain, axis) for axis in range(2)]
    whole = grid.view(start.shape[0], tiles.shape[1], rows * height, columns * width)
    return whole[:, :, : sizes[0], : sizes[1]]


def _size(start: Tensor, chain: Chain, axis: int) -> int:
    size = start.shape[2 + axis]
    for windows in chain:
        size = windows[axis].finer_cells(size)
    return size


def _border(window: Window, size: int, cells: int, bare: bool = False) -> tuple[int, int]:
    """Return the cells left and right of a tile that its window reads, or that keep its step."""
    pad, step = window.pads(size)[0], window.step
    right = (1 if window.tap else window.span) - pad - step
    if bare:
        return pad, right
    left, right = -(-max(pad, 0) // step) * step, max(right, 0)
    return left, right + (size - (cells + left + right)) % window.stride
