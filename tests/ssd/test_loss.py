"""Matching and loss: by hand, and beside torchvision's."""

import pytest
import torch
from torch import Tensor
from torchvision.models.detection.ssd import SSD
from torchvision.ops import box_convert, box_iou

from examples.ssd.boxes import decode, encode
from examples.ssd.loss import hard_negatives, losses, match

# A row of four boxes side by side, each a quarter of the image wide and all of it high: centre and size.
QUARTERS = torch.tensor(
    [
        (0.125, 0.5, 0.25, 1.0),
        (0.375, 0.5, 0.25, 1.0),
        (0.625, 0.5, 0.25, 1.0),
        (0.875, 0.5, 0.25, 1.0),
    ]
)


def random_priors(count: int) -> Tensor:
    return torch.cat([torch.rand(count, 2), 0.05 + 0.4 * torch.rand(count, 2)], dim=1)


def random_boxes(count: int) -> Tensor:
    start, side = torch.rand(2, count, 2) * 0.5
    return torch.cat([start, start + side + 0.05], dim=1)


def test_matched_by_half_overlap_or_by_being_the_best() -> None:
    boxes = torch.tensor([(0.0, 0.0, 0.25, 0.9), (0.55, 0.0, 0.6, 0.2), (0.25, 0.0, 0.5, 1.0)])
    # Image 0: one object on the first quarter, a tiny one in the third, which is its best; image 1: one; 2: none.
    assert match(QUARTERS, boxes, [2, 1, 0]).tolist() == [
        [0, -1, 1, -1],
        [-1, 2, -1, -1],
        [-1, -1, -1, -1],
    ]


def test_hard_negatives_are_the_worst_three_for_each_positive() -> None:
    loss = torch.tensor([[9.0, 1, 5, 2, 8, 3, 7], [1, 2, 3, 4, 5, 6, 7]])
    positive = torch.tensor([[True, False, False, False, False, False, False], [False] * 7])
    expected = [[False, False, True, False, True, False, True], [False] * 7]
    assert hard_negatives(loss, positive).tolist() == expected


def test_offsets_by_hand_and_back() -> None:
    prior, box = torch.tensor([(0.5, 0.5, 0.2, 0.4)]), torch.tensor([(0.42, 0.3, 0.62, 0.7)])
    assert torch.allclose(
        encode(box, prior), torch.tensor([(1.0, 0, 0, 0)]), atol=1e-5
    )  # 0.02 = 0.1 * 0.2 to the right
    boxes, priors = random_boxes(50), random_priors(50)
    torch.testing.assert_close(decode(encode(boxes, priors), priors), boxes)


def test_loss_by_hand() -> None:
    """One object exactly on a prior, all logits zero: only log 2, for the positive and its three negatives."""
    box = box_convert(QUARTERS[1:2], "cxcywh", "xyxy")
    found = losses(
        torch.zeros(1, 4, 4), torch.zeros(1, 4, 2), QUARTERS, box, torch.tensor([1]), [1]
    )
    assert found.boxes == 0 and found.positives == 1
    torch.testing.assert_close(found.mean(), 4 * torch.tensor(2.0).log())


def test_a_batch_without_objects_costs_nothing() -> None:
    logits = torch.randn(2, 4, 3, requires_grad=True)
    found = losses(
        torch.zeros(2, 4, 4), logits, QUARTERS, torch.zeros(0, 4), torch.zeros(0).long(), [0, 0]
    )
    assert found.mean() == 0
    found.mean().backward()
    assert logits.grad is not None and not logits.grad.any()


@pytest.mark.parametrize("seed", range(3))
def test_equal_to_torchvisions_loss(seed: int) -> None:
    torch.manual_seed(seed)
    priors, counts, classes, size = random_priors(300), [3, 1, 6], 7, 100
    offsets, logits = torch.randn(3, 300, 4), torch.randn(3, 300, classes)
    boxes, labels = random_boxes(sum(counts)), torch.randint(1, classes, (sum(counts),))
    ours = losses(offsets, logits, priors, boxes, labels, counts)
    theirs = torchvision_loss(offsets, logits, priors, boxes, labels, counts, size)
    torch.testing.assert_close(ours.boxes / ours.positives, theirs["bbox_regression"])
    torch.testing.assert_close(ours.classes / ours.positives, theirs["classification"])


def torchvision_loss(offsets, logits, priors, boxes, labels, counts, size) -> dict[str, Tensor]:
    ssd = SSD(
        torch.nn.Identity(), _NoAnchors(), (size, size), logits.shape[2], head=torch.nn.Identity()
    )
    anchors = box_convert(priors, "cxcywh", "xyxy") * size
    targets = [
        {"boxes": b * size, "labels": k}
        for b, k in zip(boxes.split(counts), labels.split(counts), strict=True)
    ]
    matched = [ssd.proposal_matcher(box_iou(t["boxes"], anchors)) for t in targets]
    return ssd.compute_loss(
        targets,
        {"bbox_regression": offsets, "cls_logits": logits},
        [anchors] * len(counts),
        matched,
    )


class _NoAnchors(torch.nn.Module):
    pass
