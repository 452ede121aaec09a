"""The stock COCO detector under each surgery, trained further on COCO images: same images, steps and augmentation.

    python -m examples.experiments.fine_tuning --work runs                      # all rows, three seeds: for a GPU
    python -m examples.experiments.fine_tuning --work runs --rows base S1L0 --seeds 0 --first 300 --epochs 3 --batch 4

Trains on `coco_train`, evaluates on `coco_public`. A run that was stopped goes on with the same command; a row whose
result is there is skipped. With --epochs 0 nothing is trained: where every row starts; run before the rest, the rest is
compared with it.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

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
RIVALS = ("base", "Size600")  # what the others are compared with: the base, and what costs as much as S1L0


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS), metavar="ROW")
    trained.add_recipe(parser, epochs=20)
    return parser.parse_args(argv)


def described(row: Row) -> Configuration:
    """What a checkpoint says of its network."""
    return replace(find("SSDMnetv1"), name=f"stock {row.name}", size=row.size, surgery=row.surgery)


def train_row(
    ssd: SSD, row: Row, seed: int, annotations: Annotations, arguments: argparse.Namespace, folder: Path
) -> SSD:
    """The network after the last step; a run that was stopped goes on."""
    everyone, stop = Processes(Share(), wanted_device(arguments.device)), Stop()
    recipe = Recipe(learning_rate=arguments.lr, epochs=arguments.epochs, batch=arguments.batch, warmup=arguments.warmup)
    options = Options(
        seed=seed, augment=not arguments.no_augment, workers=arguments.workers, channels_last=True, amp=arguments.amp
    )
    training = Training(ssd, described(row), recipe, annotations, everyone, options, folder, stop)
    if training.checkpoint.is_file():
        training.resume()
    with stop.on_signals():
        while not training.finished:
            if not run_epoch(training, None, shown=True):
                sys.exit(f"Stopped; {training.checkpoint} holds the run, the same command goes on with it.")
    return training.ssd


def measure(row: Row, seed: int, arguments: argparse.Namespace) -> None:
    """Train and evaluate a row, unless its record is there."""
    train, val = (Split(arguments.data / s / "instances.json", arguments.data / s / "images") for s in SETS)
    annotations = read_annotations(train).with_objects()
    annotations = replace(annotations, records=annotations.records[: arguments.first])
    same = trained.settings(arguments, len(annotations.records))
    kind = f"seed{seed}" if arguments.epochs else UNTRAINED
    name = f"{row.name}-{kind}"
    record = arguments.results / "fine_tuning" / f"{name}.json"
    if records.is_done(record, same):
        print(f"{record} is there.")
        return

    def kept(of: str, how: str = kind) -> Path:
        return arguments.work / "fine_tuning" / f"{of}-{how}" / "detections.json"

    folder = kept(row.name).parent
    ssd: SSD = build(row, load_stock(arguments.data / "weights"), annotations.categories.ids)
    if arguments.epochs:
        ssd = train_row(ssd, row, seed, annotations, arguments, folder)
    result = trained.evaluated(ssd, val, arguments.device, kept(row.name), APART)
    facts = trained.described(ssd, row.size, result, arguments.device)
    rivals = {other: kept(other) for other in trained.rivals(row.name, RIVALS)}
    if arguments.epochs:
        rivals["itself before training"] = kept(row.name, UNTRAINED)
    compared = trained.differences(result, rivals, val)
    records.write(record, {"row": row.name, "seed": seed, "settings": same, "differences": compared, **facts})
    print(f"{record}: AP {facts['figures']['ap'][0]:.1f}", flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    arguments.data = data_folder()
    for seed in arguments.seeds[:1] if arguments.epochs == 0 else arguments.seeds:
        for name in arguments.rows:
            measure(ROWS[name], seed, arguments)


if __name__ == "__main__":
    run(main)
