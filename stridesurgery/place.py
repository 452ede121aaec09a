"""Where a value stands on the grid, and the calls that move it."""

import math
from dataclasses import dataclass, replace
from fractions import Fraction

from torch import fx

from stridesurgery import finer
from stridesurgery.geometry import Geometry
from stridesurgery.operators import Operator
from stridesurgery.traced import BATCH

Grid = tuple[int, int]
Reduction = tuple[Fraction, Fraction]


@dataclass(frozen=True)
class Place:
    """Where a value stands: everything that is known of its grid."""

    reduction: Reduction
    grid: Grid | None  # of the last map on the way here; None after adaptive pooling
    geometry: tuple[Geometry, Geometry]  # (rows, columns)
    image: Grid = (0, 0)  # the input's (rows, columns) in pixels
    pooled: bool = False  # made from whole maps (squeeze-excite): what it holds has no grid any more
    resampled: bool = False  # interpolated from a coarser map, so that its cells look where those of that map do
    phases: tuple[tuple[int, int], ...] = ()  # of a dilated network: its batch holds the phases of a finer map
    apart: tuple[tuple[float, float], ...] = ()  # pixels from each of the phases to the next one

    @property
    def finer(self) -> tuple[int, int]:
        """How many times finer the map of all phases is, (rows, columns)."""
        return math.prod(p[0] for p in self.phases), math.prod(p[1] for p in self.phases)

    @property
    def whole(self) -> "Place":
        """Where the map stands when its phases are put together."""
        down, right = self.finer
        return replace(
            self,
            reduction=(self.reduction[0] / down, self.reduction[1] / right),
            grid=self.whole_grid(self.grid) if self.grid is not None else None,
            geometry=(self._whole_geometry(0), self._whole_geometry(1)),
            phases=(),
            apart=(),
        )

    def _whole_geometry(self, axis: int) -> Geometry:
        """Along one axis; behind a later stride phases are no farther apart than before it: cells stand in groups."""
        own, step = self.geometry[axis], self.geometry[axis].step
        phases = [(px[axis], k[axis]) for k, px in zip(self.phases, self.apart, strict=True) if k[axis] > 1]
        for apart, count in sorted(phases, reverse=True):
            step = step / count if math.isclose(apart * count, step) else math.nan
        return replace(own, step=step)

    def whole_grid(self, grid: Grid) -> Grid:
        """The cells of all phases together, as `from_phases` puts them."""
        if not self.phases:
            return grid
        rows, columns = (
            finer.kept_cells(pixels, ((r := reduction / k).numerator, r.denominator), cells, cells * k)
            for pixels, reduction, cells, k in zip(self.image, self.reduction, grid, self.finer, strict=True)
        )
        return rows, columns

    @property
    def batch(self) -> int:
        """The length of the batch axis in a recording."""
        return BATCH * math.prod(self.finer)


@dataclass(frozen=True)
class Site:
    """One call of an operator that has extent, stride, or changes the number of cells."""

    node: fx.Node
    operator: Operator
    name: str  # module path; for a function the path of the calling module and the node's own name
    before: Place
    after: Place
    in_grid: Grid  # cells of the operator's own input
    out_grid: Grid
    channels: int
    local: bool = False  # it runs on windows of the map, laid out over the batch

    @property
    def is_layer(self) -> bool:
        """Whether it has a number: extent or stride beyond 1, and no fixed output size."""
        op = self.operator
        if op.kind in ("adaptive", "global", "pad", "unknown_pad"):
            return False
        if op.kind == "resize":
            return op.scale is not None and max(op.scale) < 1
        removed = any(window.tap for window in op.windows)  # a removed pool keeps its number
        return op.kind == "opaque" or removed or max(*op.kernel, *op.step) > 1

    @property
    def is_strided(self) -> bool:
        """Whether it leads from one grid to the next; what works on pooled maps of fixed size does not."""
        return self.is_layer and not self.before.pooled and self.after.reduction != self.before.reduction
