"""Rebuild the paper's Compute and Params columns from the networks themselves.

    python -m examples.ssd.tables                          # Tables 1, 2 and 3, and the differences
    python -m examples.ssd.tables --rows SSDMnetv1-S1L0 SSD-VGG16
    python -m examples.ssd.tables --json                   # unrounded

Every figure is counted on a network that was just built; the paper's stand beside it.
"""

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from tqdm import tqdm

from examples.ssd import counting, model
from examples.ssd.configurations import ROWS, find
from examples.ssd.paper import DELTAS, TABLE_1, TABLE_2, TABLE_3, printed
from examples.ssd.programs import as_table, run

EXPLAINED = {  # figures that do not come out as printed, and why
    "SSD-VGG16-S1L2": "the rule gives 128.97 (128.98 if the removed pool1 still counts its input), "
    "which rounds to 129.0; the paper prints 128.9, as if cut off, where every other figure is "
    "rounded",
    "PeleeNet": "the parameters printed, 5.4, are those for Pascal VOC's 21 classes, its compute "
    "that of COCO's",
}
COLUMNS = ("row", "compute", "paper", "params", "paper", "agrees", "priors", "outside", "true")
FOOT = """compute: in giga, by the paper's rule (see examples.ssd.counting); params: in millions.
outside: priors centred outside the image at the paper's steps, before clipping; true: with the
steps and offsets of the geometry (--true-anchors in the other programs)."""


@dataclass(frozen=True)
class Measured:
    """One network as built."""

    row: str
    params: int
    gmacs: float  # in giga, by the paper's rule: `counting`
    feature_maps: list[tuple[int, int]]  # (rows, columns), of every predictor
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
    grids = [level.grid for level in maps]
    return Measured(name, counting.parameters(ssd), gmacs, grids, len(centres), *outside)


def as_printed(value: float) -> float:
    """Round to two decimals as the paper's counter prints, then half up to one as a person does."""
    return math.floor(round(value, 2) * 10 + 0.5 + 1e-9) / 10


def line(m: Measured) -> tuple[str, ...]:
    """Return a row of a table."""
    paper, maps = printed(m.row), [f"{r}x{c}" if r != c else str(r) for r, c in m.feature_maps]
    verdict, compute, params = "-", "", ""
    if paper is not None:
        compute, params = f"{paper.compute or ''}", f"{paper.params}"
        found = (as_printed(m.gmacs), as_printed(m.params / 1e6))
        verdict = "yes" if found == (paper.compute or found[0], paper.params) else "no"
        if verdict == "no" and m.row in EXPLAINED:
            verdict = f"no [{1 + list(EXPLAINED).index(m.row)}]"
    own = (f"{m.gmacs:.2f}", compute, f"{m.params / 1e6:.2f}", params, verdict)
    return (m.row, *own, *map(str, (m.priors, m.outside, m.outside_true)), " ".join(maps))


def differences(measured: Mapping[str, Measured]) -> list[list[str]]:
    """Return those that the text states, between figures of two decimals, as the paper takes them."""
    lines = []
    for row, base, compute, params in DELTAS:
        if {row, base} <= measured.keys():
            a, b = measured[row], measured[base]
            gmacs = round(a.gmacs, 2) - round(b.gmacs, 2)
            millions = round(a.params / 1e6, 2) - round(b.params / 1e6, 2)
            stated = ["" if value is None else f"{value:+}" for value in (compute, params)]
            lines.append(
                [f"{row} - {base}", f"{gmacs:+.2f}", stated[0], f"{millions:+.2f}", stated[1]]
            )
    return lines


def as_text(measured: Mapping[str, Measured]) -> str:
    """Return the paper's tables with what was measured."""
    tables = {
        "Table 1": list(TABLE_1),
        "Table 2": list(TABLE_2),
        "Table 3: the networks compared with": list(TABLE_3),
        "Not in a table of the paper": [row for row in measured if printed(row) is None],
    }
    parts = []
    for title, rows in tables.items():
        lines = [line(measured[row]) for row in rows if row in measured]
        if lines:
            parts.append(f"{title}\n{as_table((*COLUMNS, 'maps'), lines, left=(9,))}\n")
    if deltas := differences(measured):
        parts.append(f"Differences in the text\n{as_table(('', *COLUMNS[1:5]), deltas)}\n")
    parts.append(FOOT)
    for number, (row, why) in enumerate(EXPLAINED.items(), start=1):
        if row in measured:
            parts.append(f"[{number}] {row}: {why}.")
    return "\n".join(parts)


def main(argv: Sequence[str] | None = None) -> None:
    """Build the rows that are asked for and print them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", nargs="+", default=list(ROWS), metavar="ROW", help="(all)")
    parser.add_argument("--json", action="store_true", help="a list of objects, nothing rounded")
    arguments = parser.parse_args(argv)
    names = [find(name).name for name in arguments.rows]
    measured = {name: measure(name) for name in tqdm(names, desc="building", leave=False)}
    rows = [asdict(m) for m in measured.values()]
    print(json.dumps(rows, indent=2) if arguments.json else as_text(measured))


if __name__ == "__main__":
    run(main)
