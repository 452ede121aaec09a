"""The records of each experiment, and their figures as text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.experiments import records
from examples.experiments.trained import FEW

Record = Mapping[str, Any]
SIZES = ("small", "medium", "large")


@dataclass(frozen=True)
class Interval:
    """A figure in percent and the ends of its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.1f} ± {(self.high - self.low) / 2:.1f}"

    @property
    def signed(self) -> str:
        return f"{self.value:+.1f} ± {(self.high - self.low) / 2:.1f}"

    @property
    def clear(self) -> bool:
        """Whether zero lies outside."""
        return self.low > 0 or self.high < 0


def all_in(folder: Path) -> dict[str, Record]:
    """By file name, without its ending."""
    return {path.stem: records.read(path) for path in sorted(folder.glob("*.json"))}


def how_measured(name: str, record: Record) -> str:
    """How a latency was measured; if twice the compute takes hardly longer, also that the device was not busy."""
    rows = list(record["rows"].values())
    idle = any(r["gmacs"] >= 2 * rows[0]["gmacs"] and r["ratio"][0] < 1.2 for r in rows)
    return (
        name.partition("-")[2] + ", a device that was not busy, so no price of the surgery" * idle
    )


def in_order(found: Mapping[str, Record], names: Sequence[str]) -> dict[str, Record]:
    """Those that are there, as they are listed."""
    return {name: found[name] for name in names if name in found}


def figure(record: Record, name: str) -> Interval | None:
    """None: there are too few such objects."""
    return interval(record["figures"].get(name)) if _enough(record, name) else None


def difference(record: Record, base: str, name: str) -> Interval | None:
    """None: the two were not compared, or there are too few such objects."""
    return (
        interval(record["differences"].get(base, {}).get(name)) if _enough(record, name) else None
    )


def _enough(record: Record, name: str) -> bool:
    kind = name.removeprefix("ap").removeprefix("ar").removeprefix("50")
    return bool(record["objects"][kind] >= FEW)


def interval(ends: Sequence[float | None] | None) -> Interval | None:
    """From a record's three numbers."""
    if ends is None or None in ends:
        return None
    value, low, high = (float(v) for v in ends if v is not None)
    return Interval(value, low, high)


def marked(value: Interval | None) -> str:
    """A difference, bold where it is clear."""
    if value is None:
        return "–"
    return f"**{value.signed}**" if value.clear else value.signed


def shown(value: Interval | None, signed: bool = False) -> str:
    if value is None:
        return "–"
    return value.signed if signed else str(value)


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, words: bool = False) -> str:
    """In Markdown; figures stand on the right of all columns but the first, words on the left."""
    ruler = ["---", *["---" if words else "---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, ruler, *rows))


def code(command: str) -> str:
    return f"`python -m examples.experiments.{command}`"
