"""Annotation files in COCO's format, cleaned for training: which objects count, and what was left out."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from examples.ssd import coco_file
from examples.ssd.coco_file import CocoFile, Entry, place, shown
from examples.ssd.errors import DataError

LEAST_SIDE = 1.0  # pixels; a box that is narrower has no area to learn from
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
            raise DataError(
                f"none of the {len(self.records)} images has an object to train on: {self.said()}."
            )
        empty = len(self.records) - len(kept)
        return Annotations(
            kept, self.categories, {**self.left_out, "images without objects": empty}
        )

    def said(self, size: int | None = None) -> str:
        """For people. size: of the network's input; tells how many objects are lost in it."""
        objects = sum(len(r.boxes) for r in self.records)
        out = [f"{count} {reason}" for reason, count in self.left_out.items() if count]
        text = (
            f"{len(self.records)} images, {objects} objects, {len(self.categories.ids)} categories"
        )
        text += f"; left out: {', '.join(out)}" if out else ""
        lost = 0 if size is None else self.lost_at(size)
        return (
            f"{text}; {lost} objects are narrower than a pixel at {size} x {size}, and not learned"
            if lost
            else text
        )

    def lost_at(self, size: int) -> int:
        """How many objects are narrower than a pixel once their image is resized; the transforms drop them."""
        return sum(
            min((right - left) * size / record.width, (bottom - top) * size / record.height)
            < LEAST_SIDE
            for record in self.records
            for left, top, right, bottom in record.boxes
        )


def find_split(folder: Path, name: str) -> Split:
    """A set inside a folder: COCO's own layout, or `name`/, or the folder itself, with instances.json and images/.

    name: train or val.

    Raises:
        DataError: none is there; says where it looked.
    """
    candidates = [*_own_splits(folder, name), _flat(folder)]
    for split in candidates:
        if split.annotations.is_file():
            return split
    looked = ", ".join(str(split.annotations.relative_to(folder)) for split in candidates)
    raise DataError(
        f"{folder} holds no annotations for {name}; looked for {looked}. Files elsewhere are named with "
        f"--{name}-json and --{name}-images (train) or --json and --images (evaluate)."
    )


def find_beside(folder: Path, name: str) -> Split | None:
    """As `find_split`, for a second set: a folder that is one set by itself has none, and need not have one."""
    return next((split for split in _own_splits(folder, name) if split.annotations.is_file()), None)


def _own_splits(folder: Path, name: str) -> list[Split]:
    return [
        Split(folder / "annotations" / f"instances_{name}2017.json", folder / f"{name}2017"),
        Split(folder / name / "instances.json", folder / name / "images"),
    ]


def _flat(folder: Path) -> Split:
    return Split(folder / "instances.json", folder / "images")


def read_annotations(split: Split) -> Annotations:
    """The cleaned annotations of a set: crowds, boxes outside the image and boxes of no area are left out.

    Raises:
        DataError: the file or an entry is malformed, or an image is missing or outside the folder.
    """
    file = coco_file.read(split.annotations)
    ids = sorted(file.categories)
    labels = {number: label for label, number in enumerate(ids, start=1)}
    objects: dict[int, list[tuple[Box, int]]] = {number: [] for number in file.images}
    left_out: Counter[str] = Counter()
    for mark in file.annotations:
        box = inside(mark["bbox"], file.images[mark["image_id"]])
        if mark.get("iscrowd"):
            left_out["crowds"] += 1
        elif box is None:
            left_out["boxes narrower than a pixel inside the image"] += 1
        else:
            objects[mark["image_id"]].append((box, labels[mark["category_id"]]))
    paths = image_paths(file, split.images)
    records = tuple(
        _record(entry, paths[number], objects[number]) for number, entry in file.images.items()
    )
    return Annotations(
        records, Categories(tuple(ids), tuple(file.categories[i]["name"] for i in ids)), left_out
    )


def inside(box: Sequence[float], image: Entry) -> Box | None:
    """x, y, width, height to the corners of the part inside the image; None where too little is left."""
    x, y, width, height = box
    left, top = max(0.0, x), max(0.0, y)
    right, bottom = min(float(image["width"]), x + width), min(float(image["height"]), y + height)
    return (left, top, right, bottom) if min(right - left, bottom - top) >= LEAST_SIDE else None


def _record(image: Entry, path: Path, objects: Sequence[tuple[Box, int]]) -> Record:
    boxes, labels = zip(*objects, strict=True) if objects else ((), ())
    return Record(image["id"], path, int(image["width"]), int(image["height"]), boxes, labels)


# ---- image files


def image_paths(file: CocoFile, folder: Path) -> dict[int, Path]:
    """The file of each image, by id.

    Raises:
        DataError: one is missing, or its name leads out of the folder.
    """
    if not folder.is_dir():
        raise DataError(f"there is no image folder {folder}.")
    home = folder.resolve()
    found = {
        number: _inside(
            folder,
            home,
            entry.get("file_name"),
            f"{file.where}: {place('images', position, entry)}",
        )
        for position, (number, entry) in enumerate(file.images.items())
    }
    missing = [path for path in found.values() if not path.is_file()]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(found)} images are not in {folder}, the first is {missing[0].name!r}."
        )
    return found


def _inside(folder: Path, home: Path, name: object, where: str) -> Path:
    """The file of that name; a name that leads out of the folder is refused."""
    if not isinstance(name, str) or not name:
        raise DataError(f"{where}: file_name is {shown(name)}, not the name of a file.")
    path = folder / name
    try:
        path.is_file()
        real = path.resolve()
    except (
        OSError,
        ValueError,
        RuntimeError,
    ) as problem:  # too long, a zero byte, not text, a link to itself
        why = getattr(problem, "strerror", None) or problem
        raise DataError(f"{where}: file_name {shown(name)} cannot be a file: {why}.") from problem
    if not real.is_relative_to(home):
        raise DataError(
            f"{where}: file_name {shown(name)} leaves the folder {folder}; it is not read."
        )
    return path
