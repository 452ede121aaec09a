"""Real photographs, end to end: read, trained on, evaluated, drawn."""

import csv
from pathlib import Path

import pytest

from examples.ssd import detect, evaluate, train
from examples.ssd.annotations import find_split, read_annotations
from examples.ssd.weights import load_backbone
from tests.ssd.conftest import DATA, needs_data

pytestmark = [pytest.mark.data, needs_data]
SETS = {
    "coco_public": 452,
    "coco_train": 2300,
    "smallobj/aerial_cars": 91,
    "smallobj/deeppcb": 1000,
    "smallobj/bccd": 292,
}


@pytest.fixture(scope="module")
def data() -> Path:
    assert DATA is not None
    return Path(DATA)


@pytest.mark.parametrize("name", SETS)
def test_every_set_is_read(data: Path, name: str) -> None:
    annotations = read_annotations(find_split(data / name, "train"))
    assert len(annotations.records) == SETS[name]
    assert len(annotations.with_objects().records) > 0.9 * SETS[name]


def test_imagenet_weights_load_into_the_papers_backbone(data: Path) -> None:
    [path] = (data / "weights").glob("mobilenet_v1_100_imagenet*")
    backbone = load_backbone("mobilenetv1_100", str(path))
    assert tuple(backbone.mean) == (128 / 255,) * 3 and "imagenet" in backbone.source


@pytest.fixture(scope="module")
def cars(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run on aerial photographs, from ImageNet weights."""
    out = tmp_path_factory.mktemp("cars")
    [weights] = (data / "weights").glob("mobilenet_v1_100_imagenet*")
    recipe = ["--epochs", "1", "--batch", "4", "--max-steps", "4", "--log-every", "1", "--workers", "0"]
    where = ["--data", str(data / "smallobj/aerial_cars"), "--out", str(out), "--weights", str(weights)]
    train.main(["--config", "SSDMnetv1-S1L6", *where, *recipe])
    return out


def test_training_on_small_objects_logs_its_curve(cars: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (cars / "training.csv").open(newline="") as table:
        rows = list(csv.DictReader(table))
    assert [int(r["step"]) for r in rows] == [0, 1, 2, 3]
    assert all(0 < float(r["loss"]) < 1000 for r in rows)


def test_real_images_are_evaluated_and_drawn(data: Path, cars: Path, tmp_path: Path) -> None:
    folder = data / "smallobj/aerial_cars/val"
    evaluate.main([str(cars / "last.pt"), "--data", str(folder), "--out", str(tmp_path), "--workers", "0"])
    assert (tmp_path / "summary.json").is_file()
    image = sorted((folder / "images").iterdir())[0]
    detect.main([str(cars / "last.pt"), str(image), "--out", str(tmp_path), "--threshold", "0"])
    assert (tmp_path / f"{image.stem}.png").is_file()
