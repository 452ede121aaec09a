"""Train a detector on COCO or any set in its format.

    python -m examples.ssd.train --config SSDMnetv1-S1L0 --data COCO_FOLDER --out run
    python -m examples.ssd.train --backbone resnet18 --surgery S1L0 --data COCO_FOLDER --out run
    python -m examples.ssd.train --config SSDMnetv1 --data COCO_FOLDER --out run --resume
    torchrun --nproc-per-node 4 -m examples.ssd.train --config SSDMnetv1 --data COCO_FOLDER --out run

The paper's recipe belongs to the row: SGD, a cosine per epoch, SSD's augmentation. A run that is stopped by a signal,
or killed, goes on with --resume as if it had not been; a second signal stops it at once. On several machines the first
one has the checkpoints and the logs; the others need only the images.

Several processes learn what one would from the same batch, up to rounding, but for batch norms: each process
normalises by its own images, as is usual, unless --sync-norms or --freeze-norms is given.
"""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace

import torch

from examples.ssd.annotations import Annotations, Split, read_annotations
from examples.ssd.arguments import (
    options_from,
    parse_arguments,
    recipe_from,
    training_split,
    validation_split,
)
from examples.ssd.errors import RequestError
from examples.ssd.evaluate import COLUMNS, as_text, check_categories, detect_all, evaluated
from examples.ssd.evaluation import load_truth
from examples.ssd.journal import Journal
from examples.ssd.loop import run_epoch
from examples.ssd.processes import Processes, processes
from examples.ssd.programs import detector, run, wanted_device
from examples.ssd.starting import new_detector
from examples.ssd.stop import Stop
from examples.ssd.training import Training


@dataclass(frozen=True)
class Validation:
    """What to evaluate on, and when."""

    split: Split
    annotations: Annotations
    every: int  # epochs; 0: only at the end

    def due(self, training: Training) -> bool:
        """Whether an evaluation belongs to where the run stands."""
        between = training.progress.step > 0 or training.progress.epoch == 0
        on_the_way = self.every > 0 and training.progress.epoch % self.every == 0
        return not between and (training.finished or on_the_way)


def train(arguments: argparse.Namespace, everyone: Processes, stop: Stop) -> None:
    row = detector(arguments)
    annotations = training_annotations(arguments)
    if everyone.first:
        print(f"{row.name} on {annotations.said(row.size)}")
    validation = checked_validation(arguments, annotations)
    ssd = new_detector(arguments, row, annotations, say=everyone.first)
    recipe, options = recipe_from(arguments, row), options_from(arguments)
    training = Training(ssd, row, recipe, annotations, everyone, options, arguments.out, stop)
    begin(training, arguments.resume)
    with opened_journal(training, arguments) as journal:
        every_epoch(training, validation, journal)


def training_annotations(arguments: argparse.Namespace) -> Annotations:
    annotations = read_annotations(training_split(arguments)).with_objects()
    return replace(annotations, records=annotations.records[: arguments.first])  # None: all


def checked_validation(arguments: argparse.Namespace, trained_on: Annotations) -> Validation | None:
    """What there is to evaluate on; its faults are told now, not after the first epochs."""
    split = validation_split(arguments)
    if split is None:
        return None
    annotations = read_annotations(split)
    check_categories(trained_on.categories, annotations.categories)
    load_truth(split.annotations)
    return Validation(split, annotations, arguments.eval_every)


def begin(training: Training, resume: bool) -> None:
    """Go on with the run in the folder, or see that there is none."""
    first, path = training.everyone.first, training.checkpoint
    if not resume:
        if training.everyone.from_first(path.exists):
            raise RequestError(
                f"{path} holds another run: go on with it by --resume, or give another --out."
            )
        return
    different, progress = training.resume(), training.progress
    if first and training.finished:
        print("The run is finished.")
    elif first:
        print(f"Going on at epoch {progress.epoch + 1}, step {progress.step}")
        if different is not None:
            print(
                f"The losses will not be quite those of an uninterrupted run, which was with {different}."
            )


@contextmanager
def opened_journal(training: Training, arguments: argparse.Namespace) -> Iterator[Journal | None]:
    """The first process writes it."""
    if not training.everyone.first:
        yield None
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    with closing(Journal(arguments.out, training.steps_done, arguments.tensorboard)) as journal:
        yield journal


def every_epoch(training: Training, validation: Validation | None, journal: Journal | None) -> None:
    """Train to the end of the recipe, evaluating in between, also what a stop has left out."""
    while True:
        if (
            validation is not None
            and validation.due(training)
            and not evaluated_before(training, journal)
        ):
            with training.stop.at_once():
                report(training, validation, journal)
        if training.finished:
            return
        if not run_epoch(training, journal, shown=training.everyone.first):
            if training.everyone.first:
                print(f"Stopped; {training.checkpoint} holds the run, --resume goes on with it.")
            return


def evaluated_before(training: Training, journal: Journal | None) -> bool:
    return training.everyone.from_first(
        lambda: journal is not None and journal.has("evaluation", training.steps_done - 1)
    )


def report(training: Training, validation: Validation, journal: Journal | None) -> None:
    """Evaluate on all processes together, with the averaged weights if there are any; the first one tells."""
    with training.averaged() as ssd:
        found = detect_all(
            ssd, validation.annotations, training.everyone, workers=training.options.workers
        )
    if journal is None:
        return
    summary, epoch = evaluated(validation.split, found), training.progress.epoch
    print(as_text([(f"after epoch {epoch}", summary)]))
    figures = {name: getattr(summary, name) for name in COLUMNS}
    journal.write("evaluation", training.steps_done - 1, {"epoch": epoch, **figures})


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    if arguments.deterministic:
        os.environ.setdefault(
            "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
        )  # cuBLAS has to be told before it starts
        torch.use_deterministic_algorithms(True)
    stop = Stop()
    with processes(wanted_device(arguments.device)) as everyone, stop.on_signals():
        train(arguments, everyone, stop)
    if stop.signal is not None:
        sys.exit(stop.code)


if __name__ == "__main__":
    run(main)
