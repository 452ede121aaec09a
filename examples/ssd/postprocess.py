"""From the network's outputs to detections: threshold, per-class non-maximum suppression, limits."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from examples.ssd.boxes import decode


@dataclass(frozen=True)
class Limits:
    """Which boxes are kept."""

    score: float = 0.01  # least
    iou: float = 0.6  # of two boxes of a class: the lower one is dropped above this
    candidates: int = 400  # of a class in an image, by score, before suppression
    per_class: int = 100  # of a class in an image
    per_image: int | None = 100  # None: as many as there are


@dataclass(frozen=True)
class Detections:
    """Of one image, the surest first."""

    boxes: Tensor  # (K, 4): corners as shares of the image
    scores: Tensor  # (K,)
    labels: Tensor  # (K,): 1..


PAPER = Limits()


def detections(
    offsets: Tensor, scores: Tensor, priors: Tensor, limits: Limits = PAPER
) -> list[Detections]:
    """offsets: (N, P, 4); scores: (N, P, C - 1), the background left out; priors: (P, 4) centre and size.

    Returns one for each image.
    """
    boxes = decode(offsets.float(), priors).clamp(0, 1)
    return [_of_image(b, s, limits) for b, s in zip(boxes, scores, strict=True)]


def _of_image(boxes: Tensor, scores: Tensor, limits: Limits) -> Detections:
    """boxes: (P, 4); scores: (P, C - 1), the background left out."""
    prior, label = candidates(boxes, scores, limits).nonzero(as_tuple=True)
    found, sure = boxes[prior], scores[prior, label]
    keep = batched_nms(found, sure, label, limits.iou)
    if limits.per_image is None or limits.per_image > limits.per_class:
        keep = keep[rank_in_class(label[keep]) < limits.per_class]
    keep = keep[: limits.per_image]
    return Detections(found[keep], sure[keep], label[keep] + 1)


def candidates(boxes: Tensor, scores: Tensor, limits: Limits) -> Tensor:
    """(P, C - 1), true for the boxes of each class that suppression looks at.

    boxes: (P, 4) corners, cut at the image: one that lies outside has no area, and takes no place.
    """
    inside = (boxes[:, 2:] > boxes[:, :2]).all(dim=1, keepdim=True)
    chosen = (scores > limits.score) & inside
    crowded = chosen.sum(dim=0) > limits.candidates
    if crowded.any():  # trained networks are mostly too sure for this
        best = (
            scores[:, crowded]
            .masked_fill(~chosen[:, crowded], -1)
            .topk(limits.candidates, dim=0)
            .indices
        )
        chosen[:, crowded] = torch.zeros_like(chosen[:, crowded]).scatter_(0, best, True)
    return chosen


def rank_in_class(labels: Tensor) -> Tensor:
    """How many of the entries before have the same label. labels: (K,), in 0..; returns (K,)."""
    order = labels.argsort(stable=True)
    ordered = labels[order]
    starts = torch.searchsorted(ordered, ordered)
    return torch.empty_like(order).scatter_(
        0, order, torch.arange(len(labels), device=labels.device) - starts
    )
