"""Annotation files in COCO's format, cleaned for training: which objects count, and what was left out."""

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.ssd.errors import DataError

LEAST_SIDE = 1.0  # pixels of the annotated image; a smaller object has no area to learn from
Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels


@dataclass(frozen=True)
class Split:
    """Where a set of images is."""

    annotations: Path
    images: Path


@dataclass(frozen=True)
class Categories:
    """The classes: label 0 is the background, label k+1 the k-th category by id, whatever gaps the ids have."""

    ids: tuple[int, ...]
    names: tuple[str, ...]

    @property
    def classes(self) -> int:
        """With the background."""
        return 1 + len(self.ids)


@dataclass(frozen=True)
class Record:
    """One annotated image."""

    id: int
    path: Path
    width: int  # pixels
    height: int
    boxes: tuple[Box, ...]
    labels: tuple[int, ...]


@dataclass(frozen=True)
class Annotations:
    """What an annotation file says, and what of it was left out, by reason."""

    records: tuple[Record, ...]
    categories: Categories
    left_out: Mapping[str, int]

    def with_objects(self) -> "Annotations":
        """Only the images that have objects to learn from.

        Raises:
            DataError: there is none.
        """
        kept = tuple(r for r in self.records if r.boxes)
        if not kept:
            raise DataError(f"none of the {len(self.records)} images has an object to train on: {self.said()}.")
        empty = len(self.records) - len(kept)
        return Annotations(kept, self.categories, {**self.left_out, "images without objects": empty})

    def said(self) -> str:
        """For people."""
        objects = sum(len(r.boxes) for r in self.records)
        out = [f"{count} {reason}" for reason, count in self.left_out.items() if count]
        text = f"{len(self.records)} images, {objects} objects, {len(self.categories.ids)} categories"
        return f"{text}; left out: {', '.join(out)}" if out else text


def find_split(folder: Path, name: str) -> Split:
    """A set inside a folder: COCO's own layout, or `name`/, or the folder itself, with instances.json and images/.

    name: train or val.

    Raises:
        DataError: none is there; says where it looked.
    """
    candidates = [
        Split(folder / "annotations" / f"instances_{name}2017.json", folder / f"{name}2017"),
        Split(folder / name / "instances.json", folder / name / "images"),
        Split(folder / "instances.json", folder / "images"),
    ]
    for split in candidates:
        if split.annotations.is_file():
            return split
    looked = ", ".join(str(split.annotations.relative_to(folder)) for split in candidates)
    raise DataError(f"{folder} holds no annotations for {name}; looked for {looked}. Name the file with --{name}-json.")


def read_annotations(split: Split) -> Annotations:
    """The cleaned annotations of a set: crowds, boxes outside the image and boxes of no area are left out.

    Raises:
        DataError: the file or an entry is malformed, or an image is missing or outside the folder.
    """
    content = _load(split.annotations)
    where = str(split.annotations)
    images, marks, kinds = (_entries(content, part, where) for part in ("images", "annotations", "categories"))
    categories = _categories(kinds, where)
    labels = {number: k for k, number in enumerate(categories.ids, start=1)}
    sizes = {_get(i, "id", f"{where}: images[{n}]"): i for n, i in enumerate(images)}
    if len(sizes) != len(images):
        raise DataError(f"{where}: an image id is there twice.")
    objects: dict[Any, list[tuple[Box, int]]] = {number: [] for number in sizes}
    left_out: Counter[str] = Counter()
    for n, mark in enumerate(marks):
        place = f"{where}: annotations[{n}]"
        image, category = _get(mark, "image_id", place), _get(mark, "category_id", place)
        if image not in sizes or category not in labels:
            raise DataError(f"{place} is of image {image!r} and category {category!r}; one of them is not in the file.")
        box = _clipped(_box(mark, place), sizes[image])
        if mark.get("iscrowd"):
            left_out["crowds"] += 1
        elif box is None:
            left_out["boxes of no area inside the image"] += 1
        else:
            objects[image].append((box, labels[category]))
    records = tuple(_record(entry, objects[number], split, where) for number, entry in sizes.items())
    _check_there(records, split.images)
    return Annotations(records, categories, left_out)


def _load(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"there is no annotation file {path}.") from None
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as problem:
        raise DataError(f"{path} is not JSON: {problem}") from problem


def _entries(content: Any, part: str, where: str) -> list[Mapping[str, Any]]:
    entries = content.get(part) if isinstance(content, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise DataError(f"{where} has no list of {part}; COCO's files have images, annotations and categories.")
    if not entries and part != "annotations":
        raise DataError(f"{where}: the list of {part} is empty.")
    return entries


def _get(entry: Mapping[str, Any], key: str, place: str) -> Any:
    if key not in entry:
        raise DataError(f"{place} has no {key}.")
    return entry[key]


def _categories(kinds: Sequence[Mapping[str, Any]], where: str) -> Categories:
    pairs = [(_get(k, "id", f"{where}: categories[{n}]"), str(k.get("name", k["id"]))) for n, k in enumerate(kinds)]
    if not all(isinstance(number, int) for number, _ in pairs) or len(dict(pairs)) != len(pairs):
        raise DataError(
            f"{where}: category ids are {[number for number, _ in pairs]}; each must be a whole number of its own."
        )
    ids, names = zip(*sorted(pairs), strict=True)
    return Categories(ids, names)


def _box(mark: Mapping[str, Any], place: str) -> tuple[float, ...]:
    """x, y, width, height."""
    box = _get(mark, "bbox", place)
    if not isinstance(box, list) or len(box) != 4 or not all(_is_number(v) for v in box):
        raise DataError(f"{place}: bbox is {box!r}, not four numbers x, y, width, height.")
    return tuple(box)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _clipped(box: Sequence[float], image: Mapping[str, Any]) -> Box | None:
    """The part inside the image, or None where too little is left."""
    x, y, width, height = box
    left, top = max(0.0, x), max(0.0, y)
    right, bottom = min(float(image.get("width", 0)), x + width), min(float(image.get("height", 0)), y + height)
    return (left, top, right, bottom) if min(right - left, bottom - top) >= LEAST_SIDE else None


def _record(entry: Mapping[str, Any], objects: Sequence[tuple[Box, int]], split: Split, where: str) -> Record:
    place = f"{where}: image {entry['id']!r}"
    name, width, height = (_get(entry, key, place) for key in ("file_name", "width", "height"))
    if not all(_is_number(side) and side > 0 for side in (width, height)):
        raise DataError(f"{place} has {width!r} x {height!r} pixels.")
    path = _inside(split.images, name, place)
    boxes, labels = zip(*objects, strict=True) if objects else ((), ())
    return Record(entry["id"], path, int(width), int(height), boxes, labels)


def _inside(folder: Path, name: Any, place: str) -> Path:
    """The file of that name; a name that leads out of the folder is refused."""
    if not isinstance(name, str) or not name:
        raise DataError(f"{place}: file_name is {name!r}.")
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise DataError(f"{place}: file_name {name!r} leaves the folder {folder}; it is not read.")
    return path


def _check_there(records: Sequence[Record], folder: Path) -> None:
    if not folder.is_dir():
        raise DataError(f"there is no image folder {folder}.")
    missing = list(_missing(records))
    if missing:
        raise DataError(
            f"{len(missing)} of {len(records)} images are not in {folder}, the first is {missing[0].path.name}."
        )


def _missing(records: Sequence[Record]) -> Iterator[Record]:
    return (r for r in records if not r.path.is_file())
