"""The figures that the paper prints, from the networks as built."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.ssd import counting, model, tables
from examples.ssd.configurations import ROWS, find
from examples.ssd.model import Network
from examples.ssd.paper import PRINTED
from examples.ssd.programs import DetectionError
from tests.ssd.conftest import built

EXPLAINED = {"SSD-VGG16-S1L2", "PeleeNet"}
# Differences that the text states: a row, its base, compute ("GFLOPS") and parameters (millions).
DELTAS: tuple[tuple[str, str, float, float | None], ...] = (
    ("SSDMnetv1-S1L0-DualPath19-C", "SSDMnetv1-S1L0-Fmap1", 2.0, 2.6),
    ("SSDMnetv1-S1L0-DualPath19-10-C", "SSDMnetv1-S1L0-Fmap1", 2.48, 7.3),
    ("SSDMnetv1-S2L4-6", "SSDMnetv1", 30.9, None),
    ("SSDMnetv1-S1L0", "SSDMnetv1-S1L6", 1.14, None),
    ("SSDMnetv1-Size512", "SSDMnetv1", 4.45, None),
)


def compute(name: str) -> float:
    return round(counting.compute(Network(built(name)), ROWS[name].size) / 1e9, 2)


def parameters(name: str, classes: int = 81) -> float:
    ssd = built(name) if classes == 81 else model.build(find(name), classes)
    return tables.as_printed(counting.parameters(ssd) / 1e6)


@pytest.mark.parametrize("name", sorted({*PRINTED} - EXPLAINED))
def test_printed_figures_come_out(name: str) -> None:
    params, gflops = PRINTED[name]
    assert parameters(name) == params
    assert gflops is None or tables.as_printed(compute(name)) == gflops


def test_the_explained_figures() -> None:
    """VGG S1L2's compute is cut off, not rounded; Pelee's parameters are for 21 classes."""
    assert compute("SSD-VGG16-S1L2") == 128.97
    assert PRINTED["SSD-VGG16-S1L2"] == (parameters("SSD-VGG16-S1L2"), 128.9)
    found = (parameters("PeleeNet", classes=21), tables.as_printed(compute("PeleeNet")))
    assert found == PRINTED["PeleeNet"]


@pytest.mark.parametrize("delta", DELTAS, ids=lambda d: d[0])
def test_the_texts_differences_come_out(delta) -> None:
    row, base, stated, params = delta
    digits = len(str(stated).partition(".")[2])
    assert round(compute(row) - compute(base), digits) == stated
    if params is not None:
        sizes = [round(counting.parameters(built(n)) / 1e6, 2) for n in (row, base)]
        assert round(sizes[0] - sizes[1], 1) == params


MAPS = {
    "SSDMnetv1": (19, 10, 5, 3, 2, 1),
    "SSDMnetv1-Size512": (32, 16, 8, 4, 2, 1),
    "SSDMnetv1-Early": (38, 19, 10, 5, 3, 2, 1),
    "SSDMnetv1-S1L0": (38, 19, 10, 5, 3, 2),
    "SSDMnetv1-S1L0-Fmap1": (38, 19, 10, 5, 3, 1),
    "SSDMnetv1-S1L0-DualPath19-10-C": (38, 19, 10, 5, 3, 1),
    "SSDMnetv1-S1L0-DualPath19-10-S": (38, 19, 5, 3, 2, 1),
    "SSDMnetv1-S2L4-6": (75, 38, 19, 10, 5, 3),
    "SSD-VGG16": (38, 19, 10, 5, 3, 1),
    "SSD-VGG16-S1L2": (75, 37, 19, 10, 5, 3),
    "SSD-VGG16-S1L2-DualPath": (75, 37, 10, 5, 3, 1),
    "SSD-VGG16-S1L2-Restored": (38, 19, 10, 5, 3, 1),
    "SSDMnetv1-Size600": (38, 19, 10, 5, 3, 2),
    "RFB-Net-300": (38, 19, 10, 5, 3, 1),
    "PeleeNet": (19, 19, 10, 5, 3, 1),
}


@pytest.mark.parametrize("name", MAPS)
def test_maps_and_numbers_of_boxes(name: str) -> None:
    assert [level.grid for level in model.maps(built(name))] == [(s, s) for s in MAPS[name]]
    expected = sum(s * s * count for s, count in zip(MAPS[name], ROWS[name].boxes, strict=True))
    assert built(name).anchor_generator.boxes.shape == (expected, 4)


def test_a_larger_input_that_costs_what_s1l0_costs_and_paths_that_add_no_parameter() -> None:
    assert compute("SSDMnetv1-Size600") == compute("SSDMnetv1-S1L0")
    assert parameters("SSDMnetv1-S1L0-DualPath19-10-S") == parameters("SSDMnetv1")


def test_the_program_prints_the_papers_figures_beside(capsys: pytest.CaptureFixture[str]) -> None:
    tables.main(["--rows", "SSDMnetv1", "SSDMnetv1-Size512", "PeleeNet"])
    text = capsys.readouterr().out
    assert "2.54    2.5" in text and " 114 " in text and " 19 10 5 3 2 1" in text
    assert [line.split()[5] for line in text.splitlines() if line.startswith("Pelee")] == ["no"]
    with pytest.raises(DetectionError, match="no configuration 'S1L0'. There are: SSDMnetv1, "):
        find("S1L0")


class Odd(nn.Module):
    """A convolution that runs twice, and what the rule does not count."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(F.normalize(F.relu(self.conv(self.conv(x)))) + x[..., :1], 2)


@pytest.mark.parametrize(
    ("net", "count"),
    [
        (nn.Conv2d(3, 5, 3, padding=1, bias=False), 5 * 36 * 27),
        (nn.Conv2d(3, 5, 3, stride=2, padding=1), 5 * 9 * (27 + 1)),
        (nn.Conv2d(3, 3, 3, padding=1, groups=3, bias=False), 3 * 36 * 9),
        (nn.BatchNorm2d(3), 2 * 3 * 36),
        (nn.ReLU6(inplace=True), 3 * 36),
        (nn.MaxPool2d(2), 3 * 36),
        (Odd(), 2 * 9 * 36),
    ],
)
def test_the_rule_on_modules_that_can_be_counted_by_hand(net: nn.Module, count: int) -> None:
    assert counting.compute(net, 6) == count
    assert net.training and not net._forward_pre_hooks
    assert all(p.device == torch.device("cpu") for p in net.parameters())
