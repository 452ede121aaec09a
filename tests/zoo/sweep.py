"""The sweep: a row for every model, kept as one line of JSON each, so that it can go on where it stopped."""

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from tqdm import tqdm

import stridesurgery
from tests.zoo.coverage import page
from tests.zoo.models import missing_names, names
from tests.zoo.row import Row, examine

ROOT = Path(__file__).resolve().parents[2]
ROWS = ROOT / ".zoo" / "rows.jsonl"
PAGE = ROOT / "docs" / "coverage.md"
SMALL = 12.0  # million parameters up to which numbers are computed


def versions() -> str:
    """The versions and the code that rows depend on, in words."""
    sources = sorted(Path(stridesurgery.__file__).parent.rglob("*.py"))
    code = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:8]
    return (
        f"stridesurgery {stridesurgery.__version__} (sources {code}), torch {torch.__version__}, "
        f"torchvision {torchvision.__version__}, timm {timm.__version__}"
    )


def sweep(
    out: Path = ROWS,
    *,
    only: Sequence[str] = (),
    minutes: float = float("inf"),
    limit: float = SMALL,
) -> list[dict[str, Any]]:
    """Examine what has no row by this code yet (or `only` the named models); the rows of all models that have one."""
    out.parent.mkdir(parents=True, exist_ok=True)
    key, rows, start = versions(), read_rows(out), time.monotonic()
    todo = only or [name for name in names() if rows.get(name, {}).get("key") != key]
    for name in (bar := tqdm(todo, unit="model")):
        if time.monotonic() - start > 60 * minutes:
            break
        bar.set_postfix_str(name)
        try:
            row = examine(name, key, limit)
        except Exception as problem:
            row = Row(name, key, note=f"CRASH {type(problem).__name__}: {problem}")
        with out.open("a") as file:
            file.write(json.dumps(asdict(row)) + "\n")
    rows = read_rows(out)
    return [rows[name] for name in names() if name in rows]


def read_rows(path: Path) -> dict[str, dict[str, Any]]:
    """The last row of each model."""
    lines = path.read_text().splitlines() if path.exists() else []
    return {row["name"]: row for row in map(json.loads, lines)}


def write_page(rows: Sequence[dict[str, Any]], to: Path = PAGE, *, limit: float = SMALL) -> None:
    """Write the page of these rows."""
    to.parent.mkdir(parents=True, exist_ok=True)
    to.write_text(page(rows, versions(), limit, missing_names()))
