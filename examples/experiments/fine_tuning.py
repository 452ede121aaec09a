"""The stock COCO detector under each surgery, trained further on COCO images: same images, steps and augmentation.

    python -m examples.experiments.fine_tuning --work runs                      # all rows, three seeds: for a GPU
    python -m examples.experiments.fine_tuning --work runs --rows base S1L0 --seeds 0 --first 300 --epochs 3 --batch 4

Trains on `coco_train`, evaluates on `coco_public`. A run that was stopped goes on with the same command; a row whose
result is there is skipped. With --epochs 0 nothing is trained: where every row starts; run before the rest, the rest is
compared with it.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from examples.experiments import records, trained
from examples.experiments.stock_training import ROWS, Row, build
from examples.ssd.annotations import Annotations, Split, read_annotations
from examples.ssd.configurations import Configuration, Recipe, find
from examples.ssd.data import Share
from examples.ssd.loop import run_epoch
from examples.ssd.model import SSD
from examples.ssd.options import Options
from examples.ssd.processes import Processes
from examples.ssd.programs import run, wanted_device
from examples.ssd.stock import load_stock
from examples.ssd.stop import Stop
from examples.ssd.training import Training
from examples.training_free import data_folder

APART = ("person", "car")
SETS = ("coco_train", "coco_public")
UNTRAINED = "untrained"
RIVALS = ("base", "Size600", "S1L0")  # what a row is compared with, if it comes later


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS), metavar="ROW")
    trained.add_recipe(parser, epochs=20)
    return parser.parse_args(argv)


def described(row: Row) -> Configuration:
    """What a checkpoint says of its network."""
    return replace(find("SSDMnetv1"), name=f"stock {row.name}", size=row.size, surgery=row.surgery)


def train_row(
    ssd: SSD,
    row: Row,
    seed: int,
    annotations: Annotations,
    arguments: argparse.Namespace,
    folder: Path,
) -> SSD:
    """The network after the last step; a run that was stopped goes on."""
    everyone, stop = Processes(Share(), wanted_device(arguments.device)), Stop()
    recipe = Recipe(
        learning_rate=arguments.lr,
        epochs=arguments.epochs,
        batch=arguments.batch,
        warmup=arguments.warmup,
    )
    options = Options(
        seed=seed,
        augment=not arguments.no_augment,
        workers=arguments.workers,
        channels_last=True,
        amp=arguments.amp,
    )
    training = Training(ssd, described(row), recipe, annotations, everyone, options, folder, stop)
    if training.checkpoint.is_file():
        training.resume()
    with stop.on_signals():
        while not training.finished:
            if not run_epoch(training, None, shown=True):
                sys.exit(
                    f"Stopped; {training.checkpoint} holds the run, the same command goes on with it."
                )
    return training.ssd


@dataclass(frozen=True)
class Run:
    """One row with one seed."""

    row: Row
    seed: int
    arguments: argparse.Namespace

    @property
    def kind(self) -> str:
        return f"seed{self.seed}" if self.arguments.epochs else UNTRAINED

    @property
    def record(self) -> Path:
        return Path(self.arguments.results / "fine_tuning" / f"{self.row.name}-{self.kind}.json")

    def folder(self, row: str, kind: str) -> Path:
        """Of another row that was treated alike, or of one before training."""
        return Path(self.arguments.work / "fine_tuning" / f"{row}-{kind}")

    @property
    def kept(self) -> Path:
        return self.folder(self.row.name, self.kind) / trained.DETECTIONS

    def rivals(self) -> dict[str, Path]:
        """The detections of what the row is compared with."""
        found = {
            other: self.folder(other, self.kind) for other in trained.rivals(self.row.name, RIVALS)
        }
        if self.arguments.epochs:
            found |= {
                f"{name} before training": self.folder(name, UNTRAINED)
                for name in (self.row.name, RIVALS[0])
            }
        return {name: folder / trained.DETECTIONS for name, folder in found.items()}


def detect(each: Run, annotations: Annotations, same: Mapping[str, Any], val: Split) -> None:
    """Train a row and look for the objects, unless that was done."""
    arguments, folder = each.arguments, each.kept.parent
    records.claim(folder, same)
    if each.kept.is_file():
        return
    ssd: SSD = build(each.row, load_stock(arguments.data / "weights"), annotations.categories.ids)
    if arguments.epochs:
        ssd = train_row(ssd, each.row, each.seed, annotations, arguments, folder)
    trained.detect(ssd, val, arguments.device, each.kept)


def write_record(each: Run, annotations: Annotations, same: Mapping[str, Any], val: Split) -> None:
    ssd = build(each.row, load_stock(each.arguments.data / "weights"), annotations.categories.ids)
    about = {"row": each.row.name, "seed": each.seed, "settings": same}
    judge = trained.Judge(val, apart=APART)
    facts = trained.facts(
        ssd, each.row.size, each.arguments.device, each.kept, judge, each.rivals()
    )
    records.write(each.record, {**about, **facts})
    print(f"{each.record}: AP {facts['figures']['ap'][0]:.1f}", flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    arguments.data = data_folder()
    train, val = (
        Split(arguments.data / s / "instances.json", arguments.data / s / "images") for s in SETS
    )
    annotations = read_annotations(train).with_objects()
    annotations = replace(annotations, records=annotations.records[: arguments.first])
    same = trained.settings(arguments, len(annotations.records))
    seeds = arguments.seeds[:1] if arguments.epochs == 0 else arguments.seeds
    runs = [Run(ROWS[name], seed, arguments) for seed in seeds for name in arguments.rows]
    todo = [each for each in runs if not records.is_done(each.record, same)]
    for each in todo:
        detect(each, annotations, same, val)
    for each in todo:  # once all have been looked at, so that each is compared with its rivals
        write_record(each, annotations, same, val)


if __name__ == "__main__":
    run(main)
