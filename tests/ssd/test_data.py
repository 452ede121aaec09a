"""Annotations and images: what is kept, left out and refused, and in which order they come."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from examples.ssd import data, demonstration
from examples.ssd.data import CocoImages, Split, epoch_batches, find_split, loader
from examples.ssd.evaluate import evaluate, load_truth
from examples.ssd.programs import DetectionError

IMAGES = [
    {"id": 7, "file_name": "a.png", "width": 40, "height": 30},
    {"id": 3, "file_name": "b.png", "width": 40, "height": 30},
]
KINDS = [{"id": 90, "name": "far"}, {"id": 4, "name": "near"}]


def mark(box: Any, **more: Any) -> dict[str, Any]:
    return {"id": 1, "image_id": 7, "category_id": 90, "bbox": box, "iscrowd": 0, **more}


def write(folder: Path, marks: list[Any], images: Any = IMAGES, categories: Any = KINDS) -> Split:
    (folder / "images").mkdir(exist_ok=True)
    for name in ("a.png", "b.png"):
        Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(folder / "images" / name)
    content = {"images": images, "annotations": marks, "categories": categories}
    (folder / "instances.json").write_text(json.dumps(content))
    return Split(folder / "instances.json", folder / "images")


def test_labels_count_categories_by_id_whatever_their_gaps(tmp_path: Path) -> None:
    marks = [mark([1, 2, 10, 10]), mark([0, 0, 5, 5], category_id=4)]
    images = CocoImages(write(tmp_path, marks))
    _, target, _ = images[1, 0]  # by id: the second
    assert images.categories == {4: "near", 90: "far"} and images.ids == [3, 7]
    assert target["labels"].tolist() == [2, 1] and target["boxes"][0].tolist() == [1, 2, 11, 12]
    assert len(images[0, 0][1]["boxes"]) == 0


def test_boxes_are_cut_at_the_image_and_left_out_where_nothing_remains(tmp_path: Path) -> None:
    boxes = ([-5, -5, 20, 20], [100, 100, 5, 5], [5, 5, 0, 10], [5, 5, 10, -3])
    marks = [*map(mark, boxes), mark([1, 1, 20, 20], iscrowd=1)]
    images = CocoImages(write(tmp_path, marks), with_objects=True)
    assert images[0, 0][1]["boxes"].tolist() == [[0, 0, 15, 15]] and len(images) == 1
    out = ("3 boxes narrower than a pixel inside the image", "1 crowds", "1 images without objects")
    assert all(f"left out: {what}" in images.said for what in out)


@pytest.mark.parametrize("marks", [[], [mark([1, 1, 20, 20], iscrowd=1)]])
def test_crowds_only_are_told(tmp_path: Path, marks: list[Any]) -> None:
    with pytest.raises(DetectionError, match="has nothing to train on: 0 images"):
        CocoImages(write(tmp_path, marks), with_objects=True)


@pytest.mark.parametrize(
    ("marks", "message"),
    [
        ([mark([1, 2, 3])], r"annotations\[0\] needs a bbox of four numbers"),
        ([mark([1, 2, 3, float("nan")])], "needs a bbox of four numbers"),
        ([mark([1, 2, 3, 4]), mark([1, 2, 3, 4], image_id=8)], r"\[1\] needs an image_id among"),
        ([mark([1, 2, 3, 4], category_id=5)], "needs a category_id among the categories"),
        ([mark([1, 2, 3, 4], iscrowd="0")], "needs an iscrowd of 0 or 1"),
        (["text"], r"annotations\[0\] needs an image_id"),
    ],
)
def test_malformed_annotations_are_told(tmp_path: Path, marks: list[Any], message: str) -> None:
    with pytest.raises(DetectionError, match=message):
        CocoImages(write(tmp_path, marks))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"images": [{**IMAGES[0], "file_name": "c.png"}]}, "1 of 1 images are not in .*'c.png'"),
        ({"images": [{**IMAGES[0], "width": 0}]}, r"images\[0\] needs a width and height above 0"),
        ({"images": [IMAGES[0], IMAGES[0]]}, "has no images, or two with one id"),
        ({"categories": []}, "has no categories, or two with one id"),
        ({"categories": 3}, "cannot be read as COCO's JSON .TypeError"),
    ],
)
def test_malformed_files_are_told(tmp_path: Path, more: Any, message: str) -> None:
    with pytest.raises(DetectionError, match=message):
        CocoImages(write(tmp_path, [], **more))


ODD = [None, True, -1, 1.5, float("nan"), 10**400, "", "\0", "\ud800", "..", [], [None] * 4, {}]


def with_one_odd_value(value: Any) -> Iterator[Any]:
    """Every value of a JSON text, however deep, replaced by every odd one, or left out."""
    yield from ODD
    if isinstance(value, dict):
        yield from ({k: v for k, v in value.items() if k != left_out} for left_out in value)
    if isinstance(value, (dict, list)):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            for odd in with_one_odd_value(inner):
                copied = value.copy()
                copied[key] = odd
                yield copied


def test_whatever_a_file_holds_it_is_read_or_told(tmp_path: Path) -> None:
    split = write(tmp_path, [mark([1, 2, 10, 10])])
    outcomes: Counter[bool] = Counter()
    for content in with_one_odd_value(json.loads(split.annotations.read_text())):
        split.annotations.write_text(json.dumps(content))
        try:
            CocoImages(split)
            load_truth(split.annotations)
            outcomes[True] += 1
        except DetectionError as told:
            outcomes[False] += 1
            assert len(str(told)) < 500 + len(str(tmp_path))
    assert outcomes[True] > 30 and outcomes[False] > 250


def test_wrong_folders_and_files_that_are_no_json_are_told(tmp_path: Path, shapes: Path) -> None:
    split = write(tmp_path, [])
    assert find_split(tmp_path, "train") == find_split(tmp_path, "val") == split
    assert find_split(shapes, "val").images == shapes / "val2017"
    with pytest.raises(DetectionError, match="for train; looked for annotations/instances_train"):
        find_split(tmp_path / "images", "train")
    with pytest.raises(DetectionError, match="2 of 2 images are not in .*, the first is 'a.png'"):
        CocoImages(Split(split.annotations, tmp_path / "none"))
    for text in ("[" * 100_000, "1" * 5000, "\ufeff{}", '{"images": ['):
        split.annotations.write_text(text)
        with pytest.raises(DetectionError, match="cannot be read as COCO's JSON"):
            CocoImages(split)


def test_an_object_of_id_0_is_found_and_an_area_that_is_not_there_is_the_boxs(tmp_path) -> None:
    """pycocotools alone takes 0 for no match."""
    truth = load_truth(write(tmp_path, [mark([1, 2, 10, 10], id=0)]).annotations)
    found = [{"image_id": 7, "category_id": 90, "bbox": [1, 2, 10, 10], "score": 1.0}]
    summary = evaluate(truth, found)
    assert summary.figures["ap"] > 99 and summary.figures["ap_small"] > 99
    with pytest.raises(DetectionError, match="its image or category is not annotated"):
        evaluate(truth, [{**found[0], "image_id": 8}])


def test_images_that_do_not_decode_or_are_turned_are_named(tmp_path: Path) -> None:
    split = write(tmp_path, [mark([1, 1, 20, 20])])
    images = CocoImages(split)
    (split.images / "a.png").write_bytes((split.images / "a.png").read_bytes()[:60])
    with pytest.raises(DetectionError, match="a.png does not decode"):
        images[1, 0]
    Image.new("RGB", (30, 40)).save(split.images / "b.png")
    with pytest.raises(
        DetectionError, match=r"\(30, 40\) pixels, annotated .*perhaps its EXIF tag"
    ):
        images[0, 0]


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_every_kind_of_image_becomes_rgb(tmp_path: Path, mode: str) -> None:
    split = write(tmp_path, [], images=[{**IMAGES[0], "file_name": "a.tif"}, IMAGES[1]])
    Image.new(mode, (40, 30)).save(split.images / "a.tif")
    assert CocoImages(split)[1, 0][0].shape == (3, 30, 40)


# ---- batches


def test_a_resize_scales_boxes_with_the_image(tmp_path: Path) -> None:
    images = CocoImages(write(tmp_path, [mark([10, 6, 20, 12]), mark([1, 1, 0.9, 9])]))
    transform = data.transform(64)
    [(pixels, targets, positions)] = loader(images, transform, [[(0, 0), (1, 0)]], workers=0)
    assert pixels.shape == (2, 3, 64, 64) and positions == [0, 1]
    assert targets[0]["boxes"].shape == (0, 4)
    torch.testing.assert_close(targets[1]["boxes"], torch.tensor([[16, 12.8, 48, 38.4]]))


def test_augmentation_depends_on_the_ticket_alone_and_boxes_stay_on_their_objects(shapes) -> None:
    images, transform = CocoImages(find_split(shapes, "train")), data.transform(96, augment=True)
    batches = epoch_batches(len(images), 4, seed=1, epoch=0)
    alone, helped = ([*loader(images, transform, batches, workers)] for workers in (0, 2))
    before = torch.get_rng_state()
    images[0, 5]
    assert torch.equal(before, torch.get_rng_state())
    for a, b in zip(alone, helped, strict=True):
        assert torch.equal(a[0], b[0]) and a[2] == b[2]
        for mine, other in zip(a[1], b[1], strict=True):
            assert torch.equal(mine["boxes"], other["boxes"])
            assert (mine["boxes"] >= 0).all() and (mine["boxes"] <= 96).all()
            assert len(mine["boxes"]) == len(mine["labels"])
    other = next(iter(loader(images, transform, epoch_batches(16, 4, seed=1, epoch=1), 0)))
    assert not torch.equal(alone[0][0], other[0])


def test_every_epoch_sees_each_image_at_most_once_in_an_order_of_its_own() -> None:
    first, again, other = (epoch_batches(50, 8, 1, epoch) for epoch in (2, 2, 3))
    positions = [p for batch in first for p, _ in batch]
    assert first == again and len(first) == 6 and len(set(positions)) == 48
    assert [p for batch in other for p, _ in batch] != positions
    assert len(epoch_batches(5, 8, 1, 0)) == 1  # a set smaller than a batch is one batch


# ---- small sets


def test_a_small_set_has_all_that_is_annotated_on_some_images(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = data.read_coco(find_split(shapes, "train").annotations)
    words = [str(shapes), "--split", "train", "--images", "5", "--out", str(tmp_path / "small")]
    data.main(words)
    small = CocoImages(find_split(tmp_path / "small", "train"))
    assert small.ids == [1, 4, 7, 10, 13] and small.categories
    assert capsys.readouterr().out.startswith("5 images")
    kept = data.read_coco(small.split.annotations)["annotations"]
    assert kept == [m for m in whole["annotations"] if m["image_id"] in small.ids] != []
    pixels, _, _ = small[1, 0]
    assert torch.equal(pixels, CocoImages(find_split(shapes, "train"))[3, 0][0])
    with pytest.raises(FileExistsError):  # nothing is overwritten
        data.main(words)


# ---- the generator


def test_drawn_shapes_have_the_areas_and_boxes_that_are_told_and_repeat_themselves() -> None:
    drawn = [demonstration.draw((0, index)) for index in range(12)]
    objects = [one for _, found in drawn for one in found]
    groups = Counter((o["area"] >= 32**2) + (o["area"] >= 96**2) for o in objects)
    assert all(groups[size] >= 3 for size in (0, 1, 2)) and all(found for _, found in drawn)
    for image, found in drawn:
        painted = np.isin(np.asarray(image), (0, 255)).all(axis=2)  # the textures are between
        for x, y, side, _ in (one["bbox"] for one in found):
            assert min(x, y) >= 0 and max(x, y) + side <= demonstration.SIDE
        for one in found:
            x, y, side = (int(v) for v in one["bbox"][:3])
            inside = painted[y : y + side + 2, x : x + side + 2]
            assert abs(inside.sum() - one["area"]) < 4 * side
            inside[:] = False
        assert not painted.any()
    again, same = demonstration.draw((0, 5))
    assert again.tobytes() == drawn[5][0].tobytes() and same == drawn[5][1]
