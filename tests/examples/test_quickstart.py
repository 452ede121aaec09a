"""The main job, run as a user runs it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DATA = os.environ.get("STRIDESURGERY_DATA")


def quickstart(tmp_path: Path, data: str | None, *arguments: str) -> tuple[str, Path]:
    """What `python -m examples.quickstart` prints, and the picture it saves."""
    picture = tmp_path / "picture.png"
    environment = {k: v for k, v in os.environ.items() if k != "STRIDESURGERY_DATA"}
    environment |= {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path),
        "MPLBACKEND": "Agg",
        "PYTHONPATH": str(ROOT),
    }
    if data is not None:
        environment["STRIDESURGERY_DATA"] = data
    command = [sys.executable, "-m", "examples.quickstart", "--out", str(picture), *arguments]
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, picture


def check_story(text: str, picture: Path) -> None:
    assert "14 layers, 5 strided, 5 transitions" in text
    assert "S1L0 verified at 224x224" in text and "[::2, ::2] equals the original" in text
    assert "1024 x 7 x 7" in text and "1024 x 14 x 14" in text
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 20_000


def test_without_data_it_says_what_it_uses_instead(tmp_path: Path) -> None:
    text, picture = quickstart(tmp_path, None)
    check_story(text, picture)
    assert "RANDOM weights" in text and "a drawn picture" in text
    assert "agree" not in text  # random weights recognise nothing, and nothing is claimed


@pytest.mark.data
@pytest.mark.skipif(
    DATA is None, reason="STRIDESURGERY_DATA names no folder with weights and photographs"
)
def test_real_weights_name_real_photographs(tmp_path: Path) -> None:
    text, picture = quickstart(tmp_path, DATA)
    check_story(text, picture)
    assert "RANDOM" not in text
    agreed, count = next(line for line in text.splitlines() if line.endswith("agree.")).split()[
        0:3:2
    ]
    assert int(count) >= 5 and int(agreed) >= 0.6 * int(count)


def test_wrong_arguments_say_so(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="there is no file 'missing.jpg'"):
        quickstart(tmp_path, None, "--image", "missing.jpg")
    with pytest.raises(AssertionError, match="which is no folder"):
        quickstart(tmp_path, str(tmp_path / "missing"))
