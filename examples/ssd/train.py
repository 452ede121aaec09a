"""Train a detector on COCO or any set in its format.

    python -m examples.ssd.train --config SSDMnetv1-S1L0 --data COCO_FOLDER --out run
    python -m examples.ssd.train --backbone resnet18 --surgery S1L0 --data COCO_FOLDER --out run
    python -m examples.ssd.train --config SSDMnetv1 --data COCO_FOLDER --out run --resume
    torchrun --nproc-per-node 4 -m examples.ssd.train --config SSDMnetv1 --data COCO_FOLDER --out run

The paper's recipe belongs to the row: SGD, a cosine per epoch, SSD's augmentation. A run that is stopped by a signal,
or killed, goes on with --resume as if it had not been.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from examples.ssd import augment, checkpoint
from examples.ssd.annotations import Annotations, Split, find_split, read_annotations
from examples.ssd.configurations import Configuration, Recipe
from examples.ssd.data import Images
from examples.ssd.errors import RequestError
from examples.ssd.evaluate import COLUMNS, as_text, check_categories, detect_all, evaluated
from examples.ssd.evaluation import Summary
from examples.ssd.journal import Journal
from examples.ssd.model import SSD, build
from examples.ssd.options import AMP, Options
from examples.ssd.processes import Processes, processes
from examples.ssd.programs import add_detector, detector, existing_file, existing_folder, positive, run, wanted_device
from examples.ssd.stop import Stop
from examples.ssd.training import Training
from examples.ssd.weights import load_backbone, wake_norms

WAKING_IMAGES = 32


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_detector(parser)
    start = parser.add_argument_group("where to start")
    start.add_argument("--weights", default="pretrained", help="of the backbone: pretrained (default), none, or a file")
    start.add_argument("--init-from", type=existing_file, help="another detector's checkpoint: what fits is taken")
    start.add_argument("--resume", action="store_true", help="go on with the run in --out")
    data = parser.add_argument_group("the images")
    data.add_argument("--data", type=existing_folder, help="COCO's layout, or train/ and val/ with instances.json")
    for name in ("train", "val"):
        data.add_argument(f"--{name}-json", type=existing_file, help=f"instead: the annotations to {_verb(name)}")
        data.add_argument(f"--{name}-images", type=existing_folder, help="and their images")
    data.add_argument("--first", type=positive, help="use only so many images")
    data.add_argument("--no-augment", action="store_true", help="resize only")
    data.add_argument("--workers", type=int, default=2, help="processes that read images (default: %(default)s)")
    recipe = parser.add_argument_group("the recipe (default: the paper's for the row)")
    recipe.add_argument("--epochs", type=positive)
    recipe.add_argument("--batch", type=positive, help="images a step, over all processes")
    recipe.add_argument("--lr", type=float)
    recipe.add_argument("--warmup", type=int, help="epochs")
    recipe.add_argument("--weight-decay", type=float, default=Options.weight_decay)
    how = parser.add_argument_group("how")
    how.add_argument("--out", type=Path, required=True, help="folder for checkpoints and logs")
    how.add_argument("--device", help="cpu, cuda, ... (default: the GPU if there is one)")
    how.add_argument("--seed", type=int, default=0)
    how.add_argument("--amp", choices=tuple(AMP), default="off", help="mixed precision (default: off)")
    how.add_argument("--channels-last", action="store_true")
    how.add_argument("--compile", action="store_true", help="torch.compile")
    how.add_argument("--deterministic", action="store_true", help="the same weights on a GPU too, at some cost")
    how.add_argument("--ema", type=float, metavar="DECAY", help="average the weights, such as 0.999")
    how.add_argument("--freeze-norms", action="store_true", help="batch norms keep their running statistics")
    how.add_argument("--sync-norms", action="store_true", help="batch norms see all GPUs' images")
    how.add_argument("--eval-every", type=int, default=10, help="epochs; 0: only at the end (default: %(default)s)")
    how.add_argument("--log-every", type=positive, default=Options.log_every, help="steps (default: %(default)s)")
    how.add_argument("--max-steps", type=positive, help="stop after so many, as a signal would")
    how.add_argument("--tensorboard", action="store_true")
    return parser.parse_args(argv)


def _verb(name: str) -> str:
    return "train on" if name == "train" else "evaluate on"


def options_from(arguments: argparse.Namespace) -> Options:
    shared = {name: getattr(arguments, name) for name in Options.__dataclass_fields__}
    return Options(**shared)


def recipe_from(arguments: argparse.Namespace, row: Configuration) -> Recipe:
    asked = {
        "epochs": arguments.epochs,
        "batch": arguments.batch,
        "learning_rate": arguments.lr,
        "warmup": arguments.warmup,
    }
    return replace(row.recipe, **{k: v for k, v in asked.items() if v is not None})


def asked_split(arguments: argparse.Namespace, name: str) -> Split | None:
    """The set that --data or --<name>-json names; None: there is nothing to evaluate on."""
    file, images = getattr(arguments, f"{name}_json"), getattr(arguments, f"{name}_images")
    if (file is None) != (images is None):
        raise RequestError(f"--{name}-json and --{name}-images go together.")
    if file is not None:
        return Split(file, images)
    if arguments.data is not None:
        return find_split(arguments.data, name)
    if name == "train":
        raise RequestError("name the images: --data FOLDER, or --train-json FILE and --train-images FOLDER.")
    return None


def new_detector(arguments: argparse.Namespace, row: Configuration, annotations: Annotations, say: bool) -> SSD:
    """The network before the first step."""
    torch.manual_seed(arguments.seed)
    if arguments.resume or arguments.init_from is not None:
        ssd = build(row, annotations.categories.classes)
        if arguments.init_from is not None and not arguments.resume:
            told = checkpoint.take_over(ssd, arguments.init_from)
            if say:
                print(told)
        return ssd
    backbone = load_backbone(row.backbone, arguments.weights)
    woken = (
        wake_norms(backbone.net, example(row, annotations, backbone.mean, backbone.std))
        if arguments.weights != "none"
        else 0
    )
    ssd = build(row, annotations.categories.classes, backbone.net)
    ssd.mean.copy_(255 * torch.tensor(backbone.mean).view(3, 1, 1))
    ssd.std.copy_(255 * torch.tensor(backbone.std).view(3, 1, 1))
    if say:
        print(f"Backbone: {row.backbone}, {backbone.source}" + (f"; {woken} folded batch norms woken" if woken else ""))
    return ssd


def example(row: Configuration, annotations: Annotations, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """A few images as the backbone takes them: (N, 3, size, size)."""
    images = Images(annotations, augment.for_testing(row.size))
    pixels = torch.stack([images[i].image for i in range(min(WAKING_IMAGES, len(images)))]).float() / 255
    return (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def train(arguments: argparse.Namespace, everyone: Processes, stop: Stop) -> None:
    row = detector(arguments)
    annotations = read_annotations(training_split(arguments)).with_objects()
    if arguments.first is not None:
        annotations = replace(annotations, records=annotations.records[: arguments.first])
    if everyone.first:
        print(f"{row.name} on {annotations.said()}")
    transform = augment.plain(row.size) if arguments.no_augment else augment.for_training(row.size)
    ssd = new_detector(arguments, row, annotations, everyone.first)
    training = Training(
        ssd,
        row,
        recipe_from(arguments, row),
        Images(annotations, transform),
        everyone,
        options_from(arguments),
        arguments.out,
        stop,
    )
    if arguments.resume:
        training.resume(training.checkpoint)
    elif training.checkpoint.exists():
        raise RequestError(
            f"{training.checkpoint} holds another run: go on with it by --resume, or give another --out."
        )
    every_epoch(training, arguments, everyone)


def training_split(arguments: argparse.Namespace) -> Split:
    split = asked_split(arguments, "train")
    assert split is not None
    return split


def every_epoch(training: Training, arguments: argparse.Namespace, everyone: Processes) -> None:
    """Train to the end of the recipe, evaluating in between."""
    split, progress = asked_split(arguments, "val"), training.progress
    if split is not None:
        check_categories(training.annotations.categories, read_annotations(split).categories)
    journal = open_journal(training, arguments) if everyone.first else None
    if everyone.first and progress != type(progress)():
        print(f"Going on at epoch {progress.epoch + 1}, step {progress.step}")
    while training.progress.epoch < training.recipe.epochs:
        if not training.run_epoch(journal, shown=everyone.first):
            if everyone.first:
                print(f"Stopped; {training.checkpoint} holds the run, --resume goes on with it.")
            if training.stop.signal is not None:
                sys.exit(128 + training.stop.signal)
            break
        done = training.progress.epoch
        last = done == training.recipe.epochs
        if split is not None and (last or (arguments.eval_every and done % arguments.eval_every == 0)):
            report(training, split, journal)
    if journal is not None:
        journal.close()


def open_journal(training: Training, arguments: argparse.Namespace) -> Journal:
    arguments.out.mkdir(parents=True, exist_ok=True)
    batches = len(training.images) // min(training.recipe.batch, len(training.images))
    first = training.progress.epoch * batches + training.progress.step
    return Journal(arguments.out, first, arguments.tensorboard)


def report(training: Training, split: Split, journal: Journal | None) -> Summary | None:
    """Evaluate on all processes together, with the averaged weights if there are any; the first one tells."""
    with training.averaged() as ssd:
        found = detect_all(ssd, read_annotations(split), training.everyone, workers=training.options.workers)
    if not training.everyone.first:
        return None
    summary = evaluated(split, found)
    print(as_text([(f"after epoch {training.progress.epoch}", summary)]))
    if journal is not None:
        journal.write("evaluation", training.progress.epoch, {name: getattr(summary, name) for name in COLUMNS})
    return summary


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    if arguments.deterministic:
        torch.use_deterministic_algorithms(True)
    stop = Stop()
    with processes(wanted_device(arguments.device)) as everyone, stop.on_signals():
        train(arguments, everyone, stop)


if __name__ == "__main__":
    run(main)
