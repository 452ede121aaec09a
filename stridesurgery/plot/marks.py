"""Marks that differ in black-and-white print, and for readers who are colour-blind."""

from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any


@dataclass(frozen=True)
class Mark:
    """Style of one line."""

    colour: str
    marker: str
    dash: Any  # a linestyle of matplotlib


GREY = "#8a8a8a"
AS_IS = Mark(GREY, "o", "-")  # the network before any surgery
# the colours of Okabe and Ito (2008) without yellow, which is too pale on paper
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("s", "^", "D", "v", "P", "X", "*")
DASHES = ("-", (0, (5, 2)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)))

STYLE: dict[Any, Any] = {  # for rc_context: small fonts, as in a printed column
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.fontsize": 8,
    "legend.frameon": False,
}


def marks(count: int) -> list[Mark]:
    """Return `count` marks. Neighbours differ in colour, marker and dash."""
    return [
        Mark(colour, marker, dash)
        for colour, marker, dash in islice(
            zip(cycle(COLOURS), cycle(MARKERS), cycle(DASHES), strict=False), count
        )
    ]
