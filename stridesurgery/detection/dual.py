"""A detector that looks at an image on two grids, with one set of weights."""

import contextlib
import copy
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchvision.ops import batched_nms
from torchvision.ops.boxes import box_area

from stridesurgery._analysis import part_of
from stridesurgery._features import dual_path as dual_path_of
from stridesurgery._rewrite import eliminate
from stridesurgery.detection.levels import levels
from stridesurgery.errors import RequestError
from stridesurgery.surgery import Surgery

Detections = list[dict[str, Tensor]]  # of each image, as torchvision's detectors return them
BOUNDS = (48, 64, 96, 128, 160, 192, 224, 256)  # pixels
EVERYTHING = 10**9  # detections of an image: nothing is left out


def dual_path(
    detector: nn.Module,
    S: int | str | Surgery,
    L: Any = None,
    *,
    bound: float = 96,
    combine: Literal["merge", "split"] = "merge",
    sizes: Literal["follow", "stay"] = "follow",
    centres: Literal["looks", "carried"] = "carried",
    large_norm: Literal["shared", "frozen"] = "shared",
    input_size: int | tuple[int, int] | None = None,
) -> "DualPath":
    """Give a detector a second, finer look at small objects, on one set of weights.

    The backbone becomes a dual path (`stridesurgery.dual_path`): what precedes the eliminated
    stride runs once. The heads run on the maps of both paths.

    Args:
        detector: one of torchvision's, or another of a kind that is registered, whose detections
            are torchvision's and whose suppression is set by `nms_thresh` and `detections_per_img`.
        S: how many strides to eliminate, or a name, or a `Surgery`; as for `eliminate`.
        L: at which layers; as for `eliminate`.
        bound: in evaluation, boxes of the fine path count whose side (the square root of the area)
            is below it, in pixels of the image that is given. `choose_bound` finds one.
        combine: "merge": one list of detections for each image, after one suppression of the boxes
            of both paths; "split": a pair, the lists of the original and of the fine path, each
            with its own suppression.
        sizes: as for `eliminate`.
        centres: as for `eliminate`; trained predictors want "carried".
        large_norm: as for `stridesurgery.dual_path`.
        input_size: as for `eliminate`.

    Returns:
        The detector of both paths. In train mode it returns the losses of both, "large.X" and
        "small.X".

    Raises:
        RequestError: a detector that is of no known kind, or without a suppression.
        SurgeryError: the surgery is not possible.

    Example:
        >>> import torch, torchvision, stridesurgery as ss
        >>> net = torchvision.models.detection.ssdlite320_mobilenet_v3_large(
        ...     weights=None, weights_backbone=None
        ... ).eval()
        >>> both = ss.detection.dual_path(net, "S1L0", bound=96)
        >>> sorted(both([torch.rand(3, 320, 320)])[0])
        ['boxes', 'labels', 'scores']
    """
    if combine not in ("merge", "split"):
        raise RequestError(f"combine is 'merge' or 'split', got {combine!r}")
    fine = eliminate(detector, S, L, input_size=input_size, sizes=sizes, centres=centres)
    surgery = fine.surgery
    assert isinstance(surgery, Surgery)
    part = part_of(detector, surgery.at, surgery.input_size)
    if part.detector != "" or not part.at or _suppression(detector) is None:
        raise RequestError(
            f"{type(detector).__name__} has no backbone and suppression that are known: a dual "
            "path takes detectors of torchvision, and registered ones whose nms_thresh and "
            "detections_per_img can be set"
        )
    assert part.size is not None
    names = [level.name for level in levels(part.module, part.size)]
    inner = replace(surgery, at=None, after=None, input_size=None)
    try:
        both = dual_path_of(
            part.module,
            inner,
            taps=[f"[{name}]" for name in names],
            sampler="original",
            large_norm=large_norm,
            input_size=part.size,
        )
    except RequestError as refusal:
        raise RequestError(
            f"{type(detector).__name__} has a backbone without two paths: {refusal}. It must "
            "return its maps in a dict"
        ) from refusal
    return DualPath(copy.deepcopy(detector), fine, both, part.at, names, bound, combine)


