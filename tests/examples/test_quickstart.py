"""The main job, run as a user runs it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DATA = os.environ.get("STRIDESURGERY_DATA")


def quickstart(tmp_path: Path, data: str, *arguments: str) -> str:
    """What `python -m examples.quickstart` prints, once its story and its picture are checked."""
    picture = tmp_path / "picture.png"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    environment |= {"MPLBACKEND": "Agg", "PYTHONPATH": str(ROOT), "STRIDESURGERY_DATA": data}
    command = [sys.executable, "-m", "examples.quickstart", "--out", str(picture), *arguments]
    how = {"env": environment, "cwd": tmp_path, "capture_output": True, "text": True}
    done = subprocess.run(command, timeout=300, **how)
    assert done.returncode == 0, done.stderr
    text = done.stdout
    assert "14 layers, 5 strided, 5 transitions" in text
    assert "S1L0 verified at 224x224" in text and "[::2, ::2] equals the original" in text
    assert "512 x 14 x 14" in text and "512 x 28 x 28" in text
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 20_000
    return text


def test_without_data_it_says_what_it_uses_instead(tmp_path: Path) -> None:
    text = quickstart(tmp_path, "")
    assert "RANDOM weights" in text and "a drawn picture" in text
    assert "fine-tuned" not in text  # random weights recognise nothing, and nothing is claimed


@pytest.mark.data
@pytest.mark.skipif(DATA is None, reason="STRIDESURGERY_DATA names no folder")
def test_real_weights_name_a_real_photograph(tmp_path: Path) -> None:
    text = quickstart(tmp_path, DATA or "")
    assert "RANDOM" not in text and "original, not fine-tuned: zebra" in text


def test_wrong_arguments_say_so(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="there is no file 'missing.jpg'"):
        quickstart(tmp_path, "", "--image", "missing.jpg")
