"""Average precision as COCO counts it (pycocotools), without its printing and with its errors told in words.

Detections are in COCO's results format, a dict each: `image_id`, `category_id`, `bbox` (x, y, width, height in
pixels of the annotated image, y down) and `score`.
"""

import io
import json
import math
from collections.abc import Container, Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO  # type: ignore[import-untyped]
from pycocotools.cocoeval import COCOeval  # type: ignore[import-untyped]

Detection = Mapping[str, Any]  # one entry of COCO's results format

_NEEDED = {
    "images": ("id", "width", "height"),
    "annotations": ("id", "image_id", "category_id", "bbox", "area", "iscrowd"),
    "categories": ("id", "name"),
}
_DETECTION = ("image_id", "category_id", "bbox", "score")


@dataclass(frozen=True)
class Summary:
    """COCO's figures in percent, over IoU 0.5 to 0.95 where nothing else is said; nan where there are no objects.

    Small, medium and large objects cover less than 32^2, less than 96^2, and more pixels of the annotated image.
    """

    ap: float
    ap50: float  # at IoU 0.5
    ap75: float
    ap_small: float
    ap_medium: float
    ap_large: float
    ar: float  # recall with 100 detections an image
    ar_small: float
    ar_medium: float
    ar_large: float
    images: int
    per_class: dict[str, float]  # AP by name, of the classes that have objects


def load_truth(path: str | PathLike[str]) -> COCO:
    """The annotations of a file in COCO's format.

    Raises:
        ValueError: the file is not JSON, or an entry of it is incomplete or impossible; says which one and why.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as problem:
        raise ValueError(f"{path} is not JSON: {problem}") from problem
    try:
        _check_truth(content)
    except ValueError as problem:
        raise ValueError(f"{path}: {problem}") from None
    return _indexed(content)


def evaluate(truth: COCO, detections: Sequence[Detection], image_ids: Iterable[int] | None = None) -> Summary:
    """Compare detections with the truth, on all its images or on those of `image_ids` (others are left out).

    Raises:
        ValueError: a detection or an image id does not fit the truth.
    """
    matched = match(truth, detections, image_ids)
    with redirect_stdout(io.StringIO()):
        matched.accumulate()
        matched.summarize()
    return _summary(matched, truth, len(matched.params.imgIds))


def match(truth: COCO, detections: Sequence[Detection], image_ids: Iterable[int] | None = None) -> COCOeval:
    """pycocotools' evaluator, which detection matches which object; nothing is averaged yet.

    Raises:
        ValueError: as `evaluate` does.
    """
    chosen = sorted(truth.imgs if image_ids is None else set(image_ids))
    unknown = [i for i in chosen if i not in truth.imgs]
    if unknown or not chosen:
        raise ValueError(f"image_ids: {unknown[:5]} are not in the truth" if unknown else "there are no images")
    for number, detection in enumerate(detections):
        _check_detection(number, detection, truth)
    with redirect_stdout(io.StringIO()):
        evaluator = COCOeval(truth, _as_annotations(detections, truth), "bbox")
        evaluator.params.imgIds = chosen
        evaluator.evaluate()
    return evaluator


def write_results(path: str | PathLike[str], detections: Sequence[Detection]) -> None:
    """Save detections in COCO's results format."""
    plain = [
        {
            "image_id": int(d["image_id"]),
            "category_id": int(d["category_id"]),
            "bbox": [round(float(v), 3) for v in d["bbox"]],
            "score": round(float(d["score"]), 6),
        }
        for d in detections
    ]
    Path(path).write_text(json.dumps(plain), encoding="utf-8")


def _summary(evaluator: COCOeval, truth: COCO, images: int) -> Summary:
    figures = [_percent(value) for value in evaluator.stats]
    ap, ap50, ap75, ap_small, ap_medium, ap_large, _, _, ar, ar_small, ar_medium, ar_large = figures
    # (IoU, recall, class, area range, most detections an image); the first range is all, the last limit 100
    precision = evaluator.eval["precision"][:, :, :, 0, -1]
    by_class = ((truth.cats[k]["name"], precision[:, :, i]) for i, k in enumerate(evaluator.params.catIds))
    per_class = {name: _percent(values.mean()) for name, values in by_class if values.size and values.min() > -1}
    return Summary(
        ap=ap,
        ap50=ap50,
        ap75=ap75,
        ap_small=ap_small,
        ap_medium=ap_medium,
        ap_large=ap_large,
        ar=ar,
        ar_small=ar_small,
        ar_medium=ar_medium,
        ar_large=ar_large,
        images=images,
        per_class=per_class,
    )


