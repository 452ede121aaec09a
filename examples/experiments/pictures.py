"""Shareable photographs with most objects that only the fine path finds, and with most that the fine path alone loses.

    python -m examples.experiments.pictures --work runs     # after `training_free` with the same --work

Chosen to show what happens, not how often: among the photographs whose licence allows a picture made of them to be
shown, those with most objects that one row finds with a score of 0.5 or more and the other does not; what it loses in
exchange counts nothing, nor do other scores. Written to --work and not meant to be committed: the photographs have
their own licences. docs/results gets the first of each kind without the photograph, the annotated boxes in its place.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from examples.experiments import records
from examples.experiments.training_free import Experiment
from examples.experiments.views import AS_IS
from examples.ssd.programs import positive, run
from examples.ssd.stock_picture import Comparison, choose, draw
from examples.training_free import data_folder

PAIRS = {  # what is drawn: left, right
    "found by the fine path": (AS_IS, "S1L0 dual path"),
    "lost by the fine path alone": ("S1L0", AS_IS),
}


def file_name(title: str) -> str:
    """In docs/results."""
    return f"{title.replace(' ', '_')}.png"


def best(experiment: Experiment, left: str, right: str, count: int) -> list[Comparison]:
    """The shareable photographs with most objects that only the right one finds at `SHOWN_SCORE`, most first."""
    base, other = experiment.found(left), experiment.found(right)
    found: list[Comparison] = []
    for _ in range(count):
        comparison = choose(experiment.truth, base, other)
        if comparison is None:
            break
        found.append(comparison)
        other = [d for d in other if d["image_id"] != comparison.image["id"]]
    return found


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder of training_free")
    parser.add_argument(
        "--count", type=positive, default=4, help="pictures of each kind (default: %(default)s)"
    )
    parser.add_argument(
        "--results", type=Path, default=records.RESULTS, help="(default: docs/results)"
    )
    arguments = parser.parse_args(argv)
    experiment = Experiment(data_folder(), arguments.work, arguments.work, None)
    for title, (left, right) in PAIRS.items():
        for number, comparison in enumerate(
            best(experiment, left, right, arguments.count), start=1
        ):
            out = arguments.work / "pictures" / f"{title} {number}.png"
            out.parent.mkdir(parents=True, exist_ok=True)
            draw(comparison, experiment.truth, experiment.folder, (left, right), out)
            if number == 1:
                draw(
                    comparison,
                    experiment.truth,
                    None,
                    (left, right),
                    arguments.results / file_name(title),
                )
            print(f"{out}: {len(comparison.gained)} objects")


if __name__ == "__main__":
    run(main)
