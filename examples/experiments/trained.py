"""What every experiment that trains has in common: one network, trained, evaluated with intervals, recorded."""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.experiments import bootstrap, records
from examples.ssd import counting
from examples.ssd.annotations import Split, read_annotations
from examples.ssd.data import Share
from examples.ssd.errors import RequestError
from examples.ssd.evaluate import detect_all
from examples.ssd.evaluation import load_truth, write_results
from examples.ssd.model import SSD
from examples.ssd.options import AMP
from examples.ssd.processes import Processes
from examples.ssd.programs import amount, natural, positive, wanted_device

COCOS, FEW = (
    1,
    20,
)  # objects of a class that count in an average: COCO's rule, and ours where there are few classes
DETECTIONS = "detections.json"  # of a run, in its folder of --work


# ---- how to train


def add_recipe(parser: argparse.ArgumentParser, epochs: int) -> None:
    """What is the same for every row that is compared. epochs: unless others are asked for."""
    parser.add_argument("--seeds", nargs="+", type=natural, default=[0, 1, 2])
    parser.add_argument("--epochs", type=natural, default=epochs, help="(default: %(default)s)")
    parser.add_argument(
        "--batch",
        type=positive,
        default=32,
        help="images a step, of every row (default: %(default)s)",
    )
    parser.add_argument("--lr", type=amount, default=1e-3, help="(default: %(default)s)")
    parser.add_argument("--warmup", type=natural, default=0, help="epochs (default: %(default)s)")
    parser.add_argument(
        "--amp", choices=tuple(AMP), default="off", help="mixed precision (default: off)"
    )
    parser.add_argument("--no-augment", action="store_true", help="resize only")
    parser.add_argument("--first", type=positive, help="train on so many images only")
    parser.add_argument("--device", default="cpu", help="(default: %(default)s)")
    parser.add_argument(
        "--workers",
        type=natural,
        default=0,
        help="processes that read images (default: %(default)s)",
    )
    parser.add_argument(
        "--work", type=Path, required=True, help="folder for checkpoints and detections"
    )
    parser.add_argument(
        "--results", type=Path, default=records.RESULTS, help="(default: docs/results)"
    )


def settings(arguments: argparse.Namespace, images: int) -> dict[str, Any]:
    """What a record must have been measured with. images: that there are to train on."""
    used = min(images, arguments.first or images)
    return {
        "images": used,
        "epochs": arguments.epochs,
        "batch": arguments.batch,
        "steps": arguments.epochs * (used // min(arguments.batch, used)),
        "rate": arguments.lr,
        "warmup": arguments.warmup,
        "augmented": not arguments.no_augment,
        "amp": arguments.amp,
    }


# ---- what came of it


def detect(ssd: SSD, split: Split, device: str, kept: Path) -> None:
    """Look for the objects of a set, and keep what is found."""
    everyone = Processes(Share(), wanted_device(device))
    found = detect_all(ssd.to(everyone.device), read_annotations(split), everyone)
    write_results(kept, found)


@dataclass(frozen=True)
class Judge:
    """How detections are held against the objects of a set."""

    split: Split
    least: int = COCOS  # objects of a size that a class must have to count in that size
    apart: Sequence[str] = ()  # classes whose own figures are wanted too

    def found(self, kept: Path) -> bootstrap.Matches:
        """The detections of a file, matched."""
        return bootstrap.matches(load_truth(self.split.annotations), json.loads(kept.read_text()))

    def judged(self, found: bootstrap.Matches) -> bootstrap.Evaluated:
        return bootstrap.evaluated(bootstrap.common(found, self.least), self.apart)

    def left_out(self, found: bootstrap.Matches) -> list[str]:
        """The classes that do not count, with the size in which they do not."""
        counted = bootstrap.common(found, self.least).groups
        return [
            f"{name}{size.replace('_', ', ')}"
            for name, size in found.groups
            if (name, size) not in counted
        ]


def rivals(row: str, among: Sequence[str]) -> Sequence[str]:
    """What a row is compared with: all the rivals; a rival with those that are listed before it."""
    return among[: among.index(row)] if row in among else among


def facts(
    ssd: SSD,
    size: int,
    device: str,
    kept: Path,
    judge: Judge,
    others: Mapping[str, Path],
) -> dict[str, Any]:
    """The part of a record that says what was measured. others: the detections of what the row is compared with."""
    found = judge.found(kept)
    own = judge.judged(found)
    known = {
        name: judge.judged(judge.found(path))
        for name, path in others.items()
        if is_rival(path, kept)
    }
    return {
        "gmacs": counting.compute(ssd, size) / 1e9,
        "parameters": counting.parameters(ssd),
        "evaluated": own.images,
        "figures": bootstrap.intervals(own.figures),
        "objects": dict(own.objects),
        "left out": judge.left_out(found),
        "differences": {
            name: bootstrap.differences(own.figures, other.figures) for name, other in known.items()
        },
        "hardware": records.hardware(wanted_device(device)),
    }


def is_rival(other: Path, kept: Path) -> bool:
    """Whether the detections of another row are there.

    Raises:
        RequestError: they are, but that row was trained otherwise; before training, all rows are alike.
    """
    if not other.is_file():
        return False
    theirs, own = (records.read(path.parent / records.NOTE)["settings"] for path in (other, kept))
    if theirs["steps"] and theirs != own:
        raise RequestError(
            f"{other} is of a row trained with {theirs}, not {own}; remove it, or name another --work."
        )
    return True
