"""Rebuild the paper's Compute and Params columns from the networks themselves.

    python -m examples.ssd.tables                          # Tables 1, 2 and 3
    python -m examples.ssd.tables --rows SSDMnetv1-S1L0 SSD-VGG16

Every figure is counted on a network that was just built; the paper's stand beside it.
"""

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tqdm import tqdm

from examples.ssd import counting, model
from examples.ssd.configurations import ROWS, find
from examples.ssd.paper import TABLE_1, TABLE_2, TABLE_3
from examples.ssd.programs import as_table, run

PRINTED = {**TABLE_1, **TABLE_3, **TABLE_2}  # where a row is in two tables, with its compute
COLUMNS = ("row", "compute", "paper", "params", "paper", "agrees", "priors", "outside", "true")
FOOT = """compute: in giga, by the paper's rule (see examples.ssd.counting); params: in millions.
agrees: docs/paper.md says why SSD-VGG16-S1L2 and PeleeNet do not.
outside: priors centred outside the image at the paper's steps, before clipping; true: with the
steps and offsets of the geometry (--true-anchors in the other programs)."""


@dataclass(frozen=True)
class Measured:
    """One network as built."""

    row: str
    params: int
    gmacs: float  # in giga, by the paper's rule: `counting`
    sides: list[int]  # of every predictor's map, cells
    priors: int
    outside: int  # of the priors, centred outside the image before clipping
    outside_true: int  # the same with each box where its cell really looks


def measure(name: str) -> Measured:
    """Build a row and count."""
    row = find(name)
    ssd = model.build(row)
    maps, outside = model.maps(ssd), []
    for kind in (row, replace(row, steps=None)):
        centres = model.DefaultBoxes(kind, maps).boxes[:, :2]
        outside.append(int(((centres < 0) | (centres > 1)).any(dim=1).sum()))
    gmacs = counting.compute(model.Network(ssd), row.size) / 1e9
    sides = [level.grid[0] for level in maps]
    return Measured(name, counting.parameters(ssd), gmacs, sides, len(centres), *outside)


def as_printed(value: float) -> float:
    """Round to two decimals as the paper's counter prints, then half up to one as a person does."""
    return math.floor(round(value, 2) * 10 + 0.5 + 1e-9) / 10


def line(m: Measured) -> tuple[str, ...]:
    """Return a row of a table."""
    verdict, compute, params = "-", "", ""
    if m.row in PRINTED:
        printed = PRINTED[m.row]
        params, compute = (str(value or "") for value in printed)
        found = (as_printed(m.params / 1e6), as_printed(m.gmacs) if printed[1] else None)
        verdict = "yes" if found == printed else "no"
    own = (f"{m.gmacs:.2f}", compute, f"{m.params / 1e6:.2f}", params, verdict)
    priors = (str(m.priors), str(m.outside), str(m.outside_true))
    return (m.row, *own, *priors, " ".join(map(str, m.sides)))


def as_text(measured: Mapping[str, Measured]) -> str:
    """Return the paper's tables with what was measured."""
    tables = {
        "Table 1": list(TABLE_1),
        "Table 2": list(TABLE_2),
        "Table 3: the networks compared with": list(TABLE_3),
        "Not in a table of the paper": [row for row in measured if row not in PRINTED],
    }
    parts = []
    for title, rows in tables.items():
        lines = [line(measured[row]) for row in rows if row in measured]
        if lines:
            parts.append(f"{title}\n{as_table((*COLUMNS, 'maps'), lines, left=(9,))}\n")
    return "\n".join([*parts, FOOT])


def main(argv: Sequence[str] | None = None) -> None:
    """Build the rows that are asked for and print them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", nargs="+", default=list(ROWS), metavar="ROW", help="(all)")
    rows = parser.parse_args(argv).rows
    print(as_text({row: measure(row) for row in tqdm(rows, desc="building", leave=False)}))


if __name__ == "__main__":
    run(main)
