"""The intervals: the whole set gives pycocotools' figures, a resample those of images taken twice."""

import math
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO

from examples.ssd.data import indexed
from examples.ssd.evaluate import STATS, evaluate
from examples.study import bootstrap

KEYS = [name for name in STATS if name not in ("ap75", "ar1", "ar10")]
KINDS = [{"id": 1, "name": "person"}, {"id": 3, "name": "car"}, {"id": 9, "name": "boat"}]
Scene = tuple[COCO, list[dict[str, Any]]]


def truth_of(images: list[Any], objects: list[Any]) -> COCO:
    marks = [{**mark, "id": number} for number, mark in enumerate(objects, start=1)]
    return indexed({"images": images, "annotations": marks, "categories": KINDS})


@pytest.fixture(scope="module")
def scene() -> Scene:
    """Twelve images with objects of all sizes, a crowd, and detections near, far and mistaken."""
    draw = np.random.default_rng(5)
    images = [{"id": i, "width": 400, "height": 400} for i in range(1, 13)]
    objects, found = [], []
    for number in range(90):
        side, image = float(draw.choice([12, 25, 60, 130])), int(draw.integers(1, 12))
        box, label = [*draw.uniform(0, 250, 2).tolist(), side, side], int(draw.choice([1, 3]))
        own = {"image_id": image, "category_id": label, "bbox": box}
        objects.append({**own, "area": side * side, "iscrowd": int(number == 7)})
        for _ in range(int(draw.integers(0, 4))):
            moved = [float(v + draw.normal() * side / 12) for v in box]
            said = label if draw.random() < 0.8 else 9
            one = {"image_id": image, "category_id": said, "bbox": moved}
            found.append({**one, "score": float(draw.random())})
    return truth_of(images, objects), found


def test_every_image_once_is_pycocotools(scene: Scene) -> None:
    truth, found = scene
    summary = evaluate(truth, found)
    ours = bootstrap.figures(bootstrap.matches(truth, found), np.ones((1, 12)))
    assert 5 < ours["ap"][0] < 95
    for key in KEYS:
        assert float(ours[key][0]) == pytest.approx(summary.figures[key])


def test_a_resample_is_the_evaluation_of_the_drawn_images(scene: Scene) -> None:
    """Images that are drawn n times are n images with the same objects and detections."""
    truth, found = scene
    weights = bootstrap.resamples(12, count=3, seed=1)
    ours = bootstrap.figures(bootstrap.matches(truth, found), weights)
    for row, drawn in enumerate(weights):
        images, objects, detections = [], [], []
        for i, times in zip(sorted(truth.imgs), drawn, strict=True):
            for new in (100 * i + k for k in range(int(times))):
                images.append({**truth.imgs[i], "id": new})
                objects += [{**mark, "image_id": new} for mark in truth.imgToAnns[i]]
                detections += [{**d, "image_id": new} for d in found if d["image_id"] == i]
        summary = evaluate(truth_of(images, objects), detections)
        for key in KEYS:
            expected = pytest.approx(summary.figures[key], nan_ok=True)
            assert float(ours[key][row]) == expected, (row, key)


def test_an_interval_holds_most_resamples_and_a_network_does_not_differ_from_itself() -> None:
    values = np.concatenate([[50.0], np.random.default_rng(0).normal(50, 2, 4000)])
    assert bootstrap.interval(values) == pytest.approx([50, 46.08, 53.92], abs=0.15)
    assert bootstrap.differences({"ap": values}, {"ap": values})["ap"] == [0, 0, 0]
    assert all(map(math.isnan, bootstrap.interval(np.array([math.nan, math.nan]))))


def test_shuffled_labels_find_less(scene: Scene) -> None:
    truth, found = scene
    labels = np.random.default_rng(0).permutation([d["category_id"] for d in found]).tolist()
    shuffled = [{**d, "category_id": k} for d, k in zip(found, labels, strict=True)]
    assert evaluate(truth, shuffled).figures["ap"] < 0.7 * evaluate(truth, found).figures["ap"]


def test_a_class_of_few_objects_does_not_count(scene: Scene) -> None:
    groups = bootstrap.matches(*scene).groups
    counts = {key: group.objects.sum() for key, group in groups.items()}
    kept = {key for key, count in counts.items() if count >= 20}
    assert set(bootstrap.matches(*scene, least=20).groups) == kept
    assert 0 < len(kept) < len(counts)
