"""Candidates timed in turn: every round runs all of them, so that clock drift affects all alike."""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

Rows = dict[str, dict[str, float]]


def arguments(doc: str | None, count: int = 15) -> argparse.Namespace:
    """Return what every benchmark is asked for, and set the threads. count: of rounds."""
    how: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = argparse.ArgumentParser(description=doc, **how)
    parser.add_argument("--rounds", type=int, default=count)
    parser.add_argument("--size", type=int, default=224, help="pixels, where a size is chosen")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    return asked


def save(asked: argparse.Namespace, figures: object) -> None:
    """Write the figures, if a file is named."""
    if asked.json:
        asked.json.write_text(json.dumps(figures, indent=2))


def timed(function: Callable[[], object]) -> float:
    """Seconds that one call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def rounds(
    candidates: dict[str, Callable[[], object]], count: int, title: str
) -> dict[str, list[float]]:
    """Seconds per candidate and round, after one round that does not count."""
    for function in candidates.values():
        function()
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in tqdm(range(count), desc=title, leave=False):
        for name, function in candidates.items():
            times[name].append(timed(function))
    return times


def summary(times: dict[str, list[float]], base: str) -> Rows:
    """Median milliseconds, and the median and range of the ratios to `base`."""
    rows = {}
    for name, values in times.items():
        ratios = [a / b for a, b in zip(values, times[base], strict=True)]
        rows[name] = {
            "ms": 1000 * statistics.median(values),
            "ratio": statistics.median(ratios),
            "least": min(ratios),
            "most": max(ratios),
        }
    return rows


def show(title: str, results: dict[str, Rows]) -> None:
    """Print one table."""
    print(f"\n{title}")
    print(f"{'model':26} {'candidate':26} {'median ms':>10} {'ratio':>7}   (least - most)")
    for model, rows in results.items():
        for name, row in rows.items():
            spread = f"({row['least']:.2f} - {row['most']:.2f})"
            print(f"{model:26} {name:26} {row['ms']:10.1f} {row['ratio']:7.2f}   {spread}")