class DualPath(nn.Module):
    """The detector that `dual_path` returns.

    Example:
        >>> import torchvision, stridesurgery as ss
        >>> net = torchvision.models.detection.ssd300_vgg16(weights=None, weights_backbone=None)
        >>> both = ss.detection.dual_path(net, "S1L9", bound=96)
        >>> both.bound
        96
    """

    def __init__(
        self,
        coarse: nn.Module,
        fine: nn.Module,
        both: nn.Module,
        at: str,
        names: Sequence[str],
        bound: float,
        combine: str,
    ) -> None:
        super().__init__()
        self.both, self.coarse, self.fine = both, coarse, fine
        self.bound, self.combine, self.surgery = bound, combine, fine.surgery
        suppression = _suppression(coarse)
        assert suppression is not None
        self.nms_thresh, self.detections_per_img = (
            suppression.nms_thresh,
            suppression.detections_per_img,
        )
        kept: dict[str, Any] = {}
        holder, _, name = at.rpartition(".")
        for path, half in (("large", coarse), ("small", fine)):
            setattr(half.get_submodule(holder), name, _Path(both, path, names, kept))
            its = _suppression(half)
            if combine == "merge" and its is not None and not _crops(its):
                its.nms_thresh, its.detections_per_img = 1.0, EVERYTHING
        _share(coarse, fine)
        self.train(coarse.training)

    def paths(self, images: Any, targets: Any = None) -> tuple[Any, Any]:
        """Return what the original path gives, and what the fine path gives."""
        given = (images,) if targets is None else (images, copy.deepcopy(targets))
        state = torch.get_rng_state()
        large = self.coarse(*given)
        torch.set_rng_state(state)  # resized, and sampled, alike
        return large, self.fine(images, *given[1:])

    def forward(self, images: Any, targets: Any = None) -> Any:
        """Return detections, or in train mode the losses of both paths."""
        large, small = self.paths(images, targets)
        if self.training:
            return {
                f"{path}.{name}": value
                for path, losses in (("large", large), ("small", small))
                for name, value in losses.items()
            }
        return self.merged(large, small) if self.combine == "merge" else (large, small)

    def merged(
        self, large: Detections, small: Detections, bound: float | None = None
    ) -> Detections:
        """Return one list for each image: boxes below the bound join the original path's."""
        found = []
        for coarse, fine in zip(large, small, strict=True):
            below = box_area(fine["boxes"]).sqrt() < (self.bound if bound is None else bound)
            joined = {key: torch.cat([coarse[key], fine[key][below]]) for key in coarse}
            kept = batched_nms(
                joined["boxes"], joined["scores"], joined["labels"], self.nms_thresh
            )[: self.detections_per_img]
            found.append({key: value[kept] for key, value in joined.items()})
        return found


class _Path(nn.Module):
    """Stands for the backbone in one of two detectors; the first run keeps what the other needs."""

    def __init__(
        self, both: nn.Module, path: str, names: Sequence[str], kept: dict[str, Any]
    ) -> None:
        super().__init__()
        vars(self)["both"] = both  # a module of the whole, not of this one
        self.path, self.names, self.kept = path, tuple(names), kept

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return the maps of this path."""
        maps = self.kept.pop("maps", None) if self.path == "small" else None
        if maps is None:
            maps = vars(self)["both"](x)
        if self.path == "large":
            self.kept["maps"] = maps
        return {name: maps[f"{self.path}.[{name}]"] for name in self.names}


def _suppression(detector: nn.Module) -> Any:
    """Return the module that suppresses a detector's boxes, by its settings."""
    settings = ("nms_thresh", "detections_per_img")
    found = [m for m in detector.modules() if all(name in vars(m) for name in settings)]
    return found[0] if found else None


def _crops(suppression: nn.Module) -> bool:
    """Tell whether something is computed for every box that is left, such as its mask."""
    heads = ("mask_predictor", "keypoint_predictor")
    return any(getattr(suppression, name, None) is not None for name in heads)


def _share(coarse: nn.Module, fine: nn.Module) -> None:
    """Let the fine detector have the parameters, the buffers and the resizing of the other."""
    if hasattr(coarse, "transform"):
        fine.transform = coarse.transform  # pads to what both need
    for path, module in coarse.named_modules():
        twin = fine.get_submodule(path)
        twin._parameters.update(module._parameters)
        for name, value in module._buffers.items():
            own = twin._buffers.get(name)
            if value is not None and own is not None and torch.equal(own, value):
                twin._buffers[name] = value  # others have followed the strides, such as anchors


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
