"""Results as JSON files in docs/results, one for each thing measured; skipped if there."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from examples.ssd.programs import DetectionError, write_atomically

RESULTS = Path(__file__).parents[2] / "docs" / "results"
Record = Mapping[str, Any]


def write(path: Path, record: Record) -> None:
    """Save a record; what is no number (a precision where there are no objects) becomes null."""
    with write_atomically(path) as part:
        part.write_text(json.dumps(_plain(record), indent=1) + "\n")


def read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text()))


def is_done(path: Path, settings: Mapping[str, Any]) -> bool:
    """Tell whether the record is there; one that was measured with other settings is refused."""
    if not path.is_file():
        return False
    before, now = read(path)["settings"], _plain(settings)
    changed = [k for k in {**before, **now} if before.get(k) != now.get(k)]
    if changed:
        told = ", ".join(f"{k} {before.get(k)} (now {now.get(k)})" for k in changed)
        raise DetectionError(f"{path} is of {told}; name other folders with --results and --work.")
    return True


def hardware(device: torch.device | None = None) -> str:
    """Return the class of the machine, without its name."""
    if device is not None and device.type == "cuda":
        return torch.cuda.get_device_name(device)
    instructions = torch.backends.cpu.get_cpu_capability()
    return f"{os.cpu_count()} CPU cores ({instructions}), {torch.get_num_threads()} used"


def _plain(record: Record) -> Any:
    return json.loads(
        json.dumps(record),
        parse_float=lambda text: float(f"{float(text):.6g}"),
        parse_constant=lambda text: None,
    )
