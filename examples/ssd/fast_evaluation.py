"""The same figures as `evaluation` from faster-coco-eval, an evaluator in C++, where it is installed."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from pycocotools.coco import COCO  # type: ignore[import-untyped]

from examples.ssd.errors import RequestError
from examples.ssd.evaluation import Detection, Summary

# In COCO's order; the recalls with 1 and with 10 detections an image are left out.
STATISTICS = (
    *("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"),
    *("", "", "ar", "ar_small", "ar_medium", "ar_large"),
)


def evaluate(truth: COCO, detections: Sequence[Detection]) -> Summary:
    """As `evaluation.evaluate` on all images of the truth.

    Raises:
        RequestError: faster-coco-eval is not installed.
    """
    try:
        import faster_coco_eval as faster  # type: ignore[import-not-found,import-untyped]
    except ImportError:
        raise RequestError("--evaluator faster needs the package faster-coco-eval: pip install it.") from None
    fast = faster.COCO(truth.dataset)
    found = faster.COCO({**truth.dataset, "annotations": as_annotations(detections)})
    evaluator = faster.COCOeval_faster(fast, found, "bbox", print_function=lambda *_: None)
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summarize()
    figures = {name: percent(v) for name, v in zip(STATISTICS, evaluator.stats, strict=False) if name}
    return Summary(**figures, images=len(truth.imgs), per_class=per_class(evaluator, truth.cats))


def as_annotations(detections: Sequence[Detection]) -> list[dict[str, Any]]:
    return [
        {**d, "id": number, "area": d["bbox"][2] * d["bbox"][3], "iscrowd": 0}
        for number, d in enumerate(detections, start=1)
    ]


def per_class(evaluator: Any, categories: Mapping[int, Mapping[str, Any]]) -> dict[str, float]:
    """AP by name, of the classes that have objects."""
    precision = evaluator.eval["precision"][:, :, :, 0, -1]  # IoU, recall, class
    by_class = ((categories[k]["name"], precision[:, :, i]) for i, k in enumerate(evaluator.params.catIds))
    return {name: percent(values.mean()) for name, values in by_class if values.size and values.min() > -1}


def percent(value: float) -> float:
    return math.nan if value < 0 else 100 * float(value)


def largest_difference(a: Summary, b: Summary) -> float:
    """Between any two figures of the same name, in percent; nan where only one of them is nan."""
    pairs = [(getattr(a, f.name), getattr(b, f.name)) for f in fields(Summary) if f.name != "per_class"]
    pairs += [(a.per_class[k], b.per_class.get(k, math.nan)) for k in a.per_class]
    gaps = [0.0 if math.isnan(x) and math.isnan(y) else abs(x - y) for x, y in pairs]
    return math.nan if any(map(math.isnan, gaps)) else max(gaps)
