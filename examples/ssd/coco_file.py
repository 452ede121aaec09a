"""Files in COCO's format, read with suspicion: what is not as it must be is told by file, entry and value."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from reprlib import Repr
from typing import Any

import numpy as np

from examples.ssd.errors import DataError

Entry = Mapping[str, Any]

LARGEST_ID = 2**53  # pycocotools keeps ids in doubles
FARTHEST = 1e9  # pixels; a coordinate beyond is a mistake

_SHORT = Repr()
_SHORT.maxstring = _SHORT.maxother = 80


@dataclass(frozen=True)
class CocoFile:
    """The entries of a file: each has the keys, types and references that boxes need."""

    where: str  # the file, for messages
    images: Mapping[int, Entry]  # by id: width and height are whole numbers of pixels
    annotations: Sequence[
        Entry
    ]  # image_id and category_id are in the file, bbox is four numbers, iscrowd 0 or 1
    categories: Mapping[int, Entry]  # by id: name is a text
    content: Mapping[str, Any]  # all that the file holds


def read_json(path: Path) -> Any:
    """What a file holds.

    Raises:
        DataError: it is not there, not readable, or no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"there is no file {path}.") from None
    except (
        OSError,
        ValueError,
        RecursionError,
    ) as problem:  # not JSON, not UTF-8, too large a number, too deep
        raise DataError(f"{path} is not JSON: {problem}") from problem


def read(path: Path) -> CocoFile:
    """The entries of a file.

    Raises:
        DataError: it is no file in COCO's format, or an entry is incomplete or impossible; says which one and why.
    """
    content, where = read_json(path), str(path)
    if not isinstance(content, dict):
        raise DataError(
            f"{where} holds a {type(content).__name__}, not an object with images and annotations."
        )
    images, marks, kinds = (
        _entries(content, part, where) for part in ("images", "annotations", "categories")
    )
    if not images or not kinds:
        raise DataError(f"{where}: the list of {'categories' if images else 'images'} is empty.")
    check_each(where, "images", images, _check_image)
    check_each(where, "categories", kinds, _check_category)
    by_id = by_own_id(where, "images", images), by_own_id(where, "categories", kinds)
    check_each(where, "annotations", marks, lambda mark: _check_mark(mark, *by_id))
    return CocoFile(where, by_id[0], marks, by_id[1], content)


def _entries(content: Mapping[str, Any], part: str, where: str) -> Sequence[Entry]:
    entries = content.get(part)
    if not isinstance(entries, list):
        raise DataError(
            f"{where} has no list of {part}; COCO's files have images, annotations and categories."
        )
    return entries


# ---- checks of one entry: each raises a DataError that the place is put before


def check_each(
    where: str, part: str, entries: Sequence[Entry], check: Callable[[Entry], None]
) -> None:
    """Check every entry of a list, and say which one fails."""
    for number, entry in enumerate(entries):
        try:
            check(entry)
        except DataError as fault:
            raise DataError(f"{where}: {place(part, number, entry)}{fault}.") from None


def place(part: str, number: int, entry: Any) -> str:
    known = f" (id {entry['id']})" if isinstance(entry, dict) and is_whole(entry.get("id")) else ""
    return f"{part}[{number}]{known}"


def shown(value: object) -> str:
    """A value of the file in a message, cut where it is long."""
    return _SHORT.repr(value)


def by_own_id(where: str, part: str, entries: Sequence[Entry]) -> dict[int, Entry]:
    """The entries by their ids, each of which must be there once."""
    found: dict[int, Entry] = {}
    for number, entry in enumerate(entries):
        if entry["id"] in found:
            raise DataError(f"{where}: {part}[{number}]: id {entry['id']} is there twice.")
        found[entry["id"]] = entry
    return found


def check_keys(entry: Any, *keys: str) -> None:
    if not isinstance(entry, dict):
        raise DataError(f" is a {type(entry).__name__}, not an object")
    missing = [key for key in keys if key not in entry]
    if missing:
        raise DataError(f" has no {', '.join(missing)}")


def check_id(entry: Entry) -> None:
    if not is_whole(entry["id"]):
        raise DataError(f": id is {shown(entry['id'])}, not a whole number")


def check_known(entry: Entry, images: Mapping[int, Any], categories: Mapping[int, Any]) -> None:
    for key, known in (("image_id", images), ("category_id", categories)):
        if not is_whole(entry[key]) or entry[key] not in known:
            raise DataError(f": there is no {key} {shown(entry[key])} in the file")


def check_box(box: Any) -> None:
    """x, y, width, height."""
    if not isinstance(box, (list, tuple)) or len(box) != 4 or not all(is_length(v) for v in box):
        raise DataError(f": bbox is {shown(box)}, not four numbers x, y, width, height")


def is_whole(value: Any) -> bool:
    is_integer = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    return bool(is_integer and -LARGEST_ID <= value <= LARGEST_ID)


def is_length(value: Any) -> bool:
    """A number of pixels; nan and infinity are none."""
    is_number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(
        value, bool
    )
    return bool(is_number and -FARTHEST < value < FARTHEST)


def _check_image(image: Entry) -> None:
    check_keys(image, "id", "width", "height")
    check_id(image)
    if not all(
        is_length(side) and side >= 1 and side == int(side)
        for side in (image["width"], image["height"])
    ):
        raise DataError(f": {shown(image['width'])} x {shown(image['height'])} pixels")


def _check_category(category: Entry) -> None:
    check_keys(category, "id", "name")
    check_id(category)
    if not isinstance(category["name"], str):
        raise DataError(f": name is {shown(category['name'])}, not a text")


def _check_mark(mark: Entry, images: Mapping[int, Entry], categories: Mapping[int, Entry]) -> None:
    check_keys(mark, "image_id", "category_id", "bbox")
    check_known(mark, images, categories)
    check_box(mark["bbox"])
    if mark.get("iscrowd", 0) not in (0, 1):
        raise DataError(f": iscrowd is {shown(mark['iscrowd'])}, not 0 or 1")
