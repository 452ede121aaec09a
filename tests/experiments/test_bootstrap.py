"""The intervals: the whole set gives pycocotools' figures, and a resample those of a set with images taken twice."""

import copy
import math
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO

from examples.experiments import bootstrap
from examples.experiments.checks import (
    gap_to_pycocotools,
    of_other_photographs,
    with_shuffled_labels,
)
from examples.ssd.evaluation import evaluate

FIGURES = (
    "ap",
    "ap50",
    "ap_small",
    "ap_medium",
    "ap_large",
    "ar",
    "ar_small",
    "ar_medium",
    "ar_large",
)


def indexed(images: list[dict[str, Any]], annotations: list[dict[str, Any]]) -> COCO:
    coco = COCO()
    categories = [{"id": 1, "name": "person"}, {"id": 3, "name": "car"}, {"id": 9, "name": "boat"}]
    coco.dataset = {"images": images, "annotations": annotations, "categories": categories}
    coco.createIndex()
    return coco


@pytest.fixture(scope="module")
def scene() -> tuple[COCO, list[dict[str, Any]]]:
    """Twelve images with objects of all sizes, a crowd, and detections that are near, far, and of the wrong class."""
    draw = np.random.default_rng(5)
    images = [{"id": i, "width": 400, "height": 400} for i in range(1, 13)]
    objects, found = [], []
    for number in range(1, 91):
        x, y = draw.uniform(0, 250, 2)
        side = float(draw.choice([12, 25, 60, 130]))
        image, category = (
            int(draw.integers(1, 12)),
            int(draw.choice([1, 3])),
        )  # nothing is in the last image
        box = [float(x), float(y), side, side]
        objects.append(
            {
                "id": number,
                "image_id": image,
                "category_id": category,
                "bbox": box,
                "area": side * side,
                "iscrowd": int(number == 7),
            }
        )
        for _ in range(int(draw.integers(0, 4))):
            moved = [float(v + draw.normal() * side / 12) for v in box]
            label = category if draw.random() < 0.8 else 9
            found.append(
                {
                    "image_id": image,
                    "category_id": label,
                    "bbox": moved,
                    "score": float(draw.random()),
                }
            )
    return indexed(images, objects), found


def test_every_image_once_is_pycocotools(scene: tuple[COCO, list[dict[str, Any]]]) -> None:
    truth, found = scene
    ids = sorted(truth.imgs)
    assert gap_to_pycocotools(truth, found, ids) < 1e-10
    summary = evaluate(truth, found)
    ours = bootstrap.figures(
        bootstrap.matches(truth, found), np.ones((1, len(ids))), ("person", "car")
    )
    assert [float(ours[k][0]) for k in FIGURES] == pytest.approx(
        [getattr(summary, k) for k in FIGURES]
    )
    assert 5 < ours["ap"][0] < 95
    for name in ("person", "car"):
        assert float(ours[f"ap {name}"][0]) == pytest.approx(summary.per_class[name])


def test_a_resample_is_the_evaluation_of_the_drawn_images(
    scene: tuple[COCO, list[dict[str, Any]]],
) -> None:
    """Images that are drawn n times are n images with the same objects and detections."""
    truth, found = scene
    ids = sorted(truth.imgs)
    weights = bootstrap.resamples(len(ids), count=3, seed=1)
    ours = bootstrap.figures(bootstrap.matches(truth, found), weights)
    for row, drawn in enumerate(weights):
        copies = [
            (i, 100 * i + k) for i, times in zip(ids, drawn, strict=True) for k in range(int(times))
        ]
        images = [{**truth.imgs[i], "id": new} for i, new in copies]
        objects = [
            {**a, "image_id": new} for i, new in copies for a in copy.deepcopy(truth.imgToAnns[i])
        ]
        objects = [{**a, "id": n} for n, a in enumerate(objects, start=1)]
        detections = [
            {**d, "image_id": new} for i, new in copies for d in found if d["image_id"] == i
        ]
        summary = evaluate(indexed(images, objects), detections)
        for key in FIGURES:
            expected = getattr(summary, key)
            assert ours[key][row] == pytest.approx(expected, nan_ok=True), (row, key)


def test_an_interval_holds_most_resamples_and_a_network_does_not_differ_from_itself() -> None:
    values = np.concatenate([[50.0], np.random.default_rng(0).normal(50, 2, 4000)])
    value, low, high = bootstrap.interval(values)
    assert (
        value == 50
        and low == pytest.approx(46.08, abs=0.15)
        and high == pytest.approx(53.92, abs=0.15)
    )
    nothing = bootstrap.differences({"ap": values}, {"ap": values})["ap"]
    assert nothing == [0, 0, 0]
    assert all(map(math.isnan, bootstrap.interval(np.array([math.nan, math.nan]))))


def test_controls_find_less(scene: tuple[COCO, list[dict[str, Any]]]) -> None:
    truth, found = scene
    ids = sorted(truth.imgs)
    ap = evaluate(truth, found).ap
    shuffled, moved = with_shuffled_labels(found), of_other_photographs(found, ids)
    assert sorted(d["category_id"] for d in shuffled) == sorted(d["category_id"] for d in found)
    assert evaluate(truth, shuffled).ap < 0.7 * ap
    assert evaluate(truth, moved).ap < 0.2 * ap
