"""From outputs to detections."""

from dataclasses import replace

import torch

from examples.ssd.boxes import encode
from examples.ssd.postprocess import PAPER, detections, rank_in_class

PRIORS = torch.tensor([(0.3, 0.3, 0.2, 0.2), (0.3, 0.31, 0.2, 0.2), (0.7, 0.7, 0.2, 0.2)])


def test_the_lower_of_two_overlapping_boxes_of_a_class_goes() -> None:
    found = detections(
        torch.zeros(1, 3, 4), torch.tensor([[(0.8, 0.1), (0.7, 0.1), (0.005, 0.7)]]), PRIORS
    )[0]
    # Class 1: the second box is covered by the first, the third's score is too low. Class 2: the same two overlap.
    assert found.labels.tolist() == [1, 2, 2]
    torch.testing.assert_close(found.scores, torch.tensor([0.8, 0.7, 0.1]))
    torch.testing.assert_close(found.boxes[0], torch.tensor([0.2, 0.2, 0.4, 0.4]))
    torch.testing.assert_close(found.boxes[1], torch.tensor([0.6, 0.6, 0.8, 0.8]))


def test_boxes_end_at_the_image() -> None:
    outside = encode(torch.tensor([(-0.2, 0.1, 0.4, 1.3)]), PRIORS[:1])[None]
    found = detections(outside, torch.tensor([[(0.9,)]]), PRIORS[:1])[0]
    torch.testing.assert_close(found.boxes, torch.tensor([(0.0, 0.1, 0.4, 1.0)]))


def test_limits_keep_the_surest() -> None:
    torch.manual_seed(0)
    centres = torch.cartesian_prod(torch.arange(20), torch.arange(20)) / 20 + 0.02
    priors = torch.cat([centres, torch.full((400, 2), 0.01)], dim=1)  # none overlap
    scores = torch.randn(400, 4).softmax(dim=1)[:, 1:]
    found = detections(
        torch.zeros(1, 400, 4), scores[None], priors, replace(PAPER, per_class=30, per_image=None)
    )[0]
    assert torch.bincount(found.labels).tolist() == [0, 30, 30, 30]
    for label in (1, 2, 3):
        best = scores[:, label - 1].topk(30).values
        torch.testing.assert_close(found.scores[found.labels == label], best)
    few = detections(torch.zeros(1, 400, 4), scores[None], priors, replace(PAPER, per_image=50))[0]
    torch.testing.assert_close(few.scores, scores.flatten().topk(50).values)
    first = detections(
        torch.zeros(1, 400, 4), scores[None], priors, replace(PAPER, candidates=10, per_image=None)
    )[0]
    assert torch.bincount(first.labels).tolist() == [0, 10, 10, 10]


def test_equal_scores_do_not_empty_a_crowded_class() -> None:
    centres = torch.cartesian_prod(torch.arange(5), torch.arange(5)) / 5 + 0.1
    priors = torch.cat([centres, torch.full((25, 2), 0.1)], dim=1)  # none overlap
    scores = torch.tensor([0.7, 0.2]).expand(1, 25, 2).clone()
    scores[0, 3, 1] = 0.9
    found = detections(
        torch.zeros(1, 25, 4), scores, priors, replace(PAPER, candidates=10, per_image=None)
    )[0]
    assert torch.bincount(found.labels).tolist() == [0, 10, 10]
    torch.testing.assert_close(
        found.boxes[0, :2], centres[3] - 0.05
    )  # the one that is surer is among them


def test_boxes_outside_the_image_take_no_place() -> None:
    outside = encode(
        torch.tensor([(-0.4, 0.2, -0.1, 0.4), (0.2, 1.0, 0.4, 1.2), (0.6, 0.6, 0.8, 0.8)]), PRIORS
    )[None]
    scores = torch.tensor([[(0.9,), (0.8,), (0.5,)]])
    for limits in (PAPER, replace(PAPER, candidates=1), replace(PAPER, per_image=1)):
        found = detections(outside, scores, PRIORS, limits)[0]
        torch.testing.assert_close(found.boxes, torch.tensor([(0.6, 0.6, 0.8, 0.8)]))


def test_nothing_found_is_an_answer() -> None:
    found = detections(torch.zeros(2, 3, 4), torch.full((2, 3, 1), 0.001), PRIORS)
    assert [len(f.scores) for f in found] == [0, 0] and found[0].boxes.shape == (0, 4)


def test_rank_in_class() -> None:
    assert rank_in_class(torch.tensor([2, 0, 2, 1, 0, 2])).tolist() == [0, 0, 1, 0, 1, 2]
