"""The arithmetic of one sliding window along one axis, at its own stride and at a fraction of it.

The padding rule. An operator with kernel K, dilation d, stride s and left padding `left` turns H
cells into o. At stride s/k keep `left` and pad on the right up to

    right = (n - 1) * (s/k) + d*(K - 1) + 1 - H - left        (negative: crop)

for n cells. Cell i*k of the finer output then reads exactly the cells that cell i of the original
reads, so the output's `[::k]` is the original's output whatever n is; n = k*o makes the map exactly
k times larger. On sizes that the stride does not divide, n stops at ceil(H*k/s): no border is
invented.
"""

from typing import NamedTuple

from torch import SymInt, sym_max, sym_min


def at_least(a: int, b: int) -> int:
    """Return the larger of two lengths, which may be symbolic."""
    return sym_max(a, b) if isinstance(a, SymInt) or isinstance(b, SymInt) else max(a, b)  # type: ignore[return-value]


def at_most(a: int, b: int) -> int:
    """Return the smaller of two lengths, which may be symbolic."""
    return sym_min(a, b) if isinstance(a, SymInt) or isinstance(b, SymInt) else min(a, b)  # type: ignore[return-value]


class Window(NamedTuple):
    """A sliding window along one axis; lengths are in cells of the incoming grid."""

    kernel: int = 1  #: cells
    stride: int = 1  #: of the original operator
    padding: int | str = (
        0  #: on the left, a crop if negative; "same" is computed from the size, as TensorFlow does
    )
    dilation: int = 1  #: from one cell that is read to the next
    ceil: bool = False  #: a window may start inside and end beyond the padded map
    finer: int = 1  #: k, by which the stride is divided
    #: read one cell near the window's centre instead of the whole window (a removed pool)
    tap: bool = False

    @property
    def step(self) -> int:
        """The stride that remains."""
        return self.stride // self.finer

    @property
    def span(self) -> int:
        """Cells between a window's first and last cell, both included."""
        return self.dilation * (self.kernel - 1) + 1

    def left(self, size: int) -> int:
        """Return the padding before a map of `size` cells, at the original stride."""
        if self.padding == "same":
            total = at_least((-(-size // self.stride) - 1) * self.stride + self.span - size, 0)
            return total // 2
        return int(self.padding)

    def cells(self, size: int) -> int:
        """Return the original operator's output on `size` cells (0 or less: too small a map)."""
        if self.padding == "same":
            return -(-size // self.stride)
        left = int(self.padding)
        # a crop (negative padding) is on the left only
        room = size + left + max(left, 0) - self.span
        if not self.ceil:
            return room // self.stride + 1
        out = -(-room // self.stride) + 1
        # torch: the last window must start inside the map or its left padding
        return out - 1 if (out - 1) * self.stride >= size + left else out

    def finer_cells(self, size: int) -> int:
        """Return the output at the remaining stride: k times `cells`, less the invented border."""
        cells = self.cells(size)
        # the original itself reads beyond the border
        if self.finer == 1 or cells > -(-size // self.stride):
            return self.finer * cells
        return at_most(self.finer * cells, -(-size // self.step))

    @property
    def centre(self) -> int:
        """The cell of the window that a removed pool keeps, counted from the window's first."""
        left = self.padding if isinstance(self.padding, int) else 0
        return max(self.dilation * ((self.kernel - 1) // 2), left)

    def pads(self, size: int) -> tuple[int, int]:
        """(left, right) padding that gives `finer_cells` at stride `step` (negative: crop)."""
        left, span = self.left(size), self.span
        if self.tap:
            left, span = left - self.centre, 1
        return left, (self.finer_cells(size) - 1) * self.step + span - size - left

    def is_symmetric(self) -> bool:
        """Return True if the plain operator with this padding and stride is the finer one."""
        if self.tap or self.padding == "same":
            return False
        # beyond small-size effects `pads` is periodic in the stride
        start = 4 * self.span * self.stride
        sizes = range(start, start + self.stride)
        return all(self.pads(size) == (self.padding, self.padding) for size in sizes)

    def at(self, finer: int, tap: bool = False) -> "Window":
        """Return the window with its remaining stride divided by `finer` (`tap`: one cell read)."""
        return self._replace(finer=self.finer * finer, tap=tap or self.tap)

    def coarser(self, by: int, whole: bool) -> "Window":
        """Return the window at `by` times its stride; `whole`: covering the same on a finer map."""
        if not whole:
            return self._replace(stride=self.stride * by)
        padding = self.padding if isinstance(self.padding, str) else self.padding * by
        return self._replace(kernel=self.kernel * by, stride=self.stride * by, padding=padding)

    def dilated(self, by: int) -> "Window | None":
        """Return the window that reads the same on a map `by` times finer; None if unknown."""
        if by == 1:
            return self
        if self.finer > 1 or self.tap or self.ceil:
            return None
        if isinstance(self.padding, int):
            return self._replace(
                stride=self.stride * by,
                padding=self.padding * by,
                dilation=self.dilation * by,
                finer=by,
            )
        symmetric = self.stride == 1 and self.span % 2 == 1  # whatever the size
        return self._replace(dilation=self.dilation * by) if symmetric else None


Windows = tuple[Window, Window]  # (rows, columns)
