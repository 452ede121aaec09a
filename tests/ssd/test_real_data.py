"""Real photographs, end to end: read, trained on, evaluated, drawn."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import stridesurgery as ss
from examples.ssd import augment, checkpoint, detect, evaluate, model, train
from examples.ssd.annotations import Split, find_split, read_annotations
from examples.ssd.configurations import SHUFFLENET, find
from examples.ssd.data import Images
from examples.ssd.evaluation import load_truth
from examples.ssd.shufflenet import ShuffleNetV2
from examples.ssd.starting import WAKING_IMAGES, on_backbone
from examples.ssd.weights import load_backbone, read
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


def test_the_papers_backbone_starts_training_as_what_it_was(data: Path) -> None:
    """The norms of these weights are folded, all but the biases; asleep, train mode would undo the pretraining."""
    [path] = (data / "weights").glob("mobilenet_v1_100_imagenet*")
    annotations = read_annotations(find_split(data / "smallobj/bccd", "train"))
    row = find("SSDMnetv1")
    ssd, said = on_backbone(row, annotations, str(path))
    assert said.endswith("27 folded batch norms woken")
    image = Images(annotations, augment.for_testing(row.size))
    batch = ssd.prepare(torch.stack([image[i].image for i in range(WAKING_IMAGES)]))
    backbone = load_backbone(row.backbone, str(path)).net.eval()
    with torch.no_grad():
        before = ss.features(backbone, row.small, input_size=row.size)(batch)
        for mode in (True, False):
            after = ssd.train(mode).features(batch)
            for key, expected in before.items():
                difference = (after[key] - expected).norm() / expected.norm()
                assert difference < 0.02, (mode, key)


def test_shufflenets_weights_see_the_pixels_that_they_learned_from(data: Path) -> None:
    """Blue first in their file, red first here; every norm finds about the spread that it remembers."""
    path = data / "weights" / "shufflenetv2_fastestdet_backbone.safetensors"
    backbone = load_backbone(SHUFFLENET, str(path))
    published = ShuffleNetV2()
    published.load_state_dict(read(path))
    images = Images(
        read_annotations(find_split(data / "coco_public", "val")), augment.for_testing(224)
    )
    pixels = torch.stack([images[i].image for i in range(16)]).float() / 255
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (backbone.mean, backbone.std))
    ratios: list[float] = []

    def note(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(norm, nn.BatchNorm2d) and norm.running_var is not None
        ratios.append(float(inputs[0].var((0, 2, 3)).sum() / norm.running_var.sum()))

    for module in backbone.net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(note)
    with torch.no_grad():
        own = backbone.net.eval()((pixels - mean) / std)
        theirs = published.eval()(pixels.flip(1))
    for a, b in zip(own, theirs, strict=True):
        torch.testing.assert_close(a, b)
    assert all(0.5 < ratio < 2 for ratio in ratios), ratios


@pytest.fixture(scope="module")
def cars(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run on aerial photographs, from ImageNet weights."""
    out = tmp_path_factory.mktemp("cars")
    [weights] = (data / "weights").glob("mobilenet_v1_100_imagenet*")
    recipe = [
        "--epochs",
        "1",
        "--batch",
        "4",
        "--max-steps",
        "4",
        "--log-every",
        "1",
        "--workers",
        "0",
    ]
    where = [
        "--data",
        str(data / "smallobj/aerial_cars"),
        "--out",
        str(out),
        "--weights",
        str(weights),
    ]
    train.main(["--config", "SSDMnetv1-Anchor10", *where, *recipe])
    return out


