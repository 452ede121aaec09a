"""The programs, run as a user runs them, on a detector of a few seconds' training."""

import json
import re
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image

from examples.ssd import (
    benchmark,
    configurations,
    demonstration,
    detect,
    evaluate,
    fast_evaluation,
    report,
    synthetic,
)
from examples.ssd.annotations import find_split
from examples.ssd.configurations import ROWS
from examples.ssd.data import Share
from examples.ssd.errors import CheckpointError, DataError, EvaluationError, RequestError
from examples.ssd.evaluate import COLUMNS
from examples.ssd.evaluation import load_truth
from examples.ssd.paper import TABLE_4
from examples.ssd.processes import Processes

ALONE = Processes(Share(), torch.device("cpu"))


@pytest.fixture(scope="module")
def evaluated(trained: Path, shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("evaluated")
    evaluate.main(
        [
            str(trained / "last.pt"),
            "--data",
            str(shapes),
            "--out",
            str(out),
            "--workers",
            "0",
            "--per-class",
        ]
    )
    return out


def test_evaluate_writes_cocos_results_and_a_summary(evaluated: Path, shapes: Path) -> None:
    found = json.loads((evaluated / "detections.json").read_text())
    assert found and found[0].keys() == {"image_id", "category_id", "bbox", "score"}
    assert max(sum(d["image_id"] == i for d in found) for i in range(1, 9)) <= 100
    summary = json.loads((evaluated / "summary.json").read_text())
    assert (
        summary["row"] == "SSD-test_resnet-S1L0" and summary["images"] == 8 and summary["gmacs"] > 0
    )
    assert {*COLUMNS} <= summary.keys() and 0 <= summary["ap50"] <= 100
    assert summary["evaluator"].startswith("pycocotools ")


def test_perfect_detections_are_perfect(shapes: Path) -> None:
    split = find_split(shapes, "val")
    truth = load_truth(split.annotations)
    found = [{**a, "score": 1.0} for a in truth.dataset["annotations"]]
    summary = evaluate.evaluated(split, found)
    assert summary.ap == pytest.approx(100) and summary.ar_small == pytest.approx(100)


def test_the_faster_evaluator_says_the_same(evaluated: Path, shapes: Path) -> None:
    pytest.importorskip("faster_coco_eval")
    truth = load_truth(find_split(shapes, "val").annotations)
    real = json.loads((evaluated / "detections.json").read_text())
    close = [
        {**a, "bbox": [v + 2 for v in a["bbox"]], "score": 1 / a["id"]}
        for a in truth.dataset["annotations"]
    ]
    for found in (real, close, []):
        slow, fast = evaluate.evaluate(truth, found), fast_evaluation.evaluate(truth, found)
        assert fast_evaluation.largest_difference(slow, fast) < 1e-6


def test_both_evaluators_must_agree(shapes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faster_coco_eval")
    truth = load_truth(find_split(shapes, "val").annotations)
    found = [{**a, "score": 1.0} for a in truth.dataset["annotations"]]
    summary, by = evaluate.evaluated_by("both", truth, found)
    assert summary.ap == pytest.approx(100) and re.fullmatch(
        r"pycocotools .*; faster-coco-eval .* agrees, .*", by
    )
    assert evaluate.evaluated_by("faster", truth, found)[1].startswith("faster-coco-eval ")
    wrong = replace(summary, ap_small=summary.ap_small - 0.01)
    monkeypatch.setattr(fast_evaluation, "evaluate", lambda *_: wrong)
    with pytest.raises(EvaluationError, match="differ by 0.01 percent"):
        evaluate.evaluated_by("both", truth, found)


def test_evaluating_on_other_classes_is_told(trained: Path, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 8, "height": 8}],
        "annotations": [],
    }
    (tmp_path / "a.json").write_text(
        json.dumps({**content, "categories": [{"id": 1, "name": "other"}]})
    )
    with pytest.raises(
        CheckpointError, match=r"knows 6 categories \(disc, square, triangle, ...\), .* have 1"
    ):
        evaluate.main(
            [
                str(trained / "last.pt"),
                "--json",
                str(tmp_path / "a.json"),
                "--images",
                str(tmp_path),
            ]
        )
    with pytest.raises(RequestError, match="name the images"):
        evaluate.main([str(trained / "last.pt")])