def _percent(value: float) -> float:
    return math.nan if value < 0 else 100 * float(value)  # pycocotools says -1 where there are no objects


def _indexed(content: Mapping[str, Any]) -> COCO:
    coco = COCO()
    coco.dataset = content
    with redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def _as_annotations(detections: Sequence[Detection], truth: COCO) -> COCO:
    """What COCO.loadRes gives, but for an empty list too, and the caller's dicts stay as they are."""
    annotations = [
        {**d, "id": number, "area": d["bbox"][2] * d["bbox"][3], "iscrowd": 0}
        for number, d in enumerate(detections, start=1)
    ]
    return _indexed({**truth.dataset, "annotations": annotations})


# ---- checks


def _check_truth(content: Any) -> None:
    if not isinstance(content, dict):
        raise ValueError(f"holds a {type(content).__name__}, not an object with images, annotations and categories")
    for part, keys in _NEEDED.items():
        entries = content.get(part)
        if not isinstance(entries, list):
            raise ValueError(f"has no list of {part}")
        for number, entry in enumerate(entries):
            _check_keys(f"{part}[{number}]", entry, keys)
        _check_unique(part, entries)
    images, categories = ({entry["id"] for entry in content[part]} for part in ("images", "categories"))
    for number, entry in enumerate(content["images"]):
        if not all(_is_number(entry[side]) and entry[side] > 0 for side in ("width", "height")):
            raise ValueError(f"images[{number}] (id {entry['id']}): {entry['width']!r} x {entry['height']!r} pixels")
    for number, entry in enumerate(content["annotations"]):
        place = f"annotations[{number}] (id {entry['id']})"
        _check_known(place, entry, images, categories)
        _check_box(place, entry["bbox"])
        if not (_is_number(entry["area"]) and entry["area"] >= 0):
            raise ValueError(f"{place}: area is {entry['area']!r}, not a number of pixels")
        if entry["iscrowd"] not in (0, 1):
            raise ValueError(f"{place}: iscrowd is {entry['iscrowd']!r}, not 0 or 1")


def _check_detection(number: int, detection: Detection, truth: COCO) -> None:
    place = f"detections[{number}]"
    _check_keys(place, detection, _DETECTION)
    _check_known(place, detection, truth.imgs, truth.cats)
    _check_box(place, detection["bbox"])
    if not _is_number(detection["score"]):
        raise ValueError(f"{place}: score is {detection['score']!r}, not a number")


def _check_keys(place: str, entry: Any, keys: Iterable[str]) -> None:
    if not isinstance(entry, Mapping):
        raise ValueError(f"{place} is a {type(entry).__name__}, not an object")
    missing = [key for key in keys if key not in entry]
    if missing:
        raise ValueError(f"{place} has no {', '.join(missing)}")


def _check_unique(part: str, entries: Sequence[Mapping[str, Any]]) -> None:
    seen: set[int] = set()
    for number, entry in enumerate(entries):
        if isinstance(entry["id"], bool) or not isinstance(entry["id"], int):
            raise ValueError(f"{part}[{number}]: id is {entry['id']!r}, not an integer")
        if entry["id"] in seen:
            raise ValueError(f"{part}[{number}]: id {entry['id']} is there twice")
        seen.add(entry["id"])


def _check_known(place: str, entry: Mapping[str, Any], images: Container[int], categories: Container[int]) -> None:
    for key, known in (("image_id", images), ("category_id", categories)):
        value = entry[key]
        if not isinstance(value, (int, np.integer)) or value not in known:
            raise ValueError(f"{place}: there is no {key} {value!r}")


def _check_box(place: str, box: Any) -> None:
    if not isinstance(box, Sequence) or len(box) != 4 or not all(_is_number(v) for v in box):
        raise ValueError(f"{place}: bbox is {box!r}, not four numbers x, y, width, height")
    if box[2] < 0 or box[3] < 0:
        raise ValueError(f"{place}: bbox {list(box)} has a negative width or height")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool) and math.isfinite(value)
