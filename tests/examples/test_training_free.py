"""The detector that the examples operate on, its demonstration, and the evaluation they share."""

import io
import json
import math
import os
import random
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

pytest.importorskip("pycocotools")

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import stridesurgery as ss
from examples import training_free
from examples.ssd.evaluate import evaluate, load_truth
from examples.study import stock, stock_boxes, stock_picture

ROOT = Path(__file__).parents[2]
DATA = os.environ.get("STRIDESURGERY_DATA")
needs_data = pytest.mark.skipif(
    DATA is None, reason="STRIDESURGERY_DATA names no folder with weights and photographs"
)
SCENE = {
    "images": [
        {"id": i, "width": 640, "height": 480, "file_name": f"{i}.jpg", "license": 4}
        for i in (1, 2, 3)
    ],
    "categories": [
        {"id": 1, "name": "person"},
        {"id": 3, "name": "car"},
        {"id": 4, "name": "boat"},
    ],
    "annotations": [
        {
            "id": 1,
            "image_id": 1,
            "category_id": 1,
            "bbox": [10, 10, 20, 20],
            "area": 400,
            "iscrowd": 0,
        },
        {
            "id": 2,
            "image_id": 1,
            "category_id": 1,
            "bbox": [200, 100, 50, 80],
            "area": 4000,
            "iscrowd": 0,
        },
        {
            "id": 3,
            "image_id": 2,
            "category_id": 3,
            "bbox": [0, 0, 300, 300],
            "area": 90000,
            "iscrowd": 0,
        },
    ],
}


# ---- evaluation


@pytest.fixture
def truth(tmp_path: Path) -> COCO:
    return load_truth(written(tmp_path, SCENE))


def written(folder: Path, content: Any) -> Path:
    path = folder / "instances.json"
    path.write_text(json.dumps(content))
    return path


def perfect(truth: COCO, score: float = 1.0) -> list[dict[str, Any]]:
    return [
        {**{key: a[key] for key in ("image_id", "category_id", "bbox")}, "score": score}
        for a in truth.dataset["annotations"]
        if not a["iscrowd"]
    ]


def test_only_the_chosen_images_count(truth: COCO) -> None:
    detections = [d for d in perfect(truth) if d["image_id"] == 2]
    assert evaluate(truth, detections).figures["ap"] == pytest.approx(50)
    chosen = evaluate(truth, detections, [2])
    assert chosen.figures["ap"] == pytest.approx(100) and chosen.images == 1
    assert math.isnan(chosen.figures["ap_small"])


def test_a_box_of_half_the_size_finds_an_object_at_half_the_overlap(truth: COCO) -> None:
    detections = [
        d | {"bbox": [0, 0, 300, 156]} for d in perfect(truth) if d["image_id"] == 2
    ]  # IoU 0.52
    summary = evaluate(truth, detections, [2])
    assert tuple(summary.figures[k] for k in ("ap50", "ap75", "ap")) == pytest.approx((100, 0, 10))


# ---- boxes


def test_suppression_is_class_wise_and_keeps_100() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 1, 10, 11], [0, 0, 10, 10]])
    found = stock_boxes.Candidates(boxes, torch.tensor([0.5, 0.9, 0.4]), torch.tensor([1, 1, 2]))
    assert stock_boxes.suppress(found).scores.tolist() == pytest.approx([0.9, 0.4])
    apart = torch.arange(150.0)[:, None] * 100 + torch.tensor([0.0, 0, 10, 10])
    many = stock_boxes.Candidates(apart, torch.rand(150), torch.ones(150, dtype=torch.long))
    best = stock_boxes.suppress(stock_boxes.merged(many, many))
    torch.testing.assert_close(best.scores, many.scores.sort(descending=True).values[:100])


def test_below_is_about_the_side_of_a_box() -> None:
    boxes = torch.tensor(
        [[0.0, 0, 4, 25], [0, 0, 10, 10.1], [5, 5, 5, 5]]
    )  # sides 10, more than 10, 0
    found = stock_boxes.Candidates(boxes, torch.ones(3), torch.ones(3))
    assert stock_boxes.below(found, 10.01).boxes.tolist() == [boxes[0].tolist(), boxes[2].tolist()]


def test_decoding_nothing_gives_the_anchor() -> None:
    anchors = torch.tensor([[0.5, 0.25, 0.2, 0.1]])  # row, column, height, width
    corners = torch.tensor([[0.4, 0.2, 0.6, 0.3]])  # top, left, bottom, right
    torch.testing.assert_close(stock_boxes.decode(torch.zeros(1, 4), anchors), corners)
    moved = stock_boxes.decode(
        torch.tensor([[5.0, 0, 5 * math.log(2), 0]]), anchors
    )  # half a height down, twice as high
    torch.testing.assert_close(moved, torch.tensor([[0.4, 0.2, 0.8, 0.3]]))


def test_the_photograph_is_that_with_most_gained(truth: COCO) -> None:
    everything = perfect(truth)
    comparison = stock_picture.choose(
        truth, [d for d in everything if d["bbox"][2] > 20], everything
    )
    assert comparison is not None and comparison.image["id"] == 1 and comparison.gained == {1}
    assert stock_picture.choose(truth, [], []) is None


# ---- the detector


@pytest.fixture(scope="module")
def net() -> stock.StockSSD:
    assert DATA is not None
    return stock.load_stock(Path(DATA) / "weights")


@pytest.fixture(scope="module")
def coco() -> COCO:
    return load_truth(Path(DATA or "") / "coco_public" / "instances.json")


