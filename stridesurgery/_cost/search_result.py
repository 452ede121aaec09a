"""A search's budget, its candidates, and the table of those that no other one beats."""

from collections.abc import Iterator
from dataclasses import dataclass
from numbers import Real
from typing import Any

from stridesurgery._cost.compare import describe
from stridesurgery._cost.latency import Timing
from stridesurgery._hw import HW, hw_short
from stridesurgery._tables import METRICS, SECONDS, Shown, Table, fields_of, ratio
from stridesurgery.errors import RequestError
from stridesurgery.surgery import Surgery


@dataclass(frozen=True)
class Budget:
    """Upper bounds on the cost of inference on one image; None: no bound.

    Example:
        >>> import timm, stridesurgery as ss
        >>> budget = ss.Budget(macs=3e8, peak_bytes=2**20)
        >>> found = ss.search(timm.create_model("resnet18"), budget, taps="layer4", input_size=64)
        >>> [candidate.name for candidate in found]
        ['S1L16']
    """

    macs: float | None = None  #: multiply-accumulates
    activation_bytes: float | None = None  #: of all values that are created
    peak_bytes: float | None = None  #: of activations held at once
    seconds: float | None = None  #: measured on the model's device

    def __post_init__(self) -> None:
        for name, bound in vars(self).items():
            if bound is not None and not is_positive(bound):
                raise RequestError(
                    f"{name} of a Budget is a positive number or None, got {bound!r}"
                )


@dataclass(frozen=True)
class Candidate:
    """One surgery, with the reductions it gives and its cost.

    Example:
        >>> import timm, stridesurgery as ss
        >>> found = ss.search(timm.create_model("resnet18"), 3, taps="layer4", input_size=64)
        >>> best = found[-1]
        >>> best.name, best.reductions, best.macs
        ('S1L16', ((16, 16),), 249221120)
    """

    surgery: Surgery
    reductions: tuple[HW[float], ...]  #: at the taps, (rows, columns)
    macs: int
    activation_bytes: int
    peak_bytes: int | None  #: None if the graph does not tell when the forward code frees values
    first: int  #: number of the first transition that is eliminated
    latency: Timing | None = None  #: measured if seconds are bounded

    @property
    def name(self) -> str:
        """Short description of the surgery."""
        return describe(self.surgery)

    def to_dict(self) -> dict[str, Any]:
        """Return the surgery, its name and its cost as plain data."""
        return {"name": self.name, **fields_of(self)}


@dataclass(frozen=True, repr=False)
class Search(Shown):
    """Result of a search.

    It shows itself as a table. Iteration, length and indexing are those of the Pareto set, `front`.

    Example:
        >>> import timm, stridesurgery as ss
        >>> found = ss.search(timm.create_model("resnet18"), 3, taps="layer4", input_size=64)
        >>> len(found), found[0].name, found.original.macs
        (2, 'S1L11', 148557824)
    """

    model: str
    input_size: HW[int]
    taps: tuple[str, ...]
    original: Candidate  #: the untouched model, as a surgery of no strides
    candidates: tuple[Candidate, ...]  #: all within the budget
    front: tuple[Candidate, ...]  #: the candidates that no other one beats
    refused: tuple[str, ...]  #: transitions that cannot be eliminated, and why
    closest: Candidate | None = None  #: without a front: the cheapest of those nearest to the goal
    _records = "front"

    def __iter__(self) -> Iterator[Candidate]:
        return iter(self.front)

    def __len__(self) -> int:
        return len(self.front)

    def __getitem__(self, number: int) -> Candidate:
        return self.front[number]

    def _table(self) -> Table:
        h, w = self.input_size
        timed = any(c.latency is not None for c in self.front)
        header = (
            "",
            f"reduction at {', '.join(self.taps)}",
            *(m.title for m in METRICS),
            *([SECONDS.title] * timed),
        )
        rows = [reduction_text(c, self.original, timed) for c in (self.original, *self.front)]
        title = (
            f"{self.model} at {h}x{w}: {len(self.front)} of the {len(self.candidates)} surgeries "
            "within the budget are beaten by no other; ratios to the model as it is"
        )
        return Table(title, header, rows, left=(0, 1), notes=[*self._way_out(), *self.refused])

    def _way_out(self) -> list[str]:
        """Return the price of the goal, or what comes nearest to it, if the budget buys nothing."""
        if self.front:
            return []
        if self.closest is None:
            return ["no transition can be eliminated"]
        reductions = " ".join(map(hw_short, self.closest.reductions))
        price = "; ".join(
            f"{metric.title} {ratio(metric.of(self.closest), metric.of(self.original))}"
            for metric in METRICS
        )
        return [
            "nothing is within the budget; the cheapest that comes nearest is "
            f"{self.closest.name}: reduction {reductions} at {', '.join(self.taps)}, at {price} "
            "times the model as it is"
        ]


def reduction_text(candidate: Candidate, base: Candidate, timed: bool) -> tuple[str, ...]:
    row = (
        candidate.name if candidate.surgery.S else "as is",
        " ".join(map(hw_short, candidate.reductions)),
        *(ratio(metric.of(candidate), metric.of(base)) for metric in METRICS),
    )
    if not timed:
        return row
    return (*row, "" if candidate.latency is None else f"{1000 * candidate.latency.median:.1f} ms")


def is_positive(number: Any) -> bool:
    return isinstance(number, Real) and not isinstance(number, bool) and float(number) > 0