def test_detect_draws_side_by_side(trained: Path, shapes: Path, tmp_path: Path) -> None:
    checkpoint, folder = str(trained / "last.pt"), shapes / "val2017"
    detect.main(
        [checkpoint, checkpoint, str(folder), "--out", str(tmp_path), "--threshold", "0.02"]
    )
    drawn = sorted(tmp_path.iterdir())
    assert [p.name for p in drawn] == [p.name for p in sorted(folder.iterdir())]
    picture, original = Image.open(drawn[0]), Image.open(folder / "000000.jpg")
    assert picture.size == (2 * original.width, original.height)
    left, right = (
        picture.crop((0, 0, *original.size)),
        picture.crop((original.width, 0, *picture.size)),
    )
    assert left.tobytes() == right.tobytes() != original.convert("RGB").tobytes()


def test_drawings_have_the_images_names_and_overwrite_nothing(
    trained: Path, shapes: Path, tmp_path: Path
) -> None:
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    with Image.open(shapes / "val2017/000000.jpg") as original:
        for name in ("p.jpg", "p.png", "q.tif"):
            original.save(photographs / name)
    one, out = str(photographs / "p.png"), tmp_path / "out"
    detect.main(
        [
            str(trained / "last.pt"),
            str(photographs),
            one,
            str(photographs / "q.tif"),
            "--out",
            str(out),
        ]
    )
    assert sorted(p.name for p in out.iterdir()) == ["p.jpg", "p.png", "q.tif.png"]
    with pytest.raises(
        RequestError, match="p.jpg is one of the images; give another folder with --out"
    ):
        detect.main([str(trained / "last.pt"), str(photographs), "--out", str(photographs)])
    with pytest.raises(RequestError, match=r"photographs/p.png and .*out/p.png have one name"):
        detect.main(
            [str(trained / "last.pt"), one, str(out / "p.png"), "--out", str(tmp_path / "new")]
        )
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("paths", "error", "message"),
    [
        (["photo.jpg"], RequestError, "at least one checkpoint"),
        (["no.pt"], RequestError, "and one image"),
        (["no.pt", "photo.jpg"], CheckpointError, "there is no checkpoint no.pt"),
        (["no.pt", "no.jpg"], DataError, "no image or folder no.jpg"),
        (["no.pt", "."], DataError, r"holds no images \(.bmp, "),
    ],
)
def test_detect_says_what_is_missing(
    paths: list[str],
    error: type[Exception],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "empty").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path / "empty" if "." in paths else tmp_path)
    with pytest.raises(error, match=message):
        detect.main(paths)


