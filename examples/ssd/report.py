"""Pictures of evaluations: precision and recall against compute (the paper's Figure 6), and bars for the classes.

    python -m examples.ssd.report base/summary.json S1L6/summary.json S1L0/summary.json --out report

Takes what `evaluate --out` writes.
"""

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from examples.ssd.coco_file import is_length, read_json, shown
from examples.ssd.errors import DataError
from examples.ssd.evaluate import COLUMNS, TITLES
from examples.ssd.formatting import as_table
from examples.ssd.programs import existing_file, new_folder, positive, run

SIZES = {"small": "#d55e00", "medium": "#0072b2", "large": "#009e73"}
NEEDED = ("row", "gmacs", "per_class", *COLUMNS)


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` writes as summary.json."""

    row: str
    gmacs: float
    figures: Mapping[
        str, float
    ]  # by the names in COLUMNS, percent; nan where there were no objects
    per_class: Mapping[str, float]  # AP by class, percent


def read(path: Path) -> Evaluation:
    """One evaluation.

    Raises:
        DataError: the file holds none.
    """
    content = read_json(path)
    missing = [key for key in NEEDED if not isinstance(content, dict) or key not in content]
    if missing:
        raise DataError(
            f"{path} is not a summary.json that `evaluate --out` wrote: it has no {', '.join(missing)}."
        )
    if not isinstance(content["per_class"], dict):
        raise DataError(
            f"{path}: per_class is {shown(content['per_class'])}, not a figure for each class."
        )
    return Evaluation(
        str(content["row"]),
        number(content["gmacs"], "gmacs", path),
        {name: number(content[name], name, path) for name in COLUMNS},
        {
            name: number(value, f"per_class {name!r}", path)
            for name, value in content["per_class"].items()
        },
    )


def number(value: object, name: str, path: Path) -> float:
    """nan for null."""
    if value is not None and not is_length(value):
        raise DataError(f"{path}: {name} is {shown(value)}, not a number.")
    return math.nan if value is None else float(value)  # type: ignore[arg-type]


def draw_compute(evaluations: Sequence[Evaluation], out: Path) -> None:
    """Figure 6: AP and AR of small, medium and large objects over the compute."""
    figure = Figure(figsize=(11, 5), layout="constrained")
    both = figure.subplots(1, 2)
    for axes, (kind, title) in zip(both, (("ap", "AP"), ("ar", "AR")), strict=True):
        draw_against_compute(axes, sorted(evaluations, key=lambda e: e.gmacs), kind, title)
    figure.legend(
        *both[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(SIZES)
    )
    figure.savefig(out, dpi=120)


def draw_against_compute(
    axes: Axes, evaluations: Sequence[Evaluation], kind: str, title: str
) -> None:
    compute = [e.gmacs for e in evaluations]
    for size, colour in SIZES.items():
        axes.plot(
            compute,
            [e.figures[f"{kind}_{size}"] for e in evaluations],
            "o-",
            color=colour,
            label=f"{size} objects",
        )
    for evaluation in evaluations:
        drawn = [
            v for v in (evaluation.figures[f"{kind}_{size}"] for size in SIZES) if not math.isnan(v)
        ]
        where = (evaluation.gmacs, max(drawn, default=0))
        axes.annotate(
            evaluation.row,
            where,
            xytext=(0, 6),
            textcoords="offset points",
            fontsize=7,
            rotation=30,
        )
    axes.set_xlabel("compute (GMACs, the paper's rule)")
    axes.set_ylabel(f"{title} (%)")
    axes.margins(x=0.25, y=0.35)
    axes.set_ylim(bottom=0)


def draw_classes(evaluations: Sequence[Evaluation], out: Path, most: int) -> None:
    """AP of each class, the classes with the largest difference between the networks first."""
    in_all = [n for n in evaluations[0].per_class if all(n in e.per_class for e in evaluations)]
    figures = {n: [e.per_class[n] for e in evaluations] for n in in_all}
    names = sorted(in_all, key=lambda n: min(figures[n]) - max(figures[n]))[:most]
    figure = Figure(
        figsize=(9, 1.5 + 0.12 * len(names) * (1 + len(evaluations))), layout="constrained"
    )
    axes = figure.subplots()
    height = 0.8 / len(evaluations)
    for number, evaluation in enumerate(evaluations):
        places = [i + number * height for i in range(len(names))]
        axes.barh(
            places, [evaluation.per_class[n] for n in names], height=height, label=evaluation.row
        )
    axes.set_yticks([i + 0.4 - height / 2 for i in range(len(names))], names)
    axes.invert_yaxis()
    axes.set_xlabel("AP (%)")
    axes.legend(fontsize="small")
    figure.savefig(out, dpi=120)


def as_text(evaluations: Sequence[Evaluation]) -> str:
    lines = [
        (e.row, f"{e.gmacs:.2f}", *(f"{e.figures[column]:.1f}" for column in COLUMNS))
        for e in evaluations
    ]
    return as_table(("network", "compute", *TITLES), lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "summaries", nargs="+", type=existing_file, help="summary.json of each network"
    )
    parser.add_argument(
        "--classes", type=positive, default=20, help="most classes drawn (default: %(default)s)"
    )
    parser.add_argument(
        "--out", type=new_folder, default=Path("report"), help="folder (default: %(default)s)"
    )
    arguments = parser.parse_args(argv)
    evaluations = [read(path) for path in arguments.summaries]
    arguments.out.mkdir(parents=True, exist_ok=True)
    print(as_text(evaluations))
    draw_compute(evaluations, arguments.out / "compute.png")
    draw_classes(evaluations, arguments.out / "classes.png", arguments.classes)
    print(f"\nSaved {arguments.out}/compute.png and classes.png")


if __name__ == "__main__":
    run(main)
