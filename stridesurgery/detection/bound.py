"""The bound of a dual path, chosen on labelled images."""

import contextlib
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.ops.boxes import box_area

from stridesurgery.detection.dual import Detections, DualPath
from stridesurgery.errors import RequestError

BOUNDS = (48, 64, 96, 128, 160, 192, 224, 256)  # pixels


def choose_bound(
    both: DualPath, batches: Iterable[tuple[Any, Any]], bounds: Sequence[float] = BOUNDS
) -> dict[float, float]:
    """Measure COCO's AP of a dual path for each of several bounds; needs pycocotools.

    Choose on images that are not those that you report on.

    Args:
        both: what `dual_path` returned, in evaluation mode, with `combine="merge"`.
        batches: pairs of images and targets, as torchvision's detectors take them for training.
        bounds: in pixels, as for `dual_path`.

    Returns:
        AP in percent by bound, the best first. Set `both.bound` to the first key.

    Raises:
        RequestError: no image, or a dual path that does not merge.

    Example:
        >>> import torch, torchvision, stridesurgery as ss
        >>> net = torchvision.models.detection.ssdlite320_mobilenet_v3_large(
        ...     weights=None, weights_backbone=None
        ... ).eval()
        >>> target = {"boxes": torch.tensor([[8.0, 8, 60, 60]]), "labels": torch.tensor([1])}
        >>> both = ss.detection.dual_path(net, "S1L0")
        >>> found = ss.detection.choose_bound(both, [([torch.rand(3, 64, 64)], [target])], (32, 64))
        >>> sorted(found)
        [32, 64]
    """
    if both.training or both.combine != "merge":
        raise RequestError(
            "choose_bound takes a dual path in evaluation mode, with combine='merge'"
        )
    truth: list[Mapping[str, Tensor]] = []
    found: dict[float, Detections] = {bound: [] for bound in bounds}
    for images, targets in batches:
        with torch.no_grad():
            large, small = both.paths(images)
        truth += targets
        for bound, results in found.items():
            results += both.merged(large, small, bound)
    if not truth:
        raise RequestError("there are no images to choose a bound on")
    scores = {bound: average_precision(truth, results) for bound, results in found.items()}
    return dict(sorted(scores.items(), key=lambda item: -item[1]))


def average_precision(truth: Sequence[Mapping[str, Tensor]], found: Detections) -> float:
    """Return COCO's AP in percent."""
    try:
        from pycocotools.coco import COCO  # type: ignore[import-untyped]
        from pycocotools.cocoeval import COCOeval  # type: ignore[import-untyped]
    except ImportError as lacking:
        raise RequestError("choose_bound needs pycocotools: pip install pycocotools") from lacking
    objects = [entry for i, target in enumerate(truth) for entry in _entries(i, target)]
    coco = COCO()
    coco.dataset = {
        "images": [{"id": i} for i in range(len(truth))],
        "annotations": [{"id": n + 1, **entry} for n, entry in enumerate(objects)],
        "categories": [{"id": k} for k in sorted({entry["category_id"] for entry in objects})],
    }
    results = [entry for i, detections in enumerate(found) for entry in _entries(i, detections)]
    if not results:
        return 0.0
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return 100 * float(evaluation.stats[0])


def _entries(image: int, boxes: Mapping[str, Tensor]) -> Iterable[dict[str, Any]]:
    """Return boxes in COCO's format."""
    count = len(boxes["boxes"])
    crowd = boxes.get("iscrowd", torch.zeros(count))
    area = boxes.get("area", box_area(boxes["boxes"]))
    scores = boxes.get("scores", torch.ones(count))
    corners = boxes["boxes"].tolist()
    columns = zip(corners, boxes["labels"], scores, area, crowd, strict=True)
    for (left, top, right, bottom), label, score, size, is_crowd in columns:
        yield {
            "image_id": image,
            "category_id": int(label),
            "bbox": [left, top, right - left, bottom - top],
            "score": float(score),
            "area": float(size),
            "iscrowd": int(is_crowd),
        }
