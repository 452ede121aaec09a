"""Marks that can be told apart in print and by the colour-blind."""

from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any


@dataclass(frozen=True)
class Mark:
    """The style of one drawn thing."""

    colour: str
    marker: str
    dash: Any  # as matplotlib has it


GREY = "#8a8a8a"
AS_IS = Mark(GREY, "o", "-")  # the network before any surgery
# the colours of Okabe and Ito (2008), but for yellow, which is too pale on paper
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("s", "^", "D", "v", "P", "X", "*")
DASHES = ("-", (0, (5, 2)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)))

STYLE: dict[Any, Any] = {  # for rc_context: small type, as in a printed column
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.fontsize": 8,
    "legend.frameon": False,
}


def marks(count: int) -> list[Mark]:
    """As many marks, neighbours different in all three."""
    return [
        Mark(colour, marker, dash)
        for colour, marker, dash in islice(zip(cycle(COLOURS), cycle(MARKERS), cycle(DASHES), strict=False), count)
    ]
