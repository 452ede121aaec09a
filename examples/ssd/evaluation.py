"""Average precision as COCO counts it (pycocotools), without its printing and with its errors told in words.

Detections are in COCO's results format, a dict each: `image_id`, `category_id`, `bbox` (x, y, width, height in
pixels of the annotated image, y down) and `score`.
"""

import io
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from pycocotools.coco import COCO  # type: ignore[import-untyped]
from pycocotools.cocoeval import COCOeval  # type: ignore[import-untyped]

from examples.ssd import coco_file
from examples.ssd.coco_file import (
    Entry,
    check_box,
    check_each,
    check_id,
    check_keys,
    check_known,
    is_length,
    shown,
)
from examples.ssd.errors import DataError
from examples.ssd.files import write_atomically

Detection = Entry  # one entry of COCO's results format


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
    """The annotations of a file in COCO's format, all that an evaluation needs of them checked.

    The annotations are numbered from 1: pycocotools takes an object of id 0 for one that was not found.

    Raises:
        DataError: the file is not JSON, or an entry of it is incomplete or impossible; says which one and why.
    """
    file = coco_file.read(Path(path))
    check_each(file.where, "annotations", file.annotations, _check_truth)
    coco_file.by_own_id(file.where, "annotations", file.annotations)
    numbered = [{**mark, "id": number} for number, mark in enumerate(file.annotations, start=1)]
    return _indexed({**file.content, "annotations": numbered})


def evaluate(
    truth: COCO, detections: Sequence[Detection], image_ids: Iterable[int] | None = None
) -> Summary:
    """Compare detections with the truth, on all its images or on those of `image_ids` (others are left out).

    Raises:
        DataError: a detection or an image id does not fit the truth.
    """
    matched = match(truth, detections, image_ids)
    with redirect_stdout(io.StringIO()):
        matched.accumulate()
        matched.summarize()
    return summary(matched, truth)


def match(
    truth: COCO, detections: Sequence[Detection], image_ids: Iterable[int] | None = None
) -> COCOeval:
    """pycocotools' evaluator, which detection matches which object; nothing is averaged yet.

    Raises:
        DataError: as `evaluate` does.
    """
    chosen = sorted(truth.imgs if image_ids is None else set(image_ids))
    unknown = [i for i in chosen if i not in truth.imgs]
    if unknown or not chosen:
        raise DataError(
            f"image_ids: {unknown[:5]} are not in the truth." if unknown else "there are no images."
        )
    check_detections(truth, detections)
    with redirect_stdout(io.StringIO()):
        evaluator = COCOeval(truth, as_annotations(detections, truth), "bbox")
        evaluator.params.imgIds = chosen
        evaluator.evaluate()
    return evaluator


def write_results(path: str | PathLike[str], detections: Sequence[Detection]) -> None:
    """Save detections in COCO's results format, whole or not at all."""
    plain = [
        {
            "image_id": int(d["image_id"]),
            "category_id": int(d["category_id"]),
            "bbox": [round(float(v), 3) for v in d["bbox"]],
            "score": round(float(d["score"]), 6),
        }
        for d in detections
    ]
    with write_atomically(Path(path)) as part:
        part.write_text(json.dumps(plain), encoding="utf-8")


def summary(done: Any, truth: COCO) -> Summary:
    """The figures of an evaluator, pycocotools' or one with its face, that has summarised."""
    # The two left out: recall with 1 and with 10 detections an image.
    ap, ap50, ap75, ap_small, ap_medium, ap_large, _, _, ar, ar_small, ar_medium, ar_large = map(
        _percent, done.stats[:12]
    )
    # (IoU, recall, class, area range, most detections an image); the first range is all, the last limit 100
    precision = done.eval["precision"][:, :, :, 0, -1]
    by_class = ((truth.cats[k], precision[:, :, i]) for i, k in enumerate(done.params.catIds))
    names = Counter(category["name"] for category in truth.cats.values())
    per_class = {
        c["name"] if names[c["name"]] == 1 else f"{c['name']} ({c['id']})": _percent(values.mean())
        for c, values in by_class
        if values.size and values.min() > -1
    }
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
        images=len(done.params.imgIds),
        per_class=per_class,
    )


def _percent(value: float) -> float:
    return (
        math.nan if value < 0 else 100 * float(value)
    )  # pycocotools says -1 where there are no objects


def _indexed(content: Mapping[str, Any]) -> COCO:
    coco = COCO()
    coco.dataset = content
    with redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def as_annotations(detections: Sequence[Detection], truth: COCO) -> COCO:
    """What COCO.loadRes gives, but for an empty list too, and the caller's dicts stay as they are."""
    annotations = [
        {**d, "id": number, "area": d["bbox"][2] * d["bbox"][3], "iscrowd": 0}
        for number, d in enumerate(detections, start=1)
    ]
    return _indexed({**truth.dataset, "annotations": annotations})


# ---- checks


def _check_truth(mark: Entry) -> None:
    """What boxes need beyond `coco_file.read` to be evaluated."""
    check_keys(mark, "id", "area", "iscrowd")
    check_id(mark)
    _check_extent(mark["bbox"])
    if not (is_length(mark["area"]) and mark["area"] >= 0):
        raise DataError(f": area is {shown(mark['area'])}, not a number of pixels")


def check_detections(truth: COCO, detections: Sequence[Detection]) -> None:
    """Say which detection does not fit the truth, and why.

    Raises:
        DataError: one does not.
    """
    check_each(
        "results", "detections", detections, lambda detection: _check_detection(detection, truth)
    )


def _check_detection(detection: Entry, truth: COCO) -> None:
    check_keys(detection, "image_id", "category_id", "bbox", "score")
    check_known(detection, truth.imgs, truth.cats)
    check_box(detection["bbox"])
    _check_extent(detection["bbox"])
    if not is_length(detection["score"]):
        raise DataError(f": score is {shown(detection['score'])}, not a number")


def _check_extent(box: Sequence[float]) -> None:
    if box[2] < 0 or box[3] < 0:
        raise DataError(f": bbox {shown(list(box))} has a negative width or height")
