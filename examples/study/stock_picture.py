"""One photograph with the true objects that one detector finds and another does not."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.patheffects
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from pycocotools.coco import COCO  # type: ignore[import-untyped]
from torchvision.ops import box_convert, box_iou

Detection = Mapping[str, Any]  # in COCO's results format

# A detection below is not shown and finds nothing; about half of the detections above are right.
SHOWN_SCORE = 0.5
_FOUND_OVERLAP = 0.5  # IoU with the annotated box
_SHAREABLE = frozenset(
    {4, 5, 7, 8}
)  # COCO's licence numbers: CC BY, CC BY-SA, no known restrictions, US government
_BOTH, _GAINED, _UNMATCHED = "#3ddc84", "#ff9f1c", "#d0d0d0"
_GROUND = 40  # a dark grey, where there is no photograph


@dataclass(frozen=True)
class Found:
    """What the shown detections of one photograph find."""

    objects: Mapping[int, Detection]  # by the id of the annotation that it matches
    unmatched: tuple[Detection, ...]  # those that match none


@dataclass(frozen=True)
class Comparison:
    """Two detectors on one photograph."""

    image: Mapping[str, Any]  # COCO's entry
    base: Found
    other: Found

    @property
    def gained(self) -> frozenset[int]:
        """The annotations that only the other detector finds."""
        return frozenset(self.other.objects) - frozenset(self.base.objects)


def choose(truth: COCO, base: Sequence[Detection], other: Sequence[Detection]) -> Comparison | None:
    """The shareable photograph where `other` finds most that `base` does not; of equals, that with fewest unmatched.

    Shareable: the licence allows a picture made of it to be shown; None if there is none. Only detections of
    `SHOWN_SCORE` or more count, and only gains: what `base` finds and `other` does not is not held against it.
    """
    base_by_image, other_by_image = _by_image(base), _by_image(other)
    shareable = [i for i in sorted(other_by_image) if truth.imgs[i].get("license") in _SHAREABLE]
    comparisons = [
        Comparison(
            truth.imgs[i],
            _match(truth, i, base_by_image.get(i, [])),
            _match(truth, i, other_by_image[i]),
        )
        for i in shareable
    ]
    return max(comparisons, key=lambda c: (len(c.gained), -len(c.other.unmatched)), default=None)


def draw(
    comparison: Comparison, truth: COCO, folder: Path | None, titles: tuple[str, str], out: Path
) -> None:
    """Both detectors' shown boxes, side by side; what only the second one finds stands out.

    folder: of the photographs; None draws the annotated boxes in the photograph's place. titles: of the two.
    """
    image = comparison.image
    figure = Figure(
        figsize=(14, 14 * image["height"] / image["width"] / 2 + 0.8), layout="constrained"
    )
    for axes, found, title in zip(
        figure.subplots(1, 2), (comparison.base, comparison.other), titles, strict=True
    ):
        _draw_ground(axes, image, truth, folder)
        _draw_found(axes, found, comparison.gained, truth)
        axes.set_title(f"{title}: {len(found.objects)} found, {len(found.unmatched)} unmatched")
        axes.set(xticks=(), yticks=())
    figure.supxlabel(
        f"Orange: annotated objects that only the right one finds ({len(comparison.gained)}). Green: others that are "
        "found. Dashed: boxes that match no annotation.\n"
        f"Boxes that score {SHOWN_SCORE:g} or more; found: the right class at IoU {_FOUND_OVERLAP:g} or more. "
        f"{_credit(image, truth)}",
        fontsize="small",
    )
    figure.savefig(out, dpi=110)


def _by_image(detections: Sequence[Detection]) -> dict[int, list[Detection]]:
    """The shown detections of each image, best first."""
    by_image: dict[int, list[Detection]] = {d["image_id"]: [] for d in detections}
    for d in sorted(detections, key=lambda d: -d["score"]):
        if d["score"] >= SHOWN_SCORE:
            by_image[d["image_id"]].append(d)
    return by_image


def _match(truth: COCO, image_id: int, detections: Sequence[Detection]) -> Found:
    """Give each detection, best first, the free object of its class that it overlaps most."""
    objects = [a for a in truth.imgToAnns[image_id] if not a["iscrowd"]]
    found: dict[int, Detection] = {}
    unmatched: list[Detection] = []
    for detection in detections:
        free = [
            a
            for a in objects
            if a["category_id"] == detection["category_id"] and a["id"] not in found
        ]
        overlaps = box_iou(_corners([detection]), _corners(free))[0].tolist()
        overlap, place = max(((v, i) for i, v in enumerate(overlaps)), default=(0.0, -1))
        if overlap >= _FOUND_OVERLAP:
            found[free[place]["id"]] = detection
        else:
            unmatched.append(detection)
    return Found(found, tuple(unmatched))


def _corners(entries: Sequence[Mapping[str, Any]]) -> torch.Tensor:
    """COCO's boxes to (len, 4): left, top, right, bottom."""
    return box_convert(
        torch.tensor([e["bbox"] for e in entries]).reshape(-1, 4).float(), "xywh", "xyxy"
    )


def _draw_ground(axes: Axes, image: Mapping[str, Any], truth: COCO, folder: Path | None) -> None:
    if folder is not None:
        with Image.open(folder / image["file_name"]) as photograph:
            axes.imshow(np.asarray(photograph.convert("RGB")))
        return
    axes.imshow(np.full((image["height"], image["width"], 3), _GROUND, dtype=np.uint8))
    for annotation in truth.imgToAnns[image["id"]]:
        left, top, width, height = annotation["bbox"]
        axes.add_patch(Rectangle((left, top), width, height, fc="white", alpha=0.15, ec="none"))


def _draw_found(axes: Axes, found: Found, gained: frozenset[int], truth: COCO) -> None:
    for detection in found.unmatched:
        _draw_box(axes, detection, _UNMATCHED, width=1.0, style="--")
    for annotation, detection in found.objects.items():
        colour, width = (_GAINED, 2.5) if annotation in gained else (_BOTH, 1.4)
        _draw_box(axes, detection, colour, width)
        left, top, *_ = detection["bbox"]
        label = f"{truth.cats[detection['category_id']]['name']} {detection['score']:.2f}"
        text = axes.text(left, top - 2, label, color=colour, fontsize=8, clip_on=True)
        text.set_path_effects([matplotlib.patheffects.withStroke(linewidth=2, foreground="black")])


def _draw_box(
    axes: Axes, detection: Detection, colour: str, width: float, style: str = "-"
) -> None:
    left, top, box_width, box_height = detection["bbox"]
    axes.add_patch(
        Rectangle((left, top), box_width, box_height, fill=False, ec=colour, lw=width, ls=style)
    )


def _credit(image: Mapping[str, Any], truth: COCO) -> str:
    licences = {entry["id"]: entry["name"] for entry in truth.dataset.get("licenses", [])}
    return f"Photograph: {image.get('flickr_url', image['file_name'])} ({licences.get(image['license'], 'licence ?')})"
