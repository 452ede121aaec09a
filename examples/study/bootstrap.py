"""How much a figure of COCO's evaluation would vary with other images: a bootstrap over images.

The detections are matched with the objects once, by pycocotools. A resample then only weighs the
images: one drawn twice counts twice. With every image counted once, the figures are those of
pycocotools to the digit.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO  # type: ignore[import-untyped]

from examples.ssd.evaluate import Detection, match

SIZES = ("", "_small", "_medium", "_large")  # COCO's area ranges, in its order
RECALLS = np.linspace(0, 1, 101)  # where pycocotools reads the precision off
RESAMPLES = 300
WITHIN = 1.96  # standard deviations

Floats = NDArray[np.float64]
Ids = Sequence[int] | None
Figures = Mapping[str, Floats]  # percent, (resamples,); nan where there are no objects


class Group(NamedTuple):
    """The detections of one class, surest first, beside the objects of one range of sizes."""

    image: NDArray[np.int64]  # (D,): position of the detection's image
    right: NDArray[np.bool_]  # (IoUs, D): matches an object
    wrong: NDArray[np.bool_]  # (IoUs, D): matches none; an object of another size is neither
    objects: Floats  # (images,)


class Matches(NamedTuple):
    """What pycocotools matched, before anything is averaged."""

    groups: Mapping[tuple[str, str], Group]  # by class and size
    images: int


def matches(
    truth: COCO, found: Sequence[Detection], image_ids: Ids = None, least: int = 1
) -> Matches:
    """Match detections with objects.

    image_ids: the images that count; all, if none are named. least: objects of a range of sizes
    that a class must have to count in it: one object would be a third.
    """
    done = match(truth, found, image_ids)
    ids, groups = done.params.imgIds, {}
    parts = iter(done.evalImgs)  # class by class, size by size, image by image
    for category in done.params.catIds:
        for size in SIZES:
            per_image = [next(parts) for _ in ids]
            own = [0 if e is None else np.sum(1 - np.array(e["gtIgnore"])) for e in per_image]
            if sum(own) >= max(1, least):
                group = _group(per_image, np.array(own, float))
                groups[truth.cats[category]["name"], size] = group
    return Matches(groups, len(ids))


def _group(per_image: Sequence[Mapping | None], objects: Floats) -> Group:
    present = [(i, e) for i, e in enumerate(per_image) if e is not None]
    scores = np.concatenate([e["dtScores"] for _, e in present])
    order = np.argsort(-scores, kind="mergesort")  # as pycocotools breaks ties
    image = np.concatenate([np.full(len(e["dtScores"]), i) for i, e in present])[order]
    matched = np.concatenate([e["dtMatches"] for _, e in present], axis=1)[:, order] > 0
    ignored = np.concatenate([e["dtIgnore"] for _, e in present], axis=1)[:, order].astype(bool)
    right, wrong = matched & ~ignored, ~matched & ~ignored
    last = np.flatnonzero(right.any(axis=0)).max(initial=-1)  # what is less sure changes nothing
    counts = (right | wrong).any(axis=0) & (np.arange(len(image)) <= last)
    return Group(image[counts], right[:, counts], wrong[:, counts], objects)


def figures(found: Matches, weights: Floats) -> dict[str, Floats]:
    """Return AP, AP50 and AR, AP and AR also by size: percent, (resamples,), by ap_small, ...

    weights: (resamples, images), how often each image counts.
    """
    result = {}
    for size in SIZES:
        pairs = [_of_group(g, weights) for (_, s), g in found.groups.items() if s == size]
        pairs = pairs or [(np.full((1, len(weights)), np.nan),) * 2]
        precision, recall = map(np.stack, zip(*pairs, strict=True))  # classes, IoUs, resamples
        result[f"ap{size}"], result[f"ar{size}"] = _mean(precision), _mean(recall)
        if size == "":
            result["ap50"] = _mean(precision[:, :1])
    return result


def _of_group(group: Group, weights: Floats) -> tuple[Floats, Floats]:
    """Return average precision and recall, (IoUs, resamples); nan where there are no objects."""
    objects = weights @ group.objects
    each = weights[:, group.image]  # (resamples, D)
    precision = np.full((len(group.right), len(weights)), np.nan)
    recall = precision.copy()
    some = objects > 0
    for k, (right, wrong) in enumerate(zip(group.right, group.wrong, strict=True)):
        hits = np.flatnonzero(right)  # the precision rises nowhere else
        right_so_far = np.cumsum(each[:, hits], axis=1)
        wrong_so_far = np.cumsum(each * wrong, axis=1)[:, hits]
        with np.errstate(invalid="ignore", divide="ignore"):
            reached = right_so_far / objects[:, None]
            sharp = right_so_far / (wrong_so_far + right_so_far + np.spacing(1))
        envelope = np.maximum.accumulate(sharp[:, ::-1], axis=1)[:, ::-1]
        for place in np.flatnonzero(some):
            at = np.searchsorted(reached[place], RECALLS)
            precision[k, place] = envelope[place][at[at < len(hits)]].sum() / len(RECALLS)
        recall[k, some] = reached[some, -1] if len(hits) else 0.0
    return precision, recall


def _mean(values: Floats) -> Floats:
    """Average (K, T, resamples) over classes and IoUs; a class without objects does not count."""
    count = (~np.isnan(values)).sum(axis=(0, 1))
    total = np.nan_to_num(values).sum(axis=(0, 1))
    return np.where(count > 0, 100 * total / np.maximum(count, 1), np.nan)


def resamples(images: int, count: int = RESAMPLES, seed: int = 0) -> Floats:
    """Return (1 + count, images): every image once, then as many drawn with replacement."""
    drawn = np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=count)
    return np.concatenate([np.ones((1, images)), drawn.astype(float)])


def interval(values: Floats) -> list[float]:
    """Return a figure and the ends of its 95 % interval: 1.96 standard deviations to either side.

    Not quantiles of the resamples: an average over classes is on average larger in a resample than
    in the whole set, since classes that are seldom drop out and objects drawn twice are found
    twice. values: as `resamples` orders them.
    """
    value, drawn = float(values[0]), values[1:][~np.isnan(values[1:])]
    half = WITHIN * float(drawn.std(ddof=1)) if len(drawn) > 1 else np.nan
    return [value, value - half, value + half]


def differences(values: Figures, base: Figures) -> dict[str, list[float]]:
    """Compare two networks on the same resamples: what the images have in common cancels."""
    return {name: interval(v - base[name]) for name, v in values.items() if name in base}


def evaluated(
    found: Matches, rivals: Mapping[str, Figures] = MappingProxyType({})
) -> tuple[Figures, dict[str, Any]]:
    """Return the figures of every resample, and what a record says of them and of rivals.

    "objects": how many a figure rests on, by what follows "ap" or "ar" in its name.
    """
    own, objects = figures(found, resamples(found.images)), dict.fromkeys(SIZES, 0)
    for (_, size), group in found.groups.items():
        objects[size] += int(group.objects.sum())
    return own, {
        "figures": {name: interval(values) for name, values in own.items()},
        "objects": objects,
        "differences": {name: differences(own, other) for name, other in rivals.items()},
    }
