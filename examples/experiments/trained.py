"""What every experiment that trains has in common: one network, trained, evaluated with intervals, recorded."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.experiments import bootstrap
from examples.experiments.records import hardware
from examples.ssd import counting
from examples.ssd.annotations import Split, read_annotations
from examples.ssd.data import Share
from examples.ssd.evaluate import detect_all
from examples.ssd.evaluation import load_truth, write_results
from examples.ssd.model import SSD
from examples.ssd.processes import Processes
from examples.ssd.programs import wanted_device


@dataclass(frozen=True)
class Evaluated:
    """A network on a set."""

    figures: bootstrap.Figures  # of every resample of the images
    images: int


def evaluated(ssd: SSD, split: Split, device: str, kept: Path, apart: Sequence[str] = ()) -> Evaluated:
    """kept: where the detections are written to, and read from the next time."""
    if not kept.is_file():
        everyone = Processes(Share(), wanted_device(device))
        found = detect_all(ssd.to(everyone.device), read_annotations(split), everyone)
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_results(kept, found)
    return judged(kept, split, apart)


def judged(kept: Path, split: Split, apart: Sequence[str] = ()) -> Evaluated:
    """The detections of a file, with the figures of every resample."""
    matches = bootstrap.matches(load_truth(split.annotations), json.loads(kept.read_text()))
    return Evaluated(bootstrap.figures(matches, bootstrap.resamples(matches.images), apart), matches.images)


def described(ssd: SSD, size: int, result: Evaluated, device: str) -> dict[str, Any]:
    """The part of a record that says what was measured."""
    return {
        "gmacs": counting.compute(ssd, size) / 1e9,
        "parameters": counting.parameters(ssd),
        "evaluated": result.images,
        "figures": bootstrap.intervals(result.figures),
        "hardware": hardware(wanted_device(device)),
    }


def differences(result: Evaluated, rivals: Mapping[str, Path], split: Split) -> dict[str, Any]:
    """From the other rows whose detections are there, on the same resamples. rivals: where each one keeps them."""
    there = {name: judged(kept, split) for name, kept in rivals.items() if kept.is_file()}
    return {name: bootstrap.differences(result.figures, other.figures) for name, other in there.items()}
