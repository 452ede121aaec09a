"""What every experiment that trains has in common: the same recipe, detections with intervals, a record."""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from examples.ssd import counting
from examples.ssd.data import CocoImages, Split
from examples.ssd.evaluate import detect_all, load_truth, write_results
from examples.ssd.model import Detector, Network
from examples.ssd.processes import Processes
from examples.ssd.programs import natural, number, positive, wanted_device
from examples.ssd.training import AMP
from examples.study import bootstrap, records

DETECTIONS = "detections.json"  # of a run, in its folder of --work


def add_recipe(parser: argparse.ArgumentParser, epochs: int) -> None:
    """Add what is the same for every row that is compared. epochs: unless others are asked for."""
    add = parser.add_argument
    add("--seeds", nargs="+", type=natural, default=[0, 1, 2])
    add("--epochs", type=natural, default=epochs, help="(default: %(default)s)")
    add("--batch", type=positive, default=32, help="images a step (32)")
    add("--lr", type=number(float, 0), default=1e-3, help="(0.001)")
    add("--warmup", type=natural, default=0, help="epochs (0)")
    add("--amp", choices=tuple(AMP), default="off", help="mixed precision (off)")
    add("--no-augment", action="store_true", help="resize only")
    add("--first", type=positive, help="train on so many images only")
    add("--device", default="cpu", help="(default: %(default)s)")
    add("--workers", type=natural, default=0, help="processes that read images (0)")
    add("--work", type=Path, required=True, help="folder for checkpoints and detections")
    add("--results", type=Path, default=records.RESULTS, help="(default: docs/results)")


def settings(arguments: argparse.Namespace, images: int) -> dict[str, Any]:
    """Return what a record must have been measured with. images: that are trained on."""
    return {
        "images": images,
        "epochs": arguments.epochs,
        "batch": arguments.batch,
        "steps": arguments.epochs * (images // min(arguments.batch, images)),
        "rate": arguments.lr,
        "warmup": arguments.warmup,
        "augmented": not arguments.no_augment,
        "amp": arguments.amp,
    }


def record(
    ssd: Detector,
    split: Split,
    folder: Path,
    rivals: Sequence[str],
    device: str,
    *,
    least: int = 1,
    apart: Sequence[str] = (),
) -> Mapping[str, Any]:
    """Look for the objects of a set, and return the part of a record that says what was found.

    folder: of the run; those of its rivals are beside it. least: objects of a size that a class must
    have to count. apart: classes whose own figures are wanted too.
    """
    everyone = Processes(wanted_device(device))
    if not (folder / DETECTIONS).is_file():
        found = detect_all(ssd.to(everyone.device), CocoImages(split), everyone)
        write_results(folder / DETECTIONS, found)
    truth = load_truth(split.annotations)

    def judged(kept: Path) -> bootstrap.Evaluated:
        matched = bootstrap.matches(truth, json.loads((kept / DETECTIONS).read_text()))
        return bootstrap.evaluated(bootstrap.common(matched, least), apart)

    own, others = judged(folder), {}
    for name in rivals:
        if (folder.parent / name / DETECTIONS).is_file() and folder.name != name:
            other = judged(folder.parent / name)
            others[name.rsplit("-", 1)[0]] = bootstrap.differences(own.figures, other.figures)
    return {
        "gmacs": counting.compute(Network(ssd), ssd.transform.fixed_size[0]) / 1e9,
        "parameters": counting.parameters(ssd),
        "evaluated": own.images,
        "figures": bootstrap.intervals(own.figures),
        "objects": dict(own.objects),
        "differences": others,
        "hardware": records.hardware(everyone.device),
    }
