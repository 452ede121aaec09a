"""Group strided layers into transitions: the layers that must change together.

The reductions in a network form a chain r0 < r1 < ... Eliminating the transition that begins at
reduction l = r_i replaces every reduction r by f(r). Here f(r) = r where r <= l, and f(r) = r / k
where r > l. The new reduction of a map is a function of its old one. Maps that agreed before (at an
addition, a concatenation, a product) therefore agree after. A layer from r to r' gets the stride
f(r') / f(r). A fixed upsampling changes likewise, and nothing else changes.
"""

from dataclasses import dataclass
from fractions import Fraction

from stridesurgery._analysis.grid import SpatialOp
from stridesurgery._hw import HW
from stridesurgery.errors import OperatorError


@dataclass(frozen=True)
class ReductionStep:
    """One step of the chain of reductions, and the spatial operators that cross it."""

    before: HW[Fraction]
    after: HW[Fraction]
    spatial_ops: tuple[int, ...]  # indices into the tuple of spatial operators

    @property
    def factor(self) -> HW[Fraction]:
        """The factors by which the reduction grows, (rows, columns)."""
        return self.after[0] / self.before[0], self.after[1] / self.before[1]


def find_transitions(spatial_ops: tuple[SpatialOp, ...]) -> tuple[ReductionStep, ...]:
    """Return the transitions of a network, from the input on.

    Raises:
        OperatorError: two paths of the network reduce rows and columns in different orders.
    """
    strided = [s for s in spatial_ops if s.is_strided]
    chain = sorted({r for s in strided for r in (s.before.reduction, s.after.reduction)})
    for low, high in zip(chain, chain[1:], strict=False):
        if not _within(low, high):
            raise OperatorError(
                f"the maps' reductions {_pair(low)} and {_pair(high)} are not one a multiple of "
                "the other"
            )
    return tuple(
        ReductionStep(
            low,
            high,
            tuple(i for i, s in enumerate(spatial_ops) if s.is_strided and crosses(s, low)),
        )
        for low, high in zip(chain, chain[1:], strict=False)
    )


def crosses(site: SpatialOp, level: HW[Fraction]) -> bool:
    """Tell whether an operator leads from reductions up to `level` to larger ones."""
    return _within(site.before.reduction, level) and not _within(site.after.reduction, level)


def beyond(r: HW[Fraction], level: HW[Fraction]) -> bool:
    """Tell whether maps of reduction r come after the transition that begins at `level`."""
    return not _within(r, level)


def _within(r: HW[Fraction], level: HW[Fraction]) -> bool:
    return r[0] <= level[0] and r[1] <= level[1]


def _pair(r: HW[Fraction]) -> str:
    return f"({float(r[0]):g}, {float(r[1]):g})"
