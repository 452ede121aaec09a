"""Candidates timed in turn: every round runs all of them, so that a change of the machine's speed meets all alike."""

import statistics
import time
from collections.abc import Callable

from tqdm import tqdm


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


def summary(times: dict[str, list[float]], base: str) -> dict[str, dict[str, float]]:
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


def show(title: str, results: dict[str, dict[str, dict[str, float]]]) -> None:
    """Print one table."""
    print(f"\n{title}")
    print(f"{'model':26} {'candidate':26} {'median ms':>10} {'ratio':>7}   (least - most)")
    for model, rows in results.items():
        for name, row in rows.items():
            spread = f"({row['least']:.2f} - {row['most']:.2f})"
            print(f"{model:26} {name:26} {row['ms']:10.1f} {row['ratio']:7.2f}   {spread}")
