"""Rebuild the paper's Compute and Params columns from the networks themselves.

    python -m examples.ssd.tables                          # Tables 1, 2 and 3, and the differences the text states
    python -m examples.ssd.tables --rows SSDMnetv1-S1L0 SSD-VGG16
    python -m examples.ssd.tables --json                   # unrounded

Every figure is counted on a network that was just built; the paper's stand beside it.
"""

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tqdm import tqdm

from examples.ssd import counting, model, priors
from examples.ssd.configurations import ROWS, find
from examples.ssd.formatting import as_table
from examples.ssd.paper import DELTAS, TABLE_1, TABLE_2, TABLE_3, Delta, printed
from examples.ssd.programs import run

EXPLAINED = {  # figures that do not come out as printed, and why
    "SSD-VGG16-S1L2": "the rule gives 128.97 (128.98 if the removed pool1 still counts its input), which rounds to "
    "129.0; the paper prints 128.9, as if cut off, where every other figure is rounded",
    "PeleeNet": "the parameters printed, 5.4, are those for Pascal VOC's 21 classes, its compute that of COCO's",
}


@dataclass(frozen=True)
class Measured:
    """One network as built."""

    row: str
    params: int
    gmacs: float  # in giga, by the paper's rule: `counting`
    feature_maps: tuple[tuple[int, int], ...]  # (rows, columns), of every predictor
    priors: int
    outside: int  # of the priors, centred outside the image before clipping
    outside_true: int  # the same with each box where its cell really looks


def measure(name: str) -> Measured:
    row = find(name)
    ssd = model.build(row)
    return Measured(
        row=name,
        params=counting.parameters(ssd),
        gmacs=counting.compute(ssd, row.size) / 1e9,
        feature_maps=tuple(model.map_sizes(ssd)),
        priors=len(ssd.priors),
        outside=priors.outside(model.unclipped_priors(ssd, row), row.size),
        outside_true=priors.outside(model.unclipped_priors(ssd, row.with_true_anchors), row.size),
    )


# ---- as text


HEADER = (
    "row",
    "compute",
    "paper",
    "params",
    "paper",
    "agrees",
    "priors",
    "outside",
    "true",
    "maps",
)


def line(m: Measured) -> tuple[str, ...]:
    paper = printed(m.row)
    return (
        m.row,
        f"{m.gmacs:.2f}",
        "" if paper is None or paper.compute is None else f"{paper.compute:.1f}",
        f"{m.params / 1e6:.2f}",
        "" if paper is None else f"{paper.params:.1f}",
        verdict(m),
        str(m.priors),
        str(m.outside),
        str(m.outside_true),
        " ".join(
            f"{rows}x{columns}" if rows != columns else str(rows)
            for rows, columns in m.feature_maps
        ),
    )


def verdict(m: Measured) -> str:
    """Whether the printed figures come out to their one decimal."""
    paper = printed(m.row)
    if paper is None:
        return "-"
    wanted = [(m.params / 1e6, paper.params)] + (
        [(m.gmacs, paper.compute)] if paper.compute is not None else []
    )
    if all(as_printed(value) == figure for value, figure in wanted):
        return "yes"
    return f"no [{note_number(m.row)}]" if m.row in EXPLAINED else "no"


def note_number(row: str) -> int:
    return 1 + list(EXPLAINED).index(row)


def as_printed(value: float) -> float:
    """The paper rounds to two decimals, then half up to one."""
    return counting.to_one_decimal(counting.two_decimals(value))


def section(title: str, rows: Iterable[str], measured: Mapping[str, Measured]) -> str:
    lines = [line(measured[row]) for row in rows if row in measured]
    return f"{title}\n{as_table(HEADER, lines, left=(0, 9))}\n" if lines else ""


def delta_line(delta: Delta, measured: Mapping[str, Measured]) -> tuple[str, ...]:
    """A difference as the paper takes it: between figures of two decimals."""
    row, base = measured[delta.row], measured[delta.base]
    compute = counting.two_decimals(row.gmacs) - counting.two_decimals(base.gmacs)
    params = counting.two_decimals(row.params / 1e6) - counting.two_decimals(base.params / 1e6)
    return (
        f"{delta.row} - {delta.base}",
        f"{compute:+.2f}",
        "" if delta.compute is None else f"{delta.compute:+}",
        f"{params:+.2f}",
        "" if delta.params is None else f"{delta.params:+}",
    )


def as_text(measured: Mapping[str, Measured]) -> str:
    others = [row for row in measured if printed(row) is None]
    parts = [
        section("Table 1", TABLE_1, measured),
        section("Table 2", TABLE_2, measured),
        section("Table 3: the networks compared with", TABLE_3, measured),
        section("Not in a table of the paper", others, measured),
    ]
    deltas = [delta_line(d, measured) for d in DELTAS if d.row in measured and d.base in measured]
    if deltas:
        parts.append(
            "Differences in the text\n"
            + as_table(("", "compute", "paper", "params", "paper"), deltas)
            + "\n"
        )
    parts.append(
        "compute: in giga, by the paper's rule (see examples.ssd.counting); params: in millions.\n"
        "outside: priors centred outside the image at the paper's steps, before clipping; true: with the steps and\n"
        "offsets of the geometry (--anchors true in the other programs)."
    )
    parts.extend(
        f"[{note_number(row)}] {row}: {why}." for row, why in EXPLAINED.items() if row in measured
    )
    return "\n".join(part for part in parts if part)


# ---- the program


def as_json(measured: Iterable[Measured]) -> str:
    return json.dumps([json_row(m) for m in measured], indent=2)


def json_row(m: Measured) -> dict[str, object]:
    paper = printed(m.row)
    return {
        "row": m.row,
        "params": m.params,
        "gmacs": m.gmacs,
        "feature_maps": m.feature_maps,
        "priors": m.priors,
        "paper_params_m": None if paper is None else paper.params,
        "paper_gflops": None if paper is None else paper.compute,
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--rows", nargs="+", default=list(ROWS), metavar="ROW", help="(default: all)"
    )
    parser.add_argument("--json", action="store_true", help="a list of objects, nothing rounded")
    arguments = parser.parse_args(argv)
    names = [find(name).name for name in arguments.rows]
    measured = {name: measure(name) for name in tqdm(names, desc="building", leave=False)}
    print(as_json(measured.values()) if arguments.json else as_text(measured))


if __name__ == "__main__":
    run(main)
