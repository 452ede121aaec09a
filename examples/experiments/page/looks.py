"""What a row looks like in the page's figures: its colour, marker and hatch."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle

from matplotlib.colors import to_hex, to_rgb

from examples.experiments.page.reading import Record
from examples.ssd.configurations import MOBILENET

COLOURS = {  # of a row: that of the first pattern which its name has
    "by hand": "#999999",
    "pixels|Size": "#009e73",  # a larger input
    "dual|Dual|Split|Concat": "#d55e00",
    r"S\dL\d": "#0072b2",  # eliminated, one path
    "": "#000000",  # as is
}
MARKERS = {
    "S1L0": "o",
    "S1L4": "s",
    "S1L6": "^",
    "S2L4-6": "D",
    "S1L12": "v",
    "pyramid": "P",
    "600": "X",
    "": "*",
}
BACKBONES = (
    ("", "o"),
    ("////", "s"),
    ("....", "^"),
    ("xxxx", "D"),
)  # hatch and marker: the paper's, and others
PALEST = 0.8  # white in the colour of a row


@dataclass(frozen=True)
class Look:
    """How a row is drawn."""

    colour: str
    marker: str  # of its points
    hollow: bool = False  # its points
    hatch: str = ""  # of its bars


def colour(row: str) -> str:
    """That of the kind of network."""
    return next(found for pattern, found in COLOURS.items() if re.search(pattern, row))


def paler(shade: str, white: float) -> str:
    red, green, blue = (white + (1 - white) * part for part in to_rgb(shade))
    return to_hex((red, green, blue))


def looks(titles: Sequence[str]) -> dict[str, Look]:
    """Of rows that were not trained: colours by kind, markers by surgery."""
    return {
        title: Look(
            colour(title),
            next(marker for start, marker in MARKERS.items() if title.startswith(start)),
            hollow="enlarged" in title or "by hand" in title,
        )
        for title in titles
    }


def trained_looks(rows: Mapping[str, Record]) -> dict[str, Look]:
    """Colours by kind, paler from row to row of a kind; hatches and markers by backbone; hollow before training."""
    alike = defaultdict(list)
    for title, record in rows.items():
        # By the record's name: the page's title need not say what kind of network it is.
        alike[record.get("backbone", MOBILENET), colour(record["row"])].append(title)
    others = sorted({backbone for backbone, _ in alike} - {MOBILENET})
    marked = dict(zip([MOBILENET, *others], cycle(BACKBONES), strict=False))
    result = {}
    for (backbone, shade), titles in alike.items():
        hatch, marker = marked[backbone]
        for number, title in enumerate(
            sorted(titles, key=len)
        ):  # "as is" before "as is, before training"
            before_training = not rows[title]["settings"]["steps"]
            result[title] = Look(
                paler(shade, PALEST * number / len(titles)), marker, before_training, hatch
            )
    return result
