"""Where prior boxes are and how large they are, by hand."""

from math import sqrt

import pytest
import torch

from examples.ssd import geometry, model, priors
from examples.ssd.configurations import ROWS
from examples.ssd.errors import RequestError
from examples.ssd.priors import Cells
from tests.ssd.conftest import built


def test_the_boxes_of_a_cell_by_hand() -> None:
    root = sqrt(2)
    assert torch.allclose(
        priors.shapes(4, 40, 90),
        torch.tensor([(40, 40), (60, 60), (40 * root, 40 / root), (40 / root, 40 * root)]),
    )
    six = priors.shapes(6, 40, 90)
    assert torch.allclose(
        six[4:], torch.tensor([(40 * sqrt(3), 40 / sqrt(3)), (40 / sqrt(3), 40 * sqrt(3))])
    )
    with pytest.raises(RequestError, match="5 boxes"):
        priors.shapes(5, 40, 90)


def test_cells_come_row_by_row() -> None:
    cells = Cells((2, 3), step=(10, 20), first=(1, 2))
    assert cells.centres().tolist() == [[2, 1], [22, 1], [42, 1], [2, 11], [22, 11], [42, 11]]


def test_the_first_priors_of_the_base_network() -> None:
    first = built("SSDMnetv1").priors[:2] * 300
    between = sqrt(45 * 90)
    assert torch.allclose(
        first, torch.tensor([(8.0, 8, 45, 45), (8, 8, between, between)]), atol=1e-4
    )


@pytest.mark.parametrize("name", ["SSDMnetv1", "SSDMnetv1-S1L0", "SSD-VGG16-S1L2-DualPath"])
def test_clipped_priors_are_centred_inside(name: str) -> None:
    centres = built(name).priors[:, :2]
    assert centres.min() > 0 and centres.max() <= 1


def test_the_papers_steps_leave_the_image_and_true_ones_do_not() -> None:
    base = ROWS["SSDMnetv1"]
    # Ten cells at step 32: the last row and the last column are centred at 304 of 300 pixels; six boxes each.
    assert (
        priors.outside(model.unclipped_priors(built("SSDMnetv1"), base), 300) == (10 + 10 - 1) * 6
    )
    for name in (
        *("SSDMnetv1", "SSDMnetv1-S1L0", "SSD-VGG16", "SSDMnetv1-S1L0-DualPath19-10-S"),
        *("RFB-Net-300", "RFB-MobileNet-300", "PeleeNet"),
    ):
        true = model.unclipped_priors(built(name), ROWS[name].with_true_anchors)
        assert priors.outside(true, ROWS[name].size) == 0


def true_cells(name: str) -> list[Cells]:
    return model.true_cells(built(name), model.map_sizes(built(name)))


@pytest.mark.parametrize(
    ("name", "alike"),
    [("RFB-Net-300", "SSD-VGG16"), ("RFB-MobileNet-300", "SSDMnetv1"), ("PeleeNet", None)],
)
def test_other_necks_are_followed_too(name: str, alike: str | None) -> None:
    """RFB-Net's blocks keep the places of the extras that they stand for; Pelee's by hand."""
    if alike is not None:
        assert true_cells(name) == true_cells(alike)
        return
    first, again, second, *extras = true_cells(name)
    assert first == again and first.step == (16, 16) and second.step == (32, 32)
    steps, offsets = [c.step[0] for c in extras], [c.first[0] - second.first[0] for c in extras]
    assert steps == [64, 64, 64] and offsets == [
        0,
        64,
        128,
    ]  # padded with stride 2, then twice not padded


def test_true_cells_follow_the_convolutions() -> None:
    cells = geometry.through(
        Cells((19, 19), (16, 16), (0.5, 0.5)), (10, 10), [torch.nn.Conv2d(1, 1, 3, 2, 1)]
    )
    assert cells == Cells((10, 10), (32, 32), (0.5, 0.5))
    cells = geometry.through(
        cells, (8, 8), [torch.nn.Conv2d(1, 1, 3)]
    )  # without padding the first cell moves in
    assert cells == Cells((8, 8), (32, 32), (32.5, 32.5))


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("SSDMnetv1", (16, 32, 64, 128, 256, 512)),
        ("SSDMnetv1-S1L0", (8, 16, 32, 64, 128, 256)),
        ("SSDMnetv1-S2L4-6", (4, 8, 16, 32, 64, 128)),
    ],
)
def test_the_rule_for_other_backbones_gives_the_papers_sizes(
    name: str, steps: tuple[float, ...]
) -> None:
    assert geometry.sizes_for(steps, 300) == ROWS[name].sizes
