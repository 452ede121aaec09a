"""Rebuild the paper's Compute and Params columns from the networks themselves.

    python -m examples.ssd.tables                          # Tables 1, 2 and 3, and the differences
    python -m examples.ssd.tables --rows SSDMnetv1-S1L0 SSD-VGG16
    python -m examples.ssd.tables --json                   # unrounded

Every figure is counted on a network that was just built; the paper's stand beside it.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from torch import Tensor
from tqdm import tqdm

from examples.ssd import counting, model
from examples.ssd.configurations import ROWS, find
from examples.ssd.counting import to_one_decimal, two_decimals
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
    maps = model.grids(ssd)
    cells = (model.printed_cells(row), model.true_cells(ssd.backbone))
    boxes = [model.DefaultBoxes(row, c).unclipped(maps) for c in cells]
    gmacs = counting.compute(model.Network(ssd), row.size) / 1e9
    return Measured(
        name, counting.parameters(ssd), gmacs, maps, len(boxes[0]), *map(outside, boxes)
    )


def outside(boxes: Tensor) -> int:
    """Return how many of (P, 4) boxes are centred outside the image."""
    return int(((boxes[:, :2] < 0) | (boxes[:, :2] > 1)).any(dim=1).sum())


def line(m: Measured) -> tuple[str, ...]:
    """Return a row of a table."""
    paper, maps = printed(m.row), [f"{r}x{c}" if r != c else str(r) for r, c in m.feature_maps]
    verdict, stated = "-", ("", "")
    if paper is not None:
        compute = paper.compute is None or as_printed(m.gmacs) == paper.compute
        note = f"no [{1 + list(EXPLAINED).index(m.row)}]" if m.row in EXPLAINED else "no"
        verdict = "yes" if compute and as_printed(m.params / 1e6) == paper.params else note
        stated = ("" if paper.compute is None else f"{paper.compute:.1f}", f"{paper.params:.1f}")
    own = (f"{m.gmacs:.2f}", stated[0], f"{m.params / 1e6:.2f}", stated[1], verdict)
    return (m.row, *own, *map(str, (m.priors, m.outside, m.outside_true)), " ".join(maps))


def as_printed(value: float) -> float:
    """Round to two decimals, then half up to one, as the paper does."""
    return to_one_decimal(two_decimals(value))


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
    deltas = []
    for row, base, *stated in DELTAS:  # between figures of two decimals, as the paper takes them
        if {row, base} <= measured.keys():
            pair, cells = (measured[row], measured[base]), [f"{row} - {base}"]
            for values, given in zip(
                ([m.gmacs for m in pair], [m.params / 1e6 for m in pair]), stated, strict=True
            ):
                found = two_decimals(values[0]) - two_decimals(values[1])
                cells += [f"{found:+.2f}", "" if given is None else f"{given:+}"]
            deltas.append(cells)
    if deltas:
        parts.append(f"Differences in the text\n{as_table(('', *COLUMNS[1:5]), deltas)}\n")
    notes = [f"[{n}] {row}: {why}." for n, (row, why) in enumerate(EXPLAINED.items(), start=1)
             if row in measured]  # fmt: skip
    return "\n".join([*parts, FOOT, *notes])


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
