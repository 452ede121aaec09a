"""The phases of a finer map in the batch and back: how a dilated network rearranges its values."""

import torch.nn.functional as F
from torch import Tensor

from stridesurgery.ops.fine_functional import one_node
from stridesurgery.ops.window import at_least, at_most


@one_node
def space_to_batch(x: Tensor, by: tuple[int, int], last: int = -1) -> Tensor:
    """Move the by[0] x by[1] phases of a map into its batch; phase i, j holds [i::by[0], j::by[1]].

    x: (N, C, H, W), or (N, H, W, C) with last = -2. Returns (by[0] * by[1] * N, ...), all of phase
    (0, 0) first, in maps of ceil(H / by[0]) x ceil(W / by[1]) cells; cells that x lacks are zero.
    """
    rows, columns = (-(-x.shape[last - 1 + i] // k) for i, k in enumerate(by))
    missing = (rows * by[0] - x.shape[last - 1], columns * by[1] - x.shape[last])
    if last == -2:
        x = F.pad(x, (0, 0, 0, missing[1], 0, missing[0]))
        x = x.reshape(x.shape[0], rows, by[0], columns, by[1], x.shape[-1])
        return x.permute(2, 4, 0, 1, 3, 5).reshape(-1, rows, columns, x.shape[-1])
    x = F.pad(x, (0, missing[1], 0, missing[0]))
    x = x.reshape(x.shape[0], x.shape[1], rows, by[0], columns, by[1])
    return x.permute(3, 5, 0, 1, 2, 4).reshape(-1, x.shape[1], rows, columns)


@one_node
def batch_to_space(
    x: Tensor,
    phases: tuple[tuple[int, int], ...],
    image: Tensor,
    reduction: tuple[tuple[int, int], tuple[int, int]],
    last: int = -1,
) -> Tensor:
    """Put the phases of a map back: undo several `space_to_batch`, the last one first.

    Args:
        x: the phases in the batch.
        phases: the (rows, columns) of each `space_to_batch`, in their order.
        image: (N, C, H, W), the network's input.
        reduction: of the result, (rows, columns), each as numerator and denominator; cells that
            would look beyond the image are left out, but for those that the original has.
        last: as for `space_to_batch`.
    """
    cells = [x.shape[last - 1 + i] for i in range(2)]
    for down, right in reversed(phases):
        if last == -2:
            parts = x.reshape(down, right, -1, *x.shape[1:]).permute(2, 3, 0, 4, 1, 5)
            x = parts.reshape(parts.shape[0], parts.shape[1] * down, parts.shape[3] * right, -1)
        else:
            parts = x.reshape(down, right, -1, *x.shape[1:]).permute(2, 3, 4, 0, 5, 1)
            x = parts.reshape(parts.shape[0], parts.shape[1], parts.shape[2] * down, -1)
    rows, columns = (
        kept_cells(image.shape[2 + i], reduction[i], cells[i], x.shape[last - 1 + i])
        for i in range(2)
    )
    return x[:, :rows, :columns] if last == -2 else x[:, :, :rows, :columns]


def kept_cells(pixels: int, reduction: tuple[int, int], cells: int, finer_cells: int) -> int:
    """Return how many of a finer map's cells look into the image, the original's included."""
    inside = -(-pixels * reduction[1] // reduction[0])
    least = finer_cells - finer_cells // cells + 1
    return at_most(finer_cells, at_least(inside, least))


@one_node
def original_cells(x: Tensor, by: tuple[int, int]) -> Tensor:
    """Return every by-th cell of a finer map (N, C, H, W): those that the original network has."""
    return x[..., :: by[0], :: by[1]]


@one_node
def first_phase(x: Tensor, count: int, axis: int = 0) -> Tensor:
    """Return the first of `count` phases in the batch along `axis`: what the original computes."""
    return x.narrow(axis, 0, x.shape[axis] // count)


@one_node
def repeat_phases(x: Tensor, count: int, axis: int = 0) -> Tensor:
    """Return the same value for each of `count` phases in the batch along `axis`."""
    return x.repeat([count if i == axis else 1 for i in range(x.dim())])
