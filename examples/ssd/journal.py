"""What a run says of itself: CSV files, and TensorBoard where it is installed. A resumed run continues both."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from examples.ssd.errors import RequestError
from examples.ssd.files import write_atomically


class Journal:
    """One table `<name>.csv` in a folder for every kind of row; all are numbered by the last step that was done."""

    def __init__(self, folder: Path, first_step: int, tensorboard: bool) -> None:
        """first_step: what was written of this and later steps, before a stop, is taken back."""
        self.folder, self.first_step = folder, first_step
        self.known: set[str] = set()
        self.board = _board(folder, first_step) if tensorboard else None

    def write(self, name: str, step: int, values: Mapping[str, float]) -> None:
        path = self.folder / f"{name}.csv"
        if name not in self.known:
            self.known.add(name)
            _rewind(path, self.first_step, ["step", *values])
        with path.open("a", newline="") as table:
            csv.writer(table).writerow([step, *values.values()])
        if self.board is not None:
            for key, value in values.items():
                self.board.add_scalar(f"{name}/{key}", value, step)

    def has(self, name: str, step: int) -> bool:
        """Whether there is a row of that step, written now or before a stop."""
        kept = name in self.known or step < self.first_step
        return kept and any(row[0] == str(step) for row in _rows(self.folder / f"{name}.csv"))

    def close(self) -> None:
        if self.board is not None:
            self.board.close()


def _rows(path: Path) -> list[list[str]]:
    """The rows under the header; one that was cut off while being written is none."""
    if not path.is_file():
        return []
    with path.open(newline="", errors="replace") as table:
        # A power cut may leave a line without its end, or zeros.
        rows = list(csv.reader(line for line in table if line.endswith("\n") and "\0" not in line))
    return [row for row in rows[1:] if row and len(row) == len(rows[0]) and row[0].isdigit()]


def _rewind(path: Path, first_step: int, header: list[str]) -> None:
    """Keep the rows before `first_step`."""
    rows = [row for row in _rows(path) if int(row[0]) < first_step and len(row) == len(header)]
    with write_atomically(path) as part, part.open("w", newline="") as table:
        csv.writer(table).writerows([header, *rows])


def _board(folder: Path, first_step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise RequestError(
            "--tensorboard needs the package tensorboard: pip install tensorboard"
        ) from None
    return SummaryWriter(str(folder), purge_step=first_step)
