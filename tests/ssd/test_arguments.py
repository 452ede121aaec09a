"""What cannot be asked for, told before anything is read."""

import os
from pathlib import Path

import pytest
import torch

from examples.ssd import train
from examples.ssd.arguments import parse_arguments
from examples.ssd.errors import RequestError
from examples.ssd.programs import wanted_device


@pytest.mark.parametrize(
    "more",
    [
        "--workers -1",
        "--lr -1",
        "--lr nan",
        "--lr inf",
        "--weight-decay -1",
        "--warmup -3",
        "--eval-every -1",
        "--seed -1",
        "--seed 9999999999999999999",
        "--ema 1.5",
        "--ema 1",
        "--ema 0",
        "--size 0",
        "--epochs 0",
        "--first 0",
        f"--out {__file__}",
        "--freeze-norms --sync-norms",
        "--init-from nothing.pt",
        "--data nowhere",
    ],
)
def test_values_without_a_meaning_are_refused(
    more: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        parse_arguments(["--out", "run", *more.split()])
    assert end.value.code == 2
    assert "error: argument --" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("meta", "there are cpu, cuda"),
        ("nothing", "is no device"),
        ("cuda:99", "torch finds"),
        ("cpu:1", "torch finds"),
    ],
)
def test_a_device_that_does_not_compute_is_refused(name: str, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        wanted_device(name)


def test_deterministic_tells_cublas_before_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    try:
        with pytest.raises(RequestError, match="name the images"):
            train.main(["--deterministic", "--device", "cpu", "--out", str(tmp_path / "run")])
        assert (
            torch.are_deterministic_algorithms_enabled()
            and os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        )
    finally:
        torch.use_deterministic_algorithms(False)
        monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
