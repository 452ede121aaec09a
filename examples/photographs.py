"""Photographs to try an ImageNet classifier on: chosen by their COCO annotations, cropped and named."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from timm.data import ImageNetInfo

Pixels = npt.NDArray[np.uint8]  # (H, W, 3), RGB

# The COCO categories that are ImageNet-1k classes. Bears are left out: COCO counts pandas among them, and
# ImageNet does not. Indices count from 0, without a background class.
IMAGENET_CLASSES: Mapping[str, frozenset[int]] = {
    "airplane": frozenset({404, 895}),
    "banana": frozenset({954}),
    "bird": frozenset({*range(7, 25), *range(80, 101), *range(127, 147)}),
    "broccoli": frozenset({937}),
    "bus": frozenset({654, 779, 874}),
    "cat": frozenset(range(281, 286)),
    "clock": frozenset({409, 530, 892}),
    "dog": frozenset(range(151, 269)),
    "elephant": frozenset({101, 385, 386}),
    "hot dog": frozenset({934}),
    "keyboard": frozenset({508, 878}),
    "laptop": frozenset({620, 681}),
    "microwave": frozenset({651}),
    "mouse": frozenset({673}),
    "orange": frozenset({950}),
    "parking meter": frozenset({704}),
    "pizza": frozenset({963}),
    "remote": frozenset({761}),
    "sheep": frozenset({348, 349}),
    "teddy bear": frozenset({850}),
    "toaster": frozenset({859}),
    "toilet": frozenset({861}),
    "traffic light": frozenset({920}),
    "train": frozenset({466, 547, 820}),
    "umbrella": frozenset({879}),
    "vase": frozenset({883}),
    "zebra": frozenset({340}),
}


@dataclass(frozen=True)
class Photograph:
    """A photograph with one annotated category that ImageNet has a class for."""

    path: Path
    category: str  # in COCO's words
    share: float  # of the centre crop that the category's boxes cover, 0 to 1


def nameable_photographs(folder: Path, least_share: float = 0.5) -> list[Photograph]:
    """Every photograph of a COCO-like folder that a classifier can name, the fullest first.

    Kept: those with one annotated category, which ImageNet has a class for and whose boxes cover
    `least_share` of the centre crop. folder: holds `instances.json` and `images/`.
    """
    listing = json.loads((folder / "instances.json").read_text())
    categories = {c["id"]: c["name"] for c in listing["categories"]}
    annotations = defaultdict(list)
    for annotation in listing["annotations"]:
        annotations[annotation["image_id"]].append(annotation)
    found = []
    for image in listing["images"]:
        mine = annotations[image["id"]]
        present = {categories[a["category_id"]] for a in mine}
        if len(present) != 1 or not present <= IMAGENET_CLASSES.keys():
            continue
        share = covered_share(image, [a["bbox"] for a in mine])
        if share >= least_share:
            found.append(Photograph(folder / "images" / image["file_name"], present.pop(), share))
    return sorted(found, key=lambda photograph: (-photograph.share, photograph.path.name))


def covered_share(image: Mapping[str, Any], boxes: Sequence[Sequence[float]]) -> float:
    """The share of the image's centre square that the boxes (x, y, width, height; pixels) cover together."""
    left, top, side = centre_square(image["width"], image["height"])
    covered = np.zeros((side, side), dtype=bool)
    for x, y, width, height in boxes:
        rows = slice(max(0, round(y) - top), max(0, round(y + height) - top))
        columns = slice(max(0, round(x) - left), max(0, round(x + width) - left))
        covered[rows, columns] = True
    return float(covered.mean())


def centre_square(width: int, height: int) -> tuple[int, int, int]:
    """The (left, top, side) of the largest square in the middle, in pixels."""
    side = min(width, height)
    return (width - side) // 2, (height - side) // 2, side


def read_square(path: Path, size: int) -> Pixels:
    """The middle of a picture at `size` x `size` pixels."""
    with Image.open(path) as picture:
        left, top, side = centre_square(*picture.size)
        square = picture.convert("RGB").crop((left, top, left + side, top + side))
    return np.asarray(square.resize((size, size), Image.Resampling.BILINEAR))


def drawn_square(size: int) -> Pixels:
    """Striped discs, large to small, on a gradient: what there is to look at without a photograph."""
    rows, columns = np.mgrid[0:size, 0:size] / size
    scene = np.stack([0.35 + 0.3 * rows, 0.55 - 0.2 * rows, 0.45 + 0.2 * columns], axis=-1)
    stripes = np.where((columns + rows) * 24 % 1 < 0.5, 0.95, 0.05)[..., None]
    for row, column, radius in (
        (0.62, 0.30, 0.24),
        (0.30, 0.66, 0.12),
        (0.72, 0.76, 0.06),
        (0.48, 0.88, 0.03),
    ):
        inside = np.hypot(rows - row, columns - column) < radius
        scene = np.where(inside[..., None], stripes, scene)
    return (scene * 255).astype(np.uint8)


@cache
def _imagenet() -> ImageNetInfo:
    return ImageNetInfo()


def class_name(index: int) -> str:
    """The first English name of an ImageNet-1k class, counted from 0 without a background class."""
    return str(_imagenet().index_to_description(index)).split(",")[0]