def test_training_on_small_objects_logs_its_curve(
    cars: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (cars / "training.csv").open(newline="") as table:
        rows = list(csv.DictReader(table))
    assert [int(r["step"]) for r in rows] == [0, 1, 2, 3]
    assert all(0 < float(r["loss"]) < 1000 for r in rows)


def test_small_objects_are_evaluated_and_drawn(data: Path, cars: Path, tmp_path: Path) -> None:
    folder = data / "smallobj/aerial_cars/val"
    evaluate.main(
        [str(cars / "last.pt"), "--data", str(folder), "--out", str(tmp_path), "--workers", "0"]
    )
    assert (tmp_path / "summary.json").is_file()
    image = sorted((folder / "images").iterdir())[0]
    detect.main([str(cars / "last.pt"), str(image), "--out", str(tmp_path), "--threshold", "0"])
    assert (tmp_path / image.name).is_file()


# ---- COCO's images


@pytest.fixture(scope="module")
def coco(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Split:
    """Twenty-four of COCO's images, with all of its categories."""
    whole = find_split(data / "coco_public", "val")
    content = json.loads(whole.annotations.read_text())
    images = content["images"][::19]
    ids = {image["id"] for image in images}
    marks = [mark for mark in content["annotations"] if mark["image_id"] in ids]
    path = tmp_path_factory.mktemp("coco") / "instances.json"
    path.write_text(json.dumps({**content, "images": images, "annotations": marks}))
    return Split(path, whole.images)


@pytest.fixture(scope="module")
def untrained(coco: Split, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints of the base and of S1L0, for COCO's classes, with the same random weights."""
    folder, categories = tmp_path_factory.mktemp("untrained"), read_annotations(coco).categories
    paths, weights = {}, None
    for name in ("SSDMnetv1", "SSDMnetv1-S1L0"):
        torch.manual_seed(0)
        ssd = model.build(find(name), categories.classes)
        weights = weights or ssd.state_dict()
        paths[name] = folder / f"{name}.pt"
        checkpoint.save(
            paths[name], {**checkpoint.described(find(name), categories), "model": weights}
        )
    return paths


def test_what_coco_says_is_perfect(data: Path) -> None:
    """The objects themselves as detections, on every image; crowds are not asked for."""
    split = find_split(data / "coco_public", "val")
    truth = load_truth(split.annotations)
    found = [{**a, "score": 1.0} for a in truth.dataset["annotations"] if not a["iscrowd"]]
    summary = evaluate.evaluated(split, found)
    assert (
        summary.images == 452
        and summary.ap == pytest.approx(100)
        and summary.ar_small == pytest.approx(100)
    )


def test_cocos_images_are_evaluated(
    coco: Split, untrained: dict[str, Path], tmp_path: Path
) -> None:
    where = [
        "--json",
        str(coco.annotations),
        "--images",
        str(coco.images),
        "--out",
        str(tmp_path),
        "--workers",
        "0",
    ]
    evaluate.main([str(untrained["SSDMnetv1"]), *where])
    found = json.loads((tmp_path / "detections.json").read_text())
    sizes = {r.id: (r.width, r.height) for r in read_annotations(coco).records}
    assert {d["image_id"] for d in found} == sizes.keys() and len(sizes) == 24
    for x, y, width, height, (right, bottom) in ((*d["bbox"], sizes[d["image_id"]]) for d in found):
        assert x >= 0 and y >= 0 and x + width <= right + 0.01 and y + height <= bottom + 0.01
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["images"] == 24 and 0 <= summary["ap"] < 5 and round(summary["gmacs"], 2) == 2.54


def test_two_networks_are_drawn_side_by_side_on_cocos_images(
    coco: Split, untrained: dict[str, Path], tmp_path: Path
) -> None:
    images = [r.path for r in read_annotations(coco).records[:3]]
    detect.main(
        [
            *map(str, untrained.values()),
            *map(str, images),
            "--threshold",
            "0.012",
            "--out",
            str(tmp_path),
        ]
    )
    for path in images:
        with Image.open(path) as photograph, Image.open(tmp_path / path.name) as drawing:
            assert drawing.size == (2 * photograph.width, photograph.height)
            halves = (
                drawing.crop((0, 0, *photograph.size)),
                drawing.crop((photograph.width, 0, *drawing.size)),
            )
            assert all(changed(half, photograph) > 0.01 for half in halves)


def changed(drawing: Image.Image, photograph: Image.Image) -> float:
    """The share of pixels that differ by more than JPEG would change them."""
    difference = np.abs(
        np.asarray(drawing, np.int16) - np.asarray(photograph.convert("RGB"), np.int16)
    )
    return float((difference.max(axis=2) > 60).mean())
