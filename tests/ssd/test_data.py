"""Annotations and images: what is kept, what is left out, what is refused, and in which order they come."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from examples.ssd import augment, data, synthetic
from examples.ssd.annotations import Annotations, Split, find_beside, find_split, read_annotations
from examples.ssd.data import Epoch, Images, Share, every_image, training_batches
from examples.ssd.errors import DataError, RequestError
from examples.ssd.evaluation import evaluate, load_truth

IMAGES = [
    {"id": 7, "file_name": "a.png", "width": 40, "height": 30},
    {"id": 3, "file_name": "b.png", "width": 40, "height": 30},
]
CATEGORIES = [{"id": 90, "name": "far"}, {"id": 4, "name": "near"}]


def mark(number: int, box: Any, **more: Any) -> dict[str, Any]:
    return {
        "id": number,
        "image_id": 7,
        "category_id": 90,
        "bbox": box,
        "area": 1,
        "iscrowd": 0,
        **more,
    }


def write(folder: Path, marks: list[Any], images: Any = None, categories: Any = None) -> Split:
    (folder / "images").mkdir(exist_ok=True)
    for name in ("a.png", "b.png"):
        Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(folder / "images" / name)
    content = {
        "images": images or IMAGES,
        "annotations": marks,
        "categories": categories or CATEGORIES,
    }
    (folder / "instances.json").write_text(json.dumps(content))
    return Split(folder / "instances.json", folder / "images")


def read(folder: Path, marks: list[Any], **more: Any) -> Annotations:
    return read_annotations(write(folder, marks, **more))


# ---- what is kept


def test_labels_count_categories_by_id_whatever_their_gaps(tmp_path: Path) -> None:
    found = read(tmp_path, [mark(1, [1, 2, 10, 10]), mark(2, [0, 0, 5, 5], category_id=4)])
    assert found.categories.ids == (4, 90) and found.categories.names == ("near", "far")
    assert found.records[0].labels == (2, 1) and found.records[0].boxes[0] == (1, 2, 11, 12)
    assert found.categories.classes == 3


def test_boxes_are_cut_at_the_image_and_left_out_where_nothing_remains(tmp_path: Path) -> None:
    marks = [
        mark(1, [-5, -5, 20, 20]),
        mark(2, [100, 100, 5, 5]),
        mark(3, [5, 5, 0, 10]),
        mark(4, [5, 5, 10, -3]),
        mark(5, [1, 1, 20, 20], iscrowd=1),
    ]
    found = read(tmp_path, marks)
    assert found.records[0].boxes == ((0, 0, 15, 15),)
    assert found.left_out == {"boxes narrower than a pixel inside the image": 3, "crowds": 1}
    assert "left out: 3 boxes narrower than a pixel inside the image, 1 crowds" in found.said()
    assert [r.id for r in found.with_objects().records] == [7]


def test_objects_that_a_small_input_loses_are_counted(tmp_path: Path) -> None:
    found = read(
        tmp_path, [mark(1, [1, 1, 20, 20]), mark(2, [1, 1, 4, 20]), mark(3, [1, 1, 20, 3])]
    )
    assert found.said(40) == found.said()  # 40 x 30 pixels become 40 x 40
    assert found.said(8).endswith("; 2 objects are narrower than a pixel at 8 x 8, and not learned")
    assert len(Images(found, augment.plain(8))[0].boxes) == 1


@pytest.mark.parametrize("marks", [[], [mark(1, [1, 1, 20, 20], iscrowd=1)]])
def test_nothing_to_train_on_is_told(tmp_path: Path, marks: list[Any]) -> None:
    with pytest.raises(DataError, match="none of the 2 images has an object to train on"):
        read(tmp_path, marks).with_objects()


# ---- what is refused


@pytest.mark.parametrize(
    ("marks", "message"),
    [
        ([mark(1, [1, 2, 3])], r"annotations\[0\] \(id 1\): bbox is \[1, 2, 3\], not four numbers"),
        ([mark(1, [1, 2, 3, float("nan")])], "not four numbers"),
        ([mark(1, [1, 2, 3, "4"])], "not four numbers"),
        ([mark(1, [1, 2, 3, 4], image_id=8)], "there is no image_id 8 in the file"),
        ([mark(1, [1, 2, 3, 4], category_id=5)], "there is no category_id 5 in the file"),
        ([mark(1, [1, 2, 3, 4], iscrowd="0")], "iscrowd is '0', not 0 or 1"),
        ([{"id": 1}], r"annotations\[0\] \(id 1\) has no image_id, category_id, bbox"),
        (["text"], r"annotations\[0\] is a str, not an object"),
    ],
)
def test_malformed_annotations_are_told(tmp_path: Path, marks: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path, marks)


ODD: list[Any] = [
    *(
        None,
        True,
        0,
        -1,
        3,
        1.5,
        float("nan"),
        float("inf"),
        1e308,
        10**400,
        2**63,
        "",
        "x",
        "\0",
        "\ud800",
        "a" * 5000,
    ),
    *(
        "..",
        "a.png/x",
        [],
        [1],
        [None] * 4,
        [10**400] * 4,
        [1e300, -1e300, 1e300, 1],
        [[]],
        {},
        {"id": 1},
    ),
]


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
    split = write(tmp_path, [mark(1, [1, 2, 10, 10]), mark(2, [5, 5, 5, 5], iscrowd=1)])
    readings: list[Callable[[], object]] = [
        lambda: read_annotations(split),
        lambda: load_truth(split.annotations),
    ]
    outcomes: Counter[str] = Counter()
    for content in with_one_odd_value(json.loads(split.annotations.read_text())):
        split.annotations.write_text(json.dumps(content))
        for reading in readings:
            try:
                reading()
                outcomes["read"] += 1
            except DataError as told:
                outcomes["told"] += 1
                assert str(told).startswith(str(split.annotations)) or "images are not in" in str(
                    told
                )
                assert len(str(told)) < 400 + len(str(tmp_path))
    assert outcomes["read"] > 100 and outcomes["told"] > 1000


@pytest.mark.parametrize("text", ["[" * 100_000, "1" * 5000, "\ufeff{}", '{"images": ['])
def test_what_is_no_json_is_told(tmp_path: Path, text: str) -> None:
    split = write(tmp_path, [])
    split.annotations.write_text(text)
    for reading in (lambda: read_annotations(split), lambda: load_truth(split.annotations)):
        with pytest.raises(DataError, match="is not JSON"):
            reading()


def test_an_object_of_id_0_is_found(tmp_path: Path) -> None:
    """pycocotools alone takes 0 for no match."""
    truth = load_truth(write(tmp_path, [mark(0, [1, 2, 10, 10])]).annotations)
    assert (
        evaluate(truth, [{"image_id": 7, "category_id": 90, "bbox": [1, 2, 10, 10], "score": 1}]).ap
        > 99
    )


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "x/../../secret.png"])
def test_a_file_name_that_leaves_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="leaves the folder"):
        read(tmp_path, [], images=[{**IMAGES[0], "file_name": name}])


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "link").symlink_to("/etc")
    with pytest.raises(DataError, match="leaves the folder"):
        read(tmp_path, [], images=[{**IMAGES[0], "file_name": "link/passwd"}])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            {"images": [{**IMAGES[0], "file_name": "c.png"}]},
            "1 of 1 images are not in .*, the first is 'c.png'",
        ),
        ({"images": [{**IMAGES[0], "width": 0}]}, r"images\[0\] \(id 7\): 0 x 30 pixels"),
        ({"images": [IMAGES[0], IMAGES[0]]}, r"images\[1\]: id 7 is there twice"),
        ({"categories": [CATEGORIES[0], CATEGORIES[0]]}, r"categories\[1\]: id 90 is there twice"),
        ({"categories": {"id": 1}}, "no list of categories"),
    ],
)
def test_malformed_files_are_told(tmp_path: Path, more: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path, [], **more)


def test_files_that_are_not_there_are_told(tmp_path: Path) -> None:
    for reading in (lambda p: read_annotations(Split(p, tmp_path)), load_truth):
        with pytest.raises(DataError, match="there is no file"):
            reading(tmp_path / "missing.json")
    with pytest.raises(DataError, match="is not JSON"):
        load_truth(tmp_path)
    with pytest.raises(DataError, match="no image folder"):
        read_annotations(Split(write(tmp_path, []).annotations, tmp_path / "none"))


def test_a_folder_that_is_one_set_has_no_second_one(tmp_path: Path, shapes: Path) -> None:
    flat = write(tmp_path, [])
    assert find_split(tmp_path, "train") == find_split(tmp_path, "val") == flat
    assert find_beside(tmp_path, "val") is None
    assert find_beside(shapes, "val") == find_split(shapes, "val")
    with pytest.raises(
        DataError, match="no annotations for train; looked for annotations/instances_train2017.json"
    ):
        find_split(tmp_path / "images", "train")


def test_images_that_do_not_decode_or_are_of_another_size_are_named(tmp_path: Path) -> None:
    split = write(tmp_path, [mark(1, [1, 1, 20, 20])])
    images = Images(read_annotations(split), augment.for_testing(16))
    (split.images / "a.png").write_bytes((split.images / "a.png").read_bytes()[:60])
    with pytest.raises(DataError, match="a.png does not decode"):
        images[0]
    Image.fromarray(np.zeros((10, 10, 3), np.uint8)).save(split.images / "b.png")
    with pytest.raises(DataError, match="b.png has 10 x 10 pixels, its annotations say 40 x 30"):
        images[1]


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_every_kind_of_image_becomes_rgb(tmp_path: Path, mode: str) -> None:
    split = write(tmp_path, [])
    suffix = "jpg" if mode == "CMYK" else "png"
    Image.new(mode, (40, 30)).save(split.images / f"a.{suffix}")
    images = [{**IMAGES[0], "file_name": f"a.{suffix}"}]
    assert Images(
        read(tmp_path, [], images=images) if suffix == "jpg" else read_annotations(split),
        augment.for_testing(16),
    )[0].image.shape == (3, 16, 16)


def test_the_program_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    split = write(tmp_path, [mark(1, [1, 1, 20, 20])])
    (split.images / "b.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="1 of 2 images cannot be used"):
        data.main([str(tmp_path)])
    assert "b.png does not decode" in capsys.readouterr().out


# ---- batches


def test_the_plain_transform_scales_boxes_with_the_image(tmp_path: Path) -> None:
    images = Images(read(tmp_path, [mark(1, [10, 6, 20, 12])]), augment.plain(64))
    batch = next(iter(every_image(images, 2, workers=0, pin=False)))
    assert (
        batch.images.shape == (2, 3, 64, 64)
        and batch.counts == (1, 0)
        and batch.positions == (0, 1)
    )
    torch.testing.assert_close(batch.boxes, torch.tensor([(0.25, 0.2, 0.75, 0.6)]))


def test_augmentation_depends_on_the_ticket_alone(shapes: Path) -> None:
    images = Images(
        read_annotations(find_split(shapes, "train")).with_objects(), augment.for_training(64)
    )
    epochs = [Epoch(len(images), 4, seed=1, epoch=0) for _ in range(2)]
    alone, helped = (
        list(training_batches(images, e, workers, False))
        for e, workers in zip(epochs, (0, 2), strict=True)
    )
    before = torch.get_rng_state()
    images[data.Ticket(0, 5)]
    assert torch.equal(before, torch.get_rng_state())
    for a, b in zip(alone, helped, strict=True):
        assert torch.equal(a.images, b.images) and torch.equal(a.boxes, b.boxes)
    other = next(iter(training_batches(images, Epoch(len(images), 4, seed=1, epoch=1), 0, False)))
    assert not torch.equal(alone[0].images, other.images)


def test_augmented_boxes_stay_on_their_objects(shapes: Path) -> None:
    images = Images(
        read_annotations(find_split(shapes, "train")).with_objects(), augment.for_training(128)
    )
    for seed in range(20):
        sample = images[data.Ticket(seed % len(images), seed)]
        assert len(sample.boxes) == len(sample.labels)
        assert (sample.boxes >= 0).all() and (sample.boxes <= 1).all()
        assert (sample.boxes[:, 2:] > sample.boxes[:, :2]).all()


def test_processes_share_every_batch_and_a_resumed_epoch_goes_on() -> None:
    whole = list(Epoch(50, 8, seed=1, epoch=2))
    shares = [list(Epoch(50, 8, seed=1, epoch=2, share=Share(rank, 2))) for rank in range(2)]
    for batch, *parts in zip(whole, *shares, strict=True):
        assert set(batch) == {ticket for part in parts for ticket in part} and len(parts[0]) == 4
    assert list(Epoch(50, 8, seed=1, epoch=2, first=3)) == whole[3:]
    positions = [t.position for batch in whole for t in batch]
    assert len(whole) == 6 and len(set(positions)) == 48
    assert [t.position for b in Epoch(50, 8, seed=1, epoch=3) for t in b] != positions
    assert len(Epoch(5, 8, seed=1, epoch=0)) == 1  # a set smaller than a batch is one batch


def test_evaluation_shares_lose_no_image(shapes: Path) -> None:
    images = Images(read_annotations(find_split(shapes, "val")), augment.for_testing(16))
    seen = [
        p
        for rank in range(3)
        for b in every_image(images, 2, 0, False, Share(rank, 3))
        for p in b.positions
    ]
    assert sorted(seen) == list(range(8))


# ---- the generator


def test_the_generator_keeps_its_promise_of_sizes() -> None:
    limits = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e9)}
    for size, (least, most) in limits.items():
        scene = synthetic.Scene(sizes=(size,))
        objects = [o for index in range(6) for o in synthetic.draw(scene, 0, index)[1]]
        assert len(objects) >= 6 and all(least <= o.area < most for o in objects)
        for x, y, width, height in (o.box for o in objects):
            assert x >= 0 and y >= 0 and x + width <= scene.side and y + height <= scene.side


def test_the_generator_repeats_itself() -> None:
    scene = synthetic.Scene(seed=5)
    (a, first), (b, again), (c, _) = (
        synthetic.draw(scene, 0, 1),
        synthetic.draw(scene, 0, 1),
        synthetic.draw(scene, 1, 1),
    )
    assert np.array_equal(a, b) and first == again and not np.array_equal(a, c)


def test_boxes_are_tight() -> None:
    for shape in synthetic.SHAPES.values():
        mask = synthetic.shape_mask(shape, 40, 0.3)
        assert abs(float(mask.sum()) - 1600) < 60
        assert min(mask[0].max(), mask[-1].max(), mask[:, 0].max(), mask[:, -1].max()) > 0


def test_no_room_is_told() -> None:
    with pytest.raises(RequestError, match="no room for objects of 160"):
        synthetic.Scene(side=200)


def test_photographs_as_backgrounds(shapes: Path, tmp_path: Path) -> None:
    paths = synthetic.photographs_in(shapes / "val2017")
    pixels, objects = synthetic.draw(synthetic.Scene(backgrounds=paths), 0, 0)
    assert pixels.shape == (320, 320, 3) and objects
    with pytest.raises(DataError, match="holds no images"):
        synthetic.photographs_in(tmp_path)
