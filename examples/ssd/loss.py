"""SSD's loss: priors matched to objects, smooth L1 on the offsets, cross-entropy with hard negatives."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection._utils import SSDMatcher
from torchvision.ops import box_convert, box_iou

from examples.ssd.boxes import encode

MATCH_IOU = 0.5
NEGATIVES = 3  # per positive, in each image
MATCHER = SSDMatcher(MATCH_IOU)


@dataclass(frozen=True)
class Losses:
    """Sums over a batch, to be divided by the positives of all processes."""

    boxes: Tensor  # smooth L1
    classes: Tensor  # cross-entropy
    positives: Tensor  # matched priors

    def mean(self) -> Tensor:
        """(smooth L1 + cross-entropy) / positives."""
        return (self.boxes + self.classes) / self.positives.clamp(min=1)


def match(priors: Tensor, boxes: Tensor, counts: Sequence[int]) -> Tensor:
    """Which object each prior of each image belongs to: those it overlaps by half, and each object's best prior.

    priors: (P, 4) centre and size; boxes: (M, 4) corners, those of image n are `counts[n]` in a row; all as shares
    of the image. Returns (N, P): rows of `boxes`, -1 for background.
    """
    background = torch.full((len(priors),), -1, device=priors.device)
    overlaps = box_iou(boxes, box_convert(priors, "cxcywh", "xyxy")).split(list(counts))
    starts = torch.tensor([0, *counts]).cumsum(0).tolist()
    return torch.stack(
        [
            _shifted(MATCHER(overlap), start) if len(overlap) else background
            for overlap, start in zip(overlaps, starts[:-1], strict=True)
        ]
    )


def _shifted(rows: Tensor, start: int) -> Tensor:
    """From rows of one image's objects to rows of all objects; background, which is negative, stays."""
    return torch.where(rows >= 0, rows + start, -1)


def hard_negatives(losses: Tensor, positive: Tensor) -> Tensor:
    """The background priors with the largest losses, NEGATIVES for each positive prior of the image.

    losses: (N, P); positive: (N, P). Returns (N, P), true for those.
    """
    wanted = (NEGATIVES * positive.sum(dim=1, keepdim=True)).clamp(max=losses.shape[1])
    # The few worst are found faster than all are sorted; each row takes its share of them.
    order = losses.masked_fill(positive, -1).topk(int(wanted.max()), dim=1).indices
    first = torch.arange(order.shape[1], device=losses.device) < wanted
    return torch.zeros_like(positive).scatter(1, order, first) & ~positive


def losses(
    offsets: Tensor,
    logits: Tensor,
    priors: Tensor,
    boxes: Tensor,
    labels: Tensor,
    counts: Sequence[int],
) -> Losses:
    """offsets: (N, P, 4); logits: (N, P, C); priors: (P, 4) centre and size; boxes: (M, 4) corners; labels: (M,).

    The objects of image n are `counts[n]` rows of boxes and labels in a row; coordinates are shares of the image.
    """
    offsets, logits = offsets.float(), logits.float()
    matched = match(priors, boxes, counts)
    positive = matched >= 0
    rows = matched[positive]
    targets = torch.zeros_like(matched).masked_scatter(positive, labels[rows])
    by_prior = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(
        targets
    )
    chosen = positive | hard_negatives(by_prior.detach(), positive)
    wanted = encode(boxes[rows], priors.expand(len(matched), -1, -1)[positive])
    return Losses(
        boxes=F.smooth_l1_loss(offsets[positive], wanted, reduction="sum"),
        classes=(by_prior * chosen).sum(),
        positives=positive.sum(),
    )
