"""Train a detector on COCO or any set in its format.

    python -m examples.ssd.train --config SSDMnetv1-S1L0 --data COCO_FOLDER --out run
    python -m examples.ssd.train --backbone resnet18 --surgery S1L0 --data COCO_FOLDER --out run
    torchrun --nproc-per-node 4 -m examples.ssd.train --config SSDMnetv1 --data COCO --out run

The recipe belongs to the row. With --resume a run that was stopped by a signal, or killed, goes on
as if it had not been, and one without a checkpoint starts: for a cluster that restarts its jobs.

Several processes learn what one would from the same batch, up to rounding, but for batch norms:
each process normalises by its own images, unless --freeze-norms is given. The first one writes.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torchvision.transforms import v2

from examples.ssd import backbones, data, programs
from examples.ssd.configurations import Configuration, Recipe
from examples.ssd.data import CocoImages
from examples.ssd.evaluate import detect_all, evaluate, load_truth
from examples.ssd.model import Detector, build
from examples.ssd.processes import Processes, Stop, processes
from examples.ssd.programs import DetectionError, number, positive
from examples.ssd.training import AMP, Options, Training, load

WAKING_IMAGES = 32
CHECKS = {"epochs": positive, "batch": positive, "ema": programs.share}


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return what was asked for; the paper's recipe for the row is filled in later."""
    how: Any = {"formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = argparse.ArgumentParser(description=__doc__, epilog=Options.__doc__, **how)
    backbones.add_detector(parser)
    add = parser.add_argument_group("the run").add_argument
    data.add_images(add, "train")
    add("--first", type=positive, help="use only so many images")
    add("--weights", default="pretrained", help="of the backbone: pretrained, none, or a file")
    add("--init-from", type=Path, metavar="CHECKPOINT", help="start from another detector")
    add("--evaluate-every", type=positive, metavar="EPOCHS", help="on val of --data, to the log")
    add("--out", type=Path, required=True, help="folder for last.pt and log.jsonl")
    add("--resume", action="store_true", help="go on with the run in --out, or start it")
    add("--device", help="cpu, cuda, ... (default: the GPU if there is one)")
    add = parser.add_argument_group("the options, see below").add_argument
    for field in fields(Options):
        name, kind = f"--{field.name.replace('_', '-')}", type(field.default)
        own = field.name in Recipe.__dataclass_fields__  # the default is the row's
        how = {"default": None if own else field.default, "help": f"({field.default})"}
        if kind is bool:
            add(name, action=argparse.BooleanOptionalAction, **how)
        elif kind is str:
            add(name, choices=tuple(AMP), **how)
        else:
            add(name, type=CHECKS.get(field.name) or number(kind, 0), **how)
    return parser.parse_args(argv)


def train(arguments: argparse.Namespace, everyone: Processes, stop: Stop) -> None:
    """Train to the end of the recipe, or to a signal."""
    row, path = backbones.configuration_from(arguments), arguments.out / "last.pt"
    split, every = data.split_from(arguments, "train"), arguments.evaluate_every
    images = CocoImages(split, with_objects=True, first=arguments.first)
    if every:
        val = CocoImages(data.find_split(arguments.data or split.images, "val"))
        if val.categories != images.categories:
            raise DetectionError(f"{val.split.annotations} has other categories than {split[0]}.")
    exists = everyone.gather(path.is_file())[0]
    if exists and not arguments.resume:
        raise DetectionError(f"{path} holds another run: --resume goes on with it.")
    asked = {f.name: getattr(arguments, f.name) for f in fields(Options)}
    options = Options(**{k: getattr(row.recipe, k) if v is None else v for k, v in asked.items()})
    torch.manual_seed(options.seed)
    new = not exists and not arguments.init_from
    ssd, told = on_backbone(row, images, arguments.weights if new else "none")
    if arguments.init_from and not exists:
        told = take_over(ssd, arguments.init_from)
    training = Training(ssd, row, images, everyone, options, arguments.out, stop)
    if exists:
        changed = training.resume() or "the same settings"
        told = f"Going on after step {training.steps}, of a run with {changed}"
    elif arguments.resume:
        told += f"\nThere is no {path} yet: the run starts."
    log = open_log(arguments.out / "log.jsonl", training.steps) if everyone.first else None
    if log is not None:
        print(f"{row.name} on {images.said}\n{told}")
    while not training.finished and training.run_epoch(log):
        if every and training.steps % (every * training.per_epoch) == 0:
            found = detect_all(training.best, val, everyone, workers=options.workers)
            if log is not None:
                log(training.steps, evaluate(load_truth(val.split.annotations), found).figures)
    if log is not None and not training.finished:
        print(f"Stopped; {path} holds the run, --resume goes on with it.")


def on_backbone(row: Configuration, images: CocoImages, weights: str) -> tuple[Detector, str]:
    """Return a detector that expects the pixels of its backbone's weights, and what was loaded."""
    (backbone, pixels), woken = backbones.load_backbone(row.backbone, weights), 0
    if weights != "none":
        images.transform = data.transform(row.size)
        few = [images[i, 0][0].float() / 255 for i in range(min(WAKING_IMAGES, len(images)))]
        norm = v2.functional.normalize(torch.stack(few), *pixels.values())
        woken = backbones.wake_norms(backbone, norm)
    told = f"Backbone: {row.backbone}, weights {weights}; {woken} folded batch norms woken"
    return build(row, 1 + len(images.categories), backbone, **pixels), told


def take_over(ssd: Detector, path: Path) -> str:
    """Load what fits of another detector; predictors of other classes stay new. Return how much."""
    content, own = load(path), ssd.state_dict()
    fits = {k: v for k, v in content["best"].items() if k in own and v.shape == own[k].shape}
    if not fits:
        raise DetectionError(f"{path} is of another network: nothing of it fits.")
    ssd.load_state_dict(fits, strict=False)
    ssd.transform.image_mean, ssd.transform.image_std = content["pixels"]
    return f"Of {path}: {len(fits)} of {len(own)} tensors fit"


def open_log(path: Path, steps: int) -> Callable[[int, Mapping[str, float]], None]:
    """Return what adds a line of JSON; lines of later steps than those done are taken back."""
    lines = path.read_text().splitlines() if path.exists() else []
    whole = [line for line in lines if line.endswith("}")]  # the last one may be cut off
    kept = [line for line in whole if json.loads(line)["step"] <= steps]
    with programs.write_atomically(path) as part:
        part.write_text("".join(f"{line}\n" for line in kept))

    def log(step: int, values: Mapping[str, float]) -> None:
        with path.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")

    return log


def main(argv: Sequence[str] | None = None) -> None:
    """Train."""
    arguments = parse_arguments(argv)
    with processes(programs.wanted_device(arguments.device)) as everyone, Stop() as stop:
        train(arguments, everyone, stop)
    if stop.code:
        sys.exit(stop.code)


if __name__ == "__main__":
    programs.run(main)
