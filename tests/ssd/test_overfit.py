"""Two images learned by heart: a wrong loss, matching, box or evaluation could not do it."""

import json
from pathlib import Path

import pytest

from examples.benchmarks.overfit import WANTED, learn, subset
from examples.ssd.annotations import Split, find_split
from examples.ssd.custom import configuration_for


@pytest.mark.parametrize(("surgery", "dual"), [(None, False), ("S1L0", True)])
def test_two_images_are_learned_by_heart(
    shapes: Path, tmp_path: Path, surgery: str | None, dual: bool
) -> None:
    row = configuration_for("test_resnet", surgery, 128, dual=dual)
    with subset(find_split(shapes, "train"), 2) as two:
        passes, ap50 = learn(row, two, "none", passes=100, every=25, folder=tmp_path)
    assert ap50 > WANTED and passes <= 75


def test_a_subset_is_of_few_objects_and_no_crowds(tmp_path: Path) -> None:
    images = [{"id": n, "file_name": f"{n}.jpg"} for n in range(5)]
    objects = [*[(0, 0)] * 7, (1, 1), *[(2, 0)] * 6, (3, 0)]  # of which image, and whether a crowd
    marks = [{"image_id": image, "iscrowd": crowd} for image, crowd in objects]
    (tmp_path / "all.json").write_text(
        json.dumps({"images": images, "annotations": marks, "categories": []})
    )
    with subset(Split(tmp_path / "all.json", tmp_path)) as found:
        kept = json.loads(found.annotations.read_text())
    assert [i["id"] for i in kept["images"]] == [2, 3]
    assert [m["image_id"] for m in kept["annotations"]] == [2] * 6 + [3]
