"""Results that show themselves as tables; text of tables, of units and of ratios."""

import math
from abc import abstractmethod
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from html import escape
from typing import Any, NamedTuple, TypeVar

from tqdm import tqdm

T = TypeVar("T")
DELAY = 5  # seconds until progress is shown


class Table(NamedTuple):
    """A table as text."""

    title: str
    header: Sequence[str]  # empty, or one name a column
    rows: Sequence[Sequence[str]]
    left: Container[int]  # the columns that are aligned to the left
    notes: Sequence[str] = ()  # lines below it


class Shown:
    """A result that shows itself as a table, in a terminal and in a notebook."""

    _records: str  # the entry of `to_dict` that has one record a row

    @abstractmethod
    def _table(self) -> Table: ...

    def __str__(self) -> str:
        title, header, rows, left, notes = self._table()
        return "\n".join([title, *table([header, *rows] if header else rows, left), *notes])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        title, header, rows, left, notes = self._table()
        head = f"<thead>{_html_row(header, left, 'th')}</thead>" if header else ""
        body = "".join(_html_row(row, left, "td") for row in rows)
        below = "".join(f"<p>{escape(note)}</p>" for note in notes)
        return f"<p>{escape(title)}</p><table>{head}<tbody>{body}</tbody></table>{below}"

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain data, as JSON holds it: unknown is None, infinite "inf"."""
        return fields_of(self)

    def to_pandas(self) -> Any:
        """Return the rows as a `pandas.DataFrame`, numbers as numbers. Needs pandas."""
        import pandas

        return pandas.json_normalize(self.to_dict()[self._records])


def _html_row(cells: Sequence[str], left: Container[int], tag: str) -> str:
    row = ""
    for i, cell in enumerate(cells):
        side = "left" if i in left else "right"
        row += f'<{tag} style="text-align: {side}">{escape(cell)}</{tag}>'
    return f"<tr>{row}</tr>"


def plain(value: Any) -> Any:
    """Convert a result to plain data.

    A dataclass becomes an object of its fields. NaN becomes None, an infinite number
    its text, such as "inf".
    """
    if hasattr(value, "to_dict"):
        return value.to_dict()
    if is_dataclass(value):
        return fields_of(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


def fields_of(value: Any) -> dict[str, Any]:
    """Return the fields of a dataclass as plain data."""
    return {field.name: plain(getattr(value, field.name)) for field in fields(value)}


def table(rows: Sequence[Sequence[str]], left: Container[int]) -> list[str]:
    """Align the cells of rows; the columns in `left` to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            c.ljust(w) if i in left else c.rjust(w)
            for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def in_sight(work: Iterable[T], total: int, unit: str) -> Iterable[T]:
    """Show the progress of work that takes long, if there is a terminal."""
    return tqdm(work, total=total, unit=f" {unit}", delay=DELAY, disable=None, leave=False)  # type: ignore[no-any-return]


def mib(count: float) -> str:
    """Write a number of bytes in MiB."""
    return f"{count / 2**20:.1f} MiB"


def gmac(count: float) -> str:
    """Write a number of multiply-accumulates in billions."""
    return f"{count / 1e9:.3f} GMAC"


def ratio(value: float | None, base: float | None) -> str:
    """Write how many times a base a value is; "?" where one is unknown."""
    return f"{value / base:.2f}" if value is not None and base else "?"


@dataclass(frozen=True)
class Metric:
    """One metric of cost: in `METRICS`, and a field of `Budget`, `Candidate` and `Cost`."""

    name: str  # field of `Budget`, `Candidate` and `Cost`
    title: str  # of the column in tables
    option: str  # name on the command line
    unit: float  # what 1 of that option stands for
    symbol: str
    help: str

    def of(self, costed: object) -> float | None:
        """Return the value of the metric; None if it is unknown."""
        value: float | None = getattr(costed, self.name)
        return value


METRICS = (
    Metric("macs", "compute", "gmacs", 1e9, "X", "billions of multiply-accumulates"),
    Metric(
        "activation_bytes",
        "activations",
        "activations",
        2**20,
        "MIB",
        "MiB of all values that are made",
    ),
    Metric("peak_bytes", "peak", "peak", 2**20, "MIB", "MiB of activations held at once"),
)
SECONDS = Metric("seconds", "latency", "milliseconds", 1e-3, "MS", "measured on this machine")
