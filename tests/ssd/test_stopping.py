"""Signals, and what is left on the disk when a run ends early."""

import os
import signal
from pathlib import Path

import pytest
import torch

from examples.ssd import checkpoint, stop
from examples.ssd.errors import CheckpointError
from examples.ssd.files import write_atomically
from examples.ssd.journal import Journal
from examples.ssd.stop import Stop

KILLED = 128 + signal.SIGTERM


def test_the_first_signal_is_noted_and_its_echo_too(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGTERM)
    told = Stop()
    with told.on_signals():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)  # as a launcher passes it on
        assert told.signal == signal.SIGTERM and told.code == KILLED
        monkeypatch.setattr(stop, "SAME", 0.0)
        with pytest.raises(SystemExit) as end:
            signal.raise_signal(signal.SIGINT)
        assert end.value.code == 128 + signal.SIGINT
    assert signal.getsignal(signal.SIGTERM) is before


def test_while_there_is_nothing_to_save_a_signal_ends_it_at_once() -> None:
    told = Stop()
    with told.on_signals():
        with pytest.raises(SystemExit), told.at_once():
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(SystemExit) as end, told.at_once():
            raise AssertionError("it was told before")
        assert end.value.code == KILLED


def test_a_write_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    (tmp_path / ".last.pt.123.part").write_text("half")
    (tmp_path / ".other.pt.123.part").write_text("half")
    with write_atomically(tmp_path / "last.pt") as part:
        part.write_text("whole")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".other.pt.123.part", "last.pt"]


@pytest.mark.skipif(os.name != "posix", reason="limits of the size of files are POSIX's")
def test_a_full_disk_keeps_the_checkpoint_before(tmp_path: Path) -> None:
    import resource

    path = tmp_path / "last.pt"
    checkpoint.save(path, {"model": {"a": torch.zeros(10)}})
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(CheckpointError, match="could not be written"):
            checkpoint.save(path, {"model": {"a": torch.zeros(10**6)}})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def lines(folder: Path, name: str) -> list[str]:
    return (folder / f"{name}.csv").read_text().splitlines()


def test_a_resumed_journal_takes_back_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    """Both tables go by steps: evaluations after epochs 1 and 2 of four steps, of which the second is taken back."""
    first = Journal(tmp_path, 0, tensorboard=False)
    for step in range(8):
        first.write("training", step, {"loss": step})
        if step % 4 == 3:
            first.write("evaluation", step, {"epoch": (step + 1) // 4})
    resumed = Journal(tmp_path, 6, tensorboard=False)
    assert resumed.has("evaluation", 3) and not resumed.has("evaluation", 7)
    resumed.write("training", 6, {"loss": 60})
    resumed.write("evaluation", 7, {"epoch": 20})
    assert resumed.has("evaluation", 7)
    assert lines(tmp_path, "training")[1:] == [*(f"{n},{n}" for n in range(6)), "6,60"]
    assert lines(tmp_path, "evaluation") == ["step,epoch", "3,1", "7,20"]


def test_a_new_run_in_the_folder_of_an_old_one_starts_its_tables_anew(tmp_path: Path) -> None:
    Journal(tmp_path, 0, tensorboard=False).write("evaluation", 3, {"epoch": 1})
    new = Journal(tmp_path, 0, tensorboard=False)
    assert not new.has("evaluation", 3)
    new.write("evaluation", 1, {"epoch": 1})
    assert lines(tmp_path, "evaluation") == ["step,epoch", "1,1"]


def test_a_row_that_was_cut_off_is_no_row(tmp_path: Path) -> None:
    (tmp_path / "training.csv").write_bytes(b"step,loss\n0,1.5\n\0\0\n\xff,1\n1,2.5\n2,3")  # of 3.5
    journal = Journal(tmp_path, 3, tensorboard=False)
    assert journal.has("training", 1) and not journal.has("training", 2)
    journal.write("training", 3, {"loss": 4.5})
    assert lines(tmp_path, "training") == ["step,loss", "0,1.5", "1,2.5", "3,4.5"]
