"""Results as JSON files in docs/results, one for each thing measured: written once, and skipped when they are there."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from examples.ssd.errors import RequestError
from examples.ssd.files import write_atomically

RESULTS = Path(__file__).parents[2] / "docs" / "results"
DIGITS = 4  # kept of a figure
NOTE = "settings.json"  # in a work folder

Record = Mapping[str, Any]


def write(path: Path, record: Record) -> None:
    """Save a record; what is no number (a precision where there are no objects) becomes null."""
    with write_atomically(path) as part:
        part.write_text(json.dumps(_plain(record), indent=1, allow_nan=False) + "\n")


def read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text()))


def is_done(path: Path, settings: Mapping[str, Any]) -> bool:
    """Whether the record is there.

    Raises:
        RequestError: it is, but was measured with other settings.
    """
    if not path.is_file():
        return False
    before, now = read(path)["settings"], _plain(dict(settings))
    changed = [
        f"{k} {before.get(k)} (now {now.get(k)})"
        for k in {**before, **now}
        if before.get(k) != now.get(k)
    ]
    if changed:
        # A folder without its note would be claimed for what is asked for now, with all that was kept in it before.
        kept = path.parent if path.name == NOTE else path
        raise RequestError(
            f"{kept} is of {', '.join(changed)}; remove it, or name other folders with --results and --work."
        )
    return True


def claim(folder: Path, settings: Mapping[str, Any]) -> None:
    """Say what a work folder is of, so that what is kept in it is not taken for something else.

    Raises:
        RequestError: it is of something else.
    """
    note = folder / NOTE
    if not is_done(note, settings):
        write(note, {"settings": settings})


def hardware(device: torch.device | None = None) -> str:
    """The class of the machine, without its name; the instructions it has say how fast mixed precision can be."""
    if device is not None and device.type == "cuda":
        return torch.cuda.get_device_name(device)
    instructions = torch.backends.cpu.get_cpu_capability()
    return f"{os.cpu_count()} CPU cores ({instructions}), {torch.get_num_threads()} used"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return None if math.isnan(value) else float(f"{value:.{DIGITS + 2}g}")
    return value