@pytest.mark.parametrize(
    ("program", "arguments"),
    [
        (detect, ["last.pt", "--threshold", "nan"]),
        (detect, ["last.pt", "--threshold", "2"]),
        (detect, ["last.pt", "--out", "file"]),
        (evaluate, ["file", "--per-image", "-5"]),
        (evaluate, ["file", "--workers", "-1"]),
        (evaluate, ["file", "--batch", "0"]),
        (evaluate, ["file", "--out", "file"]),
        (evaluate, ["no.pt"]),
        (benchmark, ["--runs", "0"]),
        (benchmark, ["--json", "."]),
        (report, ["file", "--out", "file"]),
        (report, ["no.json"]),
        (synthetic, ["file"]),
        (synthetic, ["new", "--seed", "-1"]),
    ],
)
def test_nonsense_is_refused_before_anything_is_done(
    program: ModuleType, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as stopped:
        program.main(arguments)
    assert stopped.value.code == 2


def test_detections_do_not_depend_on_the_others(trained: Path, shapes: Path) -> None:
    """Deterministic at test time: alone or in a batch, an image gives the same boxes."""
    from examples.ssd.annotations import read_annotations
    from examples.ssd.checkpoint import detector

    ssd, annotations = (
        detector(trained / "last.pt").ssd,
        read_annotations(find_split(shapes, "val")),
    )
    alone, together = (evaluate.detect_all(ssd, annotations, ALONE, batch=size) for size in (1, 8))
    assert len(alone) == len(together)
    for a, b in zip(alone, together, strict=True):
        assert a["image_id"] == b["image_id"] and a["score"] == pytest.approx(b["score"], abs=1e-4)


def test_report_draws_what_evaluate_wrote(
    evaluated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = json.loads((evaluated / "summary.json").read_text())
    other = tmp_path / "other.json"
    other.write_text(
        json.dumps({**summary, "row": "other", "gmacs": 2 * summary["gmacs"], "ap_large": None})
    )
    report.main([str(evaluated / "summary.json"), str(other), "--out", str(tmp_path)])
    assert "other" in capsys.readouterr().out
    for name in ("compute.png", "classes.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    bad = {"ap": "1", "gmacs": [], "per_class": {"disc": {}}}
    for content, message in [
        ({}, "is not a summary.json"),
        *((summary | {key: value}, f"{key}.* is .*, not a number") for key, value in bad.items()),
        (summary | {"per_class": 3}, "per_class is 3, not a figure for each class"),
    ]:
        other.write_text(json.dumps(content))
        with pytest.raises(DataError, match=message):
            report.main([str(other)])


def test_report_draws_what_has_no_class_in_common(evaluated: Path, tmp_path: Path) -> None:
    summary = json.loads((evaluated / "summary.json").read_text())
    nothing = {name: None for name in COLUMNS}
    for name, classes in (("a", {"one": 1.0}), ("b", {"two": 2.0})):
        (tmp_path / f"{name}.json").write_text(
            json.dumps({**summary, **nothing, "per_class": classes})
        )
    report.main([str(tmp_path / "a.json"), str(tmp_path / "b.json"), "--out", str(tmp_path)])
    assert (tmp_path / "classes.png").is_file()


def test_benchmark_reports_ratios_to_the_base(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "times.json"
    benchmark.main(
        ["--rows", "SSDMnetv1-S1L6", "--runs", "2", "--device", "cpu", "--json", str(out)]
    )
    times = json.loads(out.read_text())
    assert list(times) == ["SSDMnetv1", "SSDMnetv1-S1L6"] and times["SSDMnetv1"]["ratio"] == 1
    fine = times["SSDMnetv1-S1L6"]
    assert fine["ratio"] == fine["median"] / times["SSDMnetv1"]["median"] > 1
    assert "paper ratio" in capsys.readouterr().out


def test_benchmark_times_every_row_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert benchmark.rows_named(["all"]) == list(ROWS)
    assert benchmark.rows_named(["table4"]) == list(TABLE_4)
    with pytest.raises(RequestError, match="no configuration 'S1L0'"):
        benchmark.rows_named(["S1L0"])


def test_a_benchmark_that_is_stopped_says_what_it_has() -> None:
    runs = iter(range(9))

    def call() -> None:
        if next(runs) == 8:
            raise KeyboardInterrupt

    times = benchmark.measure({"it": call}, torch.device("cpu"), 1000)
    assert times["it"].runs == 3  # after five that warm up
    runs = iter([8])
    with pytest.raises(KeyboardInterrupt):
        benchmark.measure({"it": call}, torch.device("cpu"), 1)


def test_the_table_of_configurations_prints_every_row(capsys: pytest.CaptureFixture[str]) -> None:
    configurations.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(ROWS)


def test_the_generator_writes_cocos_layout(tmp_path: Path) -> None:
    synthetic.main([str(tmp_path / "new"), "--train", "2", "--val", "1", "--sizes", "small"])
    truth = load_truth(tmp_path / "new/annotations/instances_val2017.json")
    assert len(truth.imgs) == 1 and all(a["area"] < 32**2 for a in truth.anns.values())


def test_the_demonstration_prints_both_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    demonstration.main(["--epochs", "1", "--images", "12", "--out", str(tmp_path)])
    header, base, fine = capsys.readouterr().out.splitlines()[-3:]
    assert "AP small" in header and "AR large" in header
    assert base.split()[0] == "base" and fine.split()[0] == "S1L0"
    assert float(fine.split()[-1]) > 2 * float(base.split()[-1])
