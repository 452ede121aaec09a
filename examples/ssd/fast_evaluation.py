"""The same figures as `evaluation` from faster-coco-eval, an evaluator in C++, where it is installed."""

import math
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from pycocotools.coco import COCO  # type: ignore[import-untyped]

from examples.ssd import evaluation
from examples.ssd.errors import RequestError
from examples.ssd.evaluation import Detection, Summary


def evaluate(truth: COCO, detections: Sequence[Detection]) -> Summary:
    """As `evaluation.evaluate` on all images of the truth.

    Raises:
        RequestError: faster-coco-eval is not installed.
        DataError: a detection does not fit the truth.
    """
    faster = installed()
    evaluation.check_detections(truth, detections)
    found = evaluation.as_annotations(detections, truth).dataset
    done = faster.COCOeval_faster(
        faster.COCO(truth.dataset), faster.COCO(found), "bbox", print_function=_silent
    )
    done.evaluate()
    done.accumulate()
    done.summarize()
    return evaluation.summary(done, truth)


def installed() -> Any:
    """The package.

    Raises:
        RequestError: it is not there.
    """
    try:
        import faster_coco_eval  # type: ignore[import-not-found,import-untyped]
    except ImportError:
        raise RequestError(
            "--evaluator faster needs the package faster-coco-eval: pip install it."
        ) from None
    return faster_coco_eval


def _silent(*_: object) -> None:
    pass


def largest_difference(a: Summary, b: Summary) -> float:
    """Between any two figures of the same name, in percent; nan where only one of them is nan."""
    pairs = [
        (getattr(a, f.name), getattr(b, f.name)) for f in fields(Summary) if f.name != "per_class"
    ]
    pairs += [
        (a.per_class.get(k, math.nan), b.per_class.get(k, math.nan))
        for k in a.per_class | b.per_class
    ]
    gaps = [0.0 if math.isnan(x) and math.isnan(y) else abs(x - y) for x, y in pairs]
    return math.nan if any(map(math.isnan, gaps)) else max(gaps)
