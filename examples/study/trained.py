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
    add("--images", type=positive, help="evaluate on so many images only")
    add("--device", default="cpu", help="(default: %(default)s)")
    add("--workers", type=natural, default=0, help="processes that read images (0)")
    add("--work", type=Path, required=True, help="folder for checkpoints and detections")
    add("--results", type=Path, default=records.RESULTS, help="(default: docs/results)")


def settings(a: argparse.Namespace, images: int) -> dict[str, Any]:
    """Return what a record must have been measured with. images: that are trained on."""
    chosen = {name: vars(a)[name] for name in ("epochs", "batch", "warmup", "amp")}
    steps = a.epochs * (images // min(a.batch, images))
    told = {"images": images, "steps": steps, "rate": a.lr, "augmented": not a.no_augment}
    return {**chosen, **told, **({"evaluated": a.images} if a.images else {})}


def record(
    ssd: Detector,
    split: Split,
    folder: Path,
    rivals: Sequence[str],
    a: argparse.Namespace,
    least: int = 1,
) -> Mapping[str, Any]:
    """Look for the objects of a set, and return the part of a record that says what was found.

    folder: of the run; those of its rivals are beside it. least: objects that a class must have.
    """
    everyone = Processes(wanted_device(a.device))
    images, truth = CocoImages(split, first=a.images), load_truth(split.annotations)
    if not (folder / DETECTIONS).is_file():
        found = detect_all(ssd.to(everyone.device), images, everyone)
        write_results(folder / DETECTIONS, found)

    def matched(run: Path) -> bootstrap.Matches:
        found = json.loads((run / DETECTIONS).read_text())
        return bootstrap.matches(truth, found, images.ids, least)

    others = {}
    for name in rivals:
        if (folder.parent / name / DETECTIONS).is_file() and folder.name != name:
            other, _ = bootstrap.evaluated(matched(folder.parent / name))
            others[name.rsplit("-", 1)[0]] = other
    return {
        "gmacs": counting.compute(Network(ssd), ssd.transform.fixed_size[0]) / 1e9,
        "parameters": counting.parameters(ssd),
        "evaluated": len(images),
        **bootstrap.evaluated(matched(folder), others)[1],
        "hardware": records.hardware(everyone.device),
    }
