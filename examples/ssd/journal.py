"""What a run says of itself: CSV files, and TensorBoard where it is installed. A resumed run continues both."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from examples.ssd.errors import RequestError


class Journal:
    """One table `<name>.csv` in a folder for every kind of row; rows are numbered by the steps of the run."""

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

    def close(self) -> None:
        if self.board is not None:
            self.board.close()


def _rewind(path: Path, first_step: int, header: list[str]) -> None:
    """Keep the rows before `first_step`; rows that were cut off while being written go too."""
    rows: list[list[str]] = []
    if first_step > 0 and path.is_file():
        with path.open(newline="") as table:
            rows = [r for r in csv.reader(table) if len(r) == len(header) and r[0].isdigit() and int(r[0]) < first_step]
    with path.open("w", newline="") as table:
        csv.writer(table).writerows([header, *rows])


def _board(folder: Path, first_step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise RequestError("--tensorboard needs the package tensorboard: pip install tensorboard") from None
    return SummaryWriter(str(folder), purge_step=first_step)
