"""Grid information of values, and the calls that change the grid."""

import math
from dataclasses import dataclass, replace
from fractions import Fraction

import torch
from torch import fx

from stridesurgery._analysis.geometry import Geometry
from stridesurgery._hw import HW, hw_text
from stridesurgery._node import BATCH, shape_of, tensors_in
from stridesurgery.errors import OperatorError
from stridesurgery.ops import SAMPLERS, Operator, kept_cells


@dataclass(frozen=True)
class GridInfo:
    """Everything that is known of the grid of a value."""

    reduction: HW[Fraction]
    grid: HW[int] | None  # cells of the last map before this value; None after adaptive pooling
    geometry: tuple[Geometry, Geometry]  # (rows, columns)
    image: HW[int] = (0, 0)  # the input's (rows, columns) in pixels
    pooled: bool = False  # computed from whole maps (squeeze-excite), so without a grid
    resampled: bool = False  # interpolated from a coarser map: its cells look where that map looks
    phases: tuple[tuple[int, int], ...] = ()  # phases of a finer map in the batch (dilated)
    phase_offsets: tuple[tuple[float, float], ...] = ()  # pixels from each phase to the next

    @property
    def finer(self) -> tuple[int, int]:
        """The factors by which the map of all phases is finer, (rows, columns)."""
        return math.prod(p[0] for p in self.phases), math.prod(p[1] for p in self.phases)

    @property
    def reassembled(self) -> "GridInfo":
        """The grid information of the map after its phases are put together."""
        down, right = self.finer
        return replace(
            self,
            reduction=(self.reduction[0] / down, self.reduction[1] / right),
            grid=self.reassembled_grid(self.grid) if self.grid is not None else None,
            geometry=(self._reassembled_geometry(0), self._reassembled_geometry(1)),
            phases=(),
            phase_offsets=(),
        )

    def _reassembled_geometry(self, axis: int) -> Geometry:
        """Return the geometry of the reassembled map along one axis.

        Behind a later stride the phases are no farther apart than before it. The cells then stand
        in groups, and the step is nan.
        """
        own, step = self.geometry[axis], self.geometry[axis].step
        phases = [
            (px[axis], k[axis])
            for k, px in zip(self.phases, self.phase_offsets, strict=True)
            if k[axis] > 1
        ]
        for phase_offsets, count in sorted(phases, reverse=True):
            step = step / count if math.isclose(phase_offsets * count, step) else math.nan
        return replace(own, step=step)

    def reassembled_grid(self, grid: HW[int]) -> HW[int]:
        """Return the cells of all phases together, as `batch_to_space` puts them."""
        if not self.phases:
            return grid
        rows, columns = (
            kept_cells(pixels, ((r := reduction / k).numerator, r.denominator), cells, cells * k)
            for pixels, reduction, cells, k in zip(
                self.image, self.reduction, grid, self.finer, strict=True
            )
        )
        return rows, columns

    @property
    def batch(self) -> int:
        """The length of the batch axis in a recording."""
        return BATCH * math.prod(self.finer)


@dataclass(frozen=True)
class SpatialOp:
    """One call of an operator with extent or stride, or that changes the number of cells."""

    node: fx.Node
    operator: Operator
    name: str  # module path; for a function the path of the calling module and the node's own name
    before: GridInfo
    after: GridInfo
    in_grid: HW[int]  # cells of the operator's own input
    out_grid: HW[int]
    channels: int
    local: bool = False  # runs on windows of the map, which are laid out over the batch

    @property
    def is_layer(self) -> bool:
        """Tell whether the operator has a layer number.

        It has one if its extent or stride is beyond 1 and its output size is not fixed.
        """
        op = self.operator
        if op.kind in ("adaptive", "global", "pad", "unknown_pad"):
            return False
        if op.kind == "resize":
            return op.scale is not None and max(op.scale) < 1
        removed = any(window.tap for window in op.windows)  # a removed pool keeps its number
        return op.kind == "opaque" or removed or max(*op.kernel, *op.step) > 1

    @property
    def is_strided(self) -> bool:
        """Tell whether the operator leads from one grid to the next.

        An operator on pooled maps of fixed size does not.
        """
        return (
            self.is_layer
            and not self.before.pooled
            and self.after.reduction != self.before.reduction
        )


def channel_axis(node: fx.Node, place: GridInfo) -> int | None:
    """Return the axis of a map's channels, or None if the value is not a map."""
    shape = shape_of(node) or ()
    if len(shape) != 4 or place.pooled or place.grid is None or shape[0] % BATCH:
        return None
    if shape[2:] == place.grid == shape[1:3]:
        return _axis_by_history(
            node, math.prod(place.grid)
        )  # equally many channels, rows and columns
    if shape[2:] == place.grid:
        return 1
    return 3 if shape[1:3] == place.grid else None


def _axis_by_history(node: fx.Node, cells: int) -> int:
    """Return the axis to which the last permutation has moved the channels.

    After a convolution the channels come first (axis 1), after tokens where the tokens have them.
    """
    while sources := tensors_in(node.args[:1]):
        tokens = shape_of(sources[0]) or ()
        if len(tokens) == 3 and cells in tokens[1:]:
            return 3 if tokens[1] == cells else 1
        orders = {(0, 2, 3, 1): 3, (0, 3, 1, 2): 1}
        order = (
            tuple(node.args[1])
            if len(node.args) == 2 and isinstance(node.args[1], (tuple, list))
            else node.args[1:]
        )
        if node.target in ("permute", torch.permute) and order in orders:
            return orders[order]  # type: ignore[index]
        if node.op == "call_module" and shape_of(node) != shape_of(sources[0]):
            return 1
        node = sources[0]
    return 1


def check_cells(name: str, operator: Operator, grid_in: HW[int], grid_out: HW[int]) -> None:
    """Hold an operator's windows against the recorded shapes.

    Raises:
        OperatorError: the operator makes another number of cells.
    """
    if operator.kind not in SAMPLERS:
        return
    said = tuple(w.finer_cells(n) for w, n in zip(operator.windows, grid_in, strict=True))
    # at stride 1, torch's padding="same" of an even kernel pads one cell more on the right
    if any(
        abs(a - b) > (w.stride == 1)
        for a, b, w in zip(said, grid_out, operator.windows, strict=True)
    ):
        raise OperatorError(
            f"{name} ({operator.name}) makes {hw_text(grid_out)} cells of {hw_text(grid_in)}, but "
            f"by its entry in the table of operators it makes {hw_text(said)}: correct `read` of "
            "its register_operator"
        )
