"""Where the cells of the predictors' maps really look, and how large boxes should be for a grid."""

from collections.abc import Iterable, Sequence
from math import log2

from torch import nn

from examples.ssd.priors import Cells, Pair

# What the paper's rows have in common, by the number of halvings of a 300 pixel image: a map with a step of
# 4 pixels gets boxes of 5, one of 8 pixels 10, one of 16 pixels 45, and so on; see `sizes_for`.
_SIZES = {2: 5, 3: 10, 4: 45, 5: 90, 6: 135, 7: 180, 8: 225, 9: 270, 10: 315}
_PAPER_SIDE = 300


def through(cells: Cells, count: tuple[int, int], convs: Iterable[nn.Conv2d]) -> Cells:
    """The cells after some convolutions, the last of which has `count` of them."""
    step, first = cells.step, cells.first
    for conv in convs:
        first = _pair(first[i] + step[i] * _shift(conv, i) for i in (0, 1))
        step = _pair(step[i] * conv.stride[i] for i in (0, 1))
    return Cells(count, step, first)


def _shift(conv: nn.Conv2d, axis: int) -> float:
    """From an incoming cell to the centre of what the outgoing cell of the same number sees, in cells."""
    padding = conv.padding[axis]
    assert isinstance(padding, int)
    return conv.dilation[axis] * (conv.kernel_size[axis] - 1) / 2 - padding


def _pair(values: Iterable[float]) -> Pair:
    rows, columns = values
    return rows, columns


def sizes_for(steps: Sequence[float], side: int) -> tuple[float, ...]:
    """Box sizes for maps with those steps (pixels), the paper's rule: one more size than maps.

    For 300 pixels and steps that double these are the sizes of the paper's rows (base 16, ...: 45, 90, 135, ...).
    """
    halvings = [min(max(round(log2(step)), min(_SIZES)), max(_SIZES) - 1) for step in steps]
    ladder = [_SIZES[h] for h in (*halvings, halvings[-1] + 1)]
    return tuple(size * side / _PAPER_SIDE for size in ladder)