@pytest.fixture(scope="module")
def detections(net: stock.StockSSD, coco: COCO) -> dict[int, list[dict[str, Any]]]:
    """What the detector finds on every tenth photograph, best first."""
    anchors = stock_boxes.anchors(
        stock_boxes.usual_centres(stock_boxes.six_layers(net, stock.INPUT_SIZE))
    )
    return {i: detect(net, anchors, coco, i) for i in sorted(coco.imgs)[::10]}


def detect(
    net: stock.StockSSD, anchors: torch.Tensor, coco: COCO, image_id: int
) -> list[dict[str, Any]]:
    path = Path(DATA or "") / "coco_public" / "images" / coco.imgs[image_id]["file_name"]
    with Image.open(path) as file, torch.inference_mode():
        photograph = file.convert("RGB")
        pixels = torch.tensor(
            np.asarray(photograph.resize((stock.INPUT_SIZE,) * 2, Image.Resampling.BILINEAR))
        )
        predictions = net(stock.prepare(pixels.permute(2, 0, 1)[None]))
        found = stock_boxes.candidates(predictions, anchors, (photograph.height, photograph.width))
        return stock_boxes.as_results(stock_boxes.suppress(found), image_id)


@pytest.mark.data
@needs_data
def test_the_backbone_is_the_papers_and_the_anchors_are_the_detectors(net: stock.StockSSD) -> None:
    report = ss.inspect(net.backbone, stock.INPUT_SIZE)
    assert len(report) == 14 and report.strided == (0, 2, 4, 6, 12)
    layers = stock_boxes.six_layers(net, stock.INPUT_SIZE)
    assert [layer.out_grid[0] for layer in layers] == [19, 10, 5, 3, 2, 1]
    anchors = stock_boxes.anchors(stock_boxes.usual_centres(layers))
    shipped = load_file(Path(DATA or "") / "weights" / f"{stock.NAME}.safetensors")[
        "anchors_tflite"
    ]
    table = json.loads((Path(DATA or "") / "weights" / f"{stock.NAME}.json").read_text())
    half_a_step = table["anchors_quant"]["scale"] / 2  # the shipped ones are rounded to 8 bits
    torch.testing.assert_close(anchors, shipped, rtol=0, atol=1.01 * half_a_step)
    learned = stock_boxes.learned_centres(layers, stock.INPUT_SIZE, layers, stock.INPUT_SIZE)
    for own, usual in zip(learned, stock_boxes.usual_centres(layers), strict=True):
        # on the grid that it was learned on, it gives the usual centres on average
        torch.testing.assert_close(own.rows.mean(), usual.rows.mean())
        torch.testing.assert_close(own.columns.mean(), usual.columns.mean())


@pytest.mark.data
@needs_data
def test_known_objects_are_detected(
    coco: COCO, detections: dict[int, list[dict[str, Any]]]
) -> None:
    def large(image_id: int) -> list[dict[str, Any]]:
        image, objects = coco.imgs[image_id], coco.imgToAnns[image_id]
        return [
            a
            for a in objects
            if a["area"] > 0.2 * image["width"] * image["height"] and not a["iscrowd"]
        ]

    lone = [i for i in detections if len({a["category_id"] for a in large(i)}) == 1]
    right = [detections[i][0]["category_id"] == large(i)[0]["category_id"] for i in lone]
    assert len(lone) >= 10 and sum(right) >= 0.6 * len(lone)


@pytest.mark.data
@needs_data
def test_the_ap_is_a_detectors_and_the_evaluator_agrees_with_coco(
    coco: COCO, detections: dict[int, list[dict[str, Any]]]
) -> None:
    ids, flat = list(detections), [d for found in detections.values() for d in found]
    random.Random(0).shuffle(flat)
    ours = evaluate(coco, flat, ids)
    with redirect_stdout(io.StringIO()):
        direct = COCOeval(coco, coco.loadRes([dict(d) for d in flat]), "bbox")
        direct.params.imgIds = ids
        direct.evaluate()
        direct.accumulate()
        direct.summarize()
    names = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
    assert [ours.figures[name] for name in names] == pytest.approx(100 * direct.stats[:6])
    recalls = ("ar", "ar_small", "ar_medium", "ar_large")
    assert [ours.figures[name] for name in recalls] == pytest.approx(100 * direct.stats[8:])
    assert ours.figures["ap"] > 15 and ours.figures["ap_large"] > 30


@pytest.mark.data
@needs_data
def test_the_demonstration_tells_its_story(tmp_path: Path) -> None:
    environment = os.environ | {
        "MPLBACKEND": "Agg",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "examples.training_free", "--images", "8", "--output", "out"]
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "score as the two networks alone do" in done.stdout
    lines = {
        line["name"]: line
        for line in json.loads((tmp_path / "out" / "table.json").read_text())["rows"]
    }
    before, both = lines["as is"], lines["dual path"]
    assert both["all"]["ap_medium"] > before["all"]["ap_medium"] + 3
    assert both["all"]["ar_small"] > before["all"]["ar_small"]
    assert lines["geometry"]["all"]["ap"] > lines["looking"]["all"]["ap"]
    # the first layers run once
    assert both["giga_macs"] < before["giga_macs"] + lines["geometry"]["giga_macs"]
    assert (tmp_path / "out" / "only_dual_path.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--images", "0"], "not a positive number"),
        (["--size-bound", "nan"], "not a number of pixels"),
    ],
)
def test_wrong_arguments_say_so(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        training_free.main(arguments)
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("named", ["", "/nowhere"])
def test_without_the_data_it_says_what_to_set(named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRIDESURGERY_DATA", named)
    with pytest.raises(SystemExit, match="Set STRIDESURGERY_DATA"):
        training_free.main([])
