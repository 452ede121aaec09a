"""The programs, run as a user runs them, on a detector of a few seconds' training."""

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image

from examples.ssd import data, demonstration, detect, evaluate, tables, train
from examples.ssd.data import CocoImages, find_split
from examples.ssd.evaluate import COLUMNS, detect_all, load_truth
from examples.ssd.paper import TABLE_4
from examples.ssd.processes import Processes
from examples.ssd.programs import DetectionError
from examples.ssd.training import detector
from tests.ssd.conftest import arguments


def test_evaluate_prints_the_papers_columns_and_writes_cocos_results(
    trained: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(trained / "last.pt")
    words = [path, path, "--data", str(shapes), "--out", str(tmp_path), "--workers", "0"]
    evaluate.main(words)
    header, first, second = capsys.readouterr().out.splitlines()
    assert "AP small" in header and "AR large" in header
    assert first.split()[1:] == second.split()[1:] and len(first.split()) == 1 + len(COLUMNS)
    name = "SSD-test_resnet-S1L0"
    found = json.loads((tmp_path / f"{name}.json").read_text())
    assert found[0].keys() == {"image_id", "category_id", "bbox", "score"}
    assert max(sum(d["image_id"] == i for d in found) for i in range(1, 9)) <= 100
    record = json.loads((tmp_path / "summary.json").read_text())[name]
    assert {*COLUMNS} <= record.keys() and record["gmacs"] > 0 and 0 <= record["ap50"] <= 100


def test_what_the_file_says_is_perfect(shapes: Path) -> None:
    truth = load_truth(find_split(shapes, "val").annotations)
    summary = evaluate.evaluate(truth, [{**a, "score": 1.0} for a in truth.dataset["annotations"]])
    assert summary.figures["ap"] == pytest.approx(100) == summary.figures["ar_small"]
    assert summary.per_class["disc"] == pytest.approx(100) and summary.images == 8


def test_evaluating_on_other_classes_is_told(trained: Path, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    images = [{"id": 1, "file_name": "a.png", "width": 8, "height": 8}]
    content = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "other"}]}
    (tmp_path / "a.json").write_text(json.dumps(content))
    words = [str(trained / "last.pt"), "--json", str(tmp_path / "a.json")]
    with pytest.raises(DetectionError, match="knows other categories than"):
        evaluate.main([*words, "--images", str(tmp_path)])
    with pytest.raises(DetectionError, match="name the images: --data FOLDER, or --json FILE and"):
        evaluate.main(words)


def test_detections_do_not_depend_on_the_others(trained: Path, shapes: Path) -> None:
    """Alone or in a batch, an image gives the same boxes, in pixels of the annotated image."""
    ssd, images = detector(trained / "last.pt")[0], CocoImages(find_split(shapes, "val"))
    alone_here = Processes(torch.device("cpu"))
    alone, together = (detect_all(ssd, images, alone_here, batch=size) for size in (1, 8))
    assert len(alone) == len(together) > 0
    for a, b in zip(alone, together, strict=True):
        assert a["image_id"] == b["image_id"] and a["score"] == pytest.approx(b["score"], abs=1e-4)
        x, y, width, height = a["bbox"]
        assert min(x, y) >= 0 and max(x + width, y + height) <= 320.01


def test_detect_draws_side_by_side_and_overwrites_nothing(
    trained: Path, shapes: Path, tmp_path: Path
) -> None:
    checkpoint, folder, out = str(trained / "last.pt"), shapes / "val2017", str(tmp_path / "out")
    images = [str(path) for path in sorted(folder.iterdir())]
    detect.main([checkpoint, checkpoint, *images, "--out", out, "--threshold", "0.02"])
    drawn = sorted((tmp_path / "out").iterdir())
    assert [p.stem for p in drawn] == [Path(name).stem for name in images]
    picture, original = Image.open(drawn[0]), Image.open(folder / "000001.jpg").convert("RGB")
    assert picture.size == (2 * original.width, original.height)
    halves = [picture.crop((x, 0, x + original.width, original.height)) for x in (0, 320)]
    assert halves[0].tobytes() == halves[1].tobytes() != original.tobytes()
    with pytest.raises(DetectionError, match="000001.png is there already; give another folder"):
        detect.main([checkpoint, *images, "--out", out])
    with pytest.raises(DetectionError, match="at least one checkpoint"):
        detect.main([str(drawn[0])])


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (detect, ". --threshold nan"),
        (evaluate, ". --batch 0"),
        (evaluate, ". --workers -1"),
        (tables, "--runs -1"),
        (data, ". --out new --images 0"),
        *((train, f"--out run {more}") for more in ("--lr -1", "--lr nan", "--epochs 0")),
        *((train, f"--out run {more}") for more in ("--ema 1", "--amp x", "--init-from")),
    ],
)
def test_nonsense_is_refused_before_anything_is_done(
    program: ModuleType, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        program.main(words.split())
    assert stopped.value.code == 2 and "error: argument" in capsys.readouterr().err


@pytest.mark.parametrize("device", ["meta", "nothing", "cuda:99"])
def test_requests_that_contradict_themselves_are_told(shapes, tmp_path, device: str) -> None:
    for more, message in {
        ("--device", device): f"--device {device} does not compute",
        ("--config", "SSDMnetv1"): "and a --config name two detectors",
        ("--batch", "0.5"): None,
        ("--batch", "1"): "batch norms need two images a process",
    }.items():
        with pytest.raises((DetectionError, SystemExit), match=message):
            train.main(arguments(shapes, tmp_path, *more))


def test_latency_is_told_as_a_ratio_to_the_base(capsys: pytest.CaptureFixture[str]) -> None:
    tables.main("--rows SSDMnetv1-S1L6 --runs 2 --device cpu".split())
    base, fine = (line.split() for line in capsys.readouterr().out.splitlines()[-2:])
    assert base[0] == "SSDMnetv1" and base[5] == "1.00" and float(fine[5]) > 1
    assert fine[0] == "SSDMnetv1-S1L6" and fine[-2:] == ["6.9", "1.00"]
    assert TABLE_4["SSDMnetv1-S1L6"] == 6.9


def test_the_demonstration_prints_both_rows_and_goes_on_where_it_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        demonstration.main(["--epochs", "1", "--images", "12", "--out", str(tmp_path)])
        header, base, fine = capsys.readouterr().out.splitlines()[-3:]
        assert "AP small" in header and fine.split()[0] == f"{base.split()[0]}-S1L0"


def test_the_package_lists_its_programs() -> None:
    command = [sys.executable, "-m", "examples.ssd"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(lines) == 6 and any("examples.ssd.train " in line for line in lines)
