"""How much a figure of COCO's evaluation would vary with other images: a bootstrap over images.

The detections are matched with the objects once, by pycocotools. A resample then only weighs the images: one drawn
twice counts twice. With every image counted once, the figures are those of pycocotools to the digit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO  # type: ignore[import-untyped]

from examples.ssd.evaluate import Detection, match

SIZES = ("", "_small", "_medium", "_large")  # COCO's area ranges, in its order
RECALLS = np.linspace(0, 1, 101)  # where pycocotools reads the precision off
RESAMPLES = 300
WITHIN = 1.96  # standard deviations

Floats = NDArray[np.float64]
Figures = Mapping[str, Floats]  # percent, (resamples,); nan where there are no objects


@dataclass(frozen=True)
class Group:
    """The detections of one class, surest first, beside the objects of one range of sizes."""

    image: NDArray[np.int64]  # (D,): position of the detection's image
    right: NDArray[np.bool_]  # (IoUs, D): matches an object
    wrong: NDArray[
        np.bool_
    ]  # (IoUs, D): matches none; what matches an object of another size is neither
    objects: Floats  # (images,)


@dataclass(frozen=True)
class Matches:
    """What pycocotools matched, before anything is averaged."""

    groups: Mapping[tuple[str, str], Group]  # by class and size
    images: int


def matches(
    truth: COCO, detections: Sequence[Detection], image_ids: Sequence[int] | None = None
) -> Matches:
    """image_ids: the images that count; all, if none are named."""
    done = match(truth, detections, image_ids)
    ids = done.params.imgIds
    parts = iter(done.evalImgs)  # class by class, size by size, image by image
    groups = {}
    for category in done.params.catIds:
        for size in SIZES:
            per_image = [next(parts) for _ in ids]
            group = _group(per_image)
            if group is not None:
                groups[truth.cats[category]["name"], size] = group
    return Matches(groups, len(ids))


def common(found: Matches, least: int) -> Matches:
    """Without the classes of which a range of sizes has fewer objects, in that range: one object would be a third."""
    return Matches(
        {key: g for key, g in found.groups.items() if g.objects.sum() >= least}, found.images
    )


def _group(per_image: Sequence[Mapping | None]) -> Group | None:
    objects = np.array(
        [0.0 if e is None else np.sum(1 - np.asarray(e["gtIgnore"])) for e in per_image]
    )
    if not objects.any():
        return None
    present = [(i, e) for i, e in enumerate(per_image) if e is not None]
    scores = np.concatenate([e["dtScores"] for _, e in present])
    order = np.argsort(-scores, kind="mergesort")  # as pycocotools breaks ties
    image = np.concatenate([np.full(len(e["dtScores"]), i) for i, e in present])[order]
    matched = np.concatenate([e["dtMatches"] for _, e in present], axis=1)[:, order] > 0
    ignored = np.concatenate([e["dtIgnore"] for _, e in present], axis=1)[:, order].astype(bool)
    right, wrong = matched & ~ignored, ~matched & ~ignored
    ranks = np.flatnonzero(right.any(axis=0))
    last = ranks[-1] + 1 if len(ranks) else 0  # what is less sure changes nothing
    told = (right | wrong)[:, :last].any(axis=0)
    return Group(image[:last][told], right[:, :last][:, told], wrong[:, :last][:, told], objects)


# ---- from matches to figures


def figures(found: Matches, weights: Floats, apart: Sequence[str] = ()) -> dict[str, Floats]:
    """AP, AP50 and AR, each also by size where COCO has it, and AP by size of the classes named in `apart`.

    weights: (resamples, images), how often each image counts. Returns percent, (resamples,), by name: ap_small, ...
    """
    result = {}
    for size in SIZES:
        both = {name: _of_group(g, weights) for (name, s), g in found.groups.items() if s == size}
        precision = _stacked(
            [p for p, _ in both.values()], len(weights)
        )  # classes, IoUs, resamples
        recall = _stacked([r for _, r in both.values()], len(weights))
        result[f"ap{size}"], result[f"ar{size}"] = _mean(precision), _mean(recall)
        if size == "":
            result["ap50"] = _mean(precision[:, :1])
        for name in apart:
            if name in both:
                result[f"ap{size} {name}"] = _mean(both[name][0][None])
    return result


@dataclass(frozen=True)
class Evaluated:
    """A network on a set of images."""

    figures: Figures  # of every resample, see `resamples`
    objects: Mapping[str, int]  # that they rest on, see `objects`
    images: int


def evaluated(found: Matches, apart: Sequence[str] = ()) -> Evaluated:
    """apart: classes, as in `figures`."""
    return Evaluated(
        figures(found, resamples(found.images), apart), objects(found, apart), found.images
    )


def objects(found: Matches, apart: Sequence[str] = ()) -> dict[str, int]:
    """How many objects a figure rests on, by what follows "ap" or "ar" in its name; apart: as in `figures`."""
    counts = {size: 0 for size in SIZES} | {f"{size} {name}": 0 for size in SIZES for name in apart}
    for (name, size), group in found.groups.items():
        counts[size] += int(group.objects.sum())
        if name in apart:
            counts[f"{size} {name}"] += int(group.objects.sum())
    return counts


def _of_group(group: Group, weights: Floats) -> tuple[Floats, Floats]:
    """Average precision and recall, each (IoUs, resamples); nan where the resample has no objects."""
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
        precision[k, some] = [
            _at_recalls(r, e) for r, e in zip(reached[some], envelope[some], strict=True)
        ]
        recall[k, some] = reached[some, -1] if len(hits) else 0.0
    return precision, recall


def _at_recalls(reached: Floats, envelope: Floats) -> float:
    """The mean precision over RECALLS, nothing where a recall is not reached."""
    places = np.searchsorted(reached, RECALLS, side="left")
    return float(np.sum(envelope[places[places < len(envelope)]]) / len(RECALLS))


def _stacked(parts: Sequence[Floats], resamples: int) -> Floats:
    return np.stack(parts) if parts else np.full((1, 1, resamples), np.nan)


def _mean(values: Floats) -> Floats:
    """Over classes and IoUs; classes without objects in a resample do not count in it. values: (K, T, resamples)."""
    counted = ~np.isnan(values)
    count = counted.sum(axis=(0, 1))
    total = np.where(counted, values, 0).sum(axis=(0, 1))
    return np.where(count > 0, 100 * total / np.maximum(count, 1), np.nan)


# ---- intervals


def resamples(images: int, count: int = RESAMPLES, seed: int = 0) -> Floats:
    """(1 + count, images): first every image once, then as many images drawn with replacement."""
    drawn = np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=count)
    return np.concatenate([np.ones((1, images)), drawn.astype(float)])


def interval(values: Floats) -> list[float]:
    """The figure itself, and the ends of its 95 % interval: 1.96 standard deviations of the resamples to either side.

    Not their quantiles: an average over classes is on average larger in a resample than in the whole set, since
    classes that are seldom drop out and objects drawn twice are found twice.

    values: as `resamples` orders them.
    """
    value, drawn = float(values[0]), values[1:][~np.isnan(values[1:])]
    half = WITHIN * float(drawn.std(ddof=1)) if len(drawn) > 1 else np.nan
    return [value, value - half, value + half]


def intervals(values: Figures) -> dict[str, list[float]]:
    return {name: interval(v) for name, v in values.items()}


def differences(values: Figures, base: Figures) -> dict[str, list[float]]:
    """Of two networks on the same resamples: what the images have in common cancels."""
    return {name: interval(v - base[name]) for name, v in values.items() if name in base}
