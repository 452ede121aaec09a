"""The networks: what predictors read, where boxes stand, and any backbone."""

from dataclasses import replace
from math import sqrt

import pytest
import torch
from torch import nn

from examples.ssd import backbones, model
from examples.ssd.configurations import ROWS
from examples.ssd.neck import L2Norm
from examples.ssd.programs import DetectionError
from tests.ssd.conftest import built


def awake(net: nn.Module) -> nn.Module:
    """With norms that do something: zero means and unit variances would hide a wrong path."""
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.8, 1.2)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
            torch.nn.init.normal_(module.running_mean, std=0.1)
    return net


def test_the_split_networks_predictors_3_to_6_see_what_the_base_networks_see() -> None:
    base = awake(model.build(ROWS["SSDMnetv1"]).eval())
    split = model.build(ROWS["SSDMnetv1-S1L0-DualPath19-10-S"]).eval()
    split.load_state_dict(base.state_dict())
    image = torch.randn(1, 3, 300, 300)
    with torch.inference_mode():
        ours, theirs = ([*net.backbone(image).values()] for net in (split, base))
    assert float(theirs[2].std()) > 0
    assert all(map(torch.equal, ours[2:], theirs[2:]))
    assert [m.shape[-1] for m in ours[:2]] == [38, 19]


def test_concatenation_widens_what_the_paper_widens() -> None:
    rows = [f"SSDMnetv1-S1L0-DualPath19-{name}" for name in ("C", "10-C")]
    widths = [built(row).backbone.neck.out_channels for row in rows]
    assert widths[0] == (512, 1536, 512, 256, 256, 128)
    assert widths[1] == (512, 1536, 1536, 256, 256, 128)


def test_l2_norm_gives_every_cell_its_learned_length() -> None:
    lengths = L2Norm(8)(torch.randn(2, 8, 3, 3)).norm(dim=1)
    assert torch.allclose(lengths, torch.full_like(lengths, 20))


# ---- boxes


def test_the_first_boxes_of_the_base_network_by_hand() -> None:
    boxes = built("SSDMnetv1").anchor_generator.boxes * 300
    between, wide, tall = sqrt(45 * 90), 45 * sqrt(2), 45 / sqrt(2)
    sides = [(45, 45), (between, between), (wide, tall), (tall, wide)]
    torch.testing.assert_close(boxes[:4], torch.tensor([(8.0, 8.0, *s) for s in sides]))
    assert boxes[6, :2].tolist() == pytest.approx([24, 8])  # the cell to the right is next


def test_the_papers_steps_leave_the_image_and_true_ones_do_not() -> None:
    for name in ("SSDMnetv1", "SSD-VGG16", "SSDMnetv1-S1L0-DualPath19-10-S", "PeleeNet"):
        row, maps = replace(ROWS[name], steps=None), model.maps(built(name))
        centres = model.DefaultBoxes(row, maps).boxes[:, :2]
        assert centres.min() > 0 and centres.max() <= 1
    printed = built("SSDMnetv1").anchor_generator
    assert printed.boxes[:, :2].max() > 1
    assert printed._grid_default_boxes([], [300, 300]).max() == 1


def looks(ssd: nn.Module) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    return [(level.looks.step, level.looks.offset) for level in model.maps(ssd)]


def test_true_places_follow_the_extras_and_other_necks() -> None:
    """RFB-Net's blocks keep the places of the extras that they stand for; Pelee's by hand."""
    for name, alike in (("RFB-Net-300", "SSD-VGG16"), ("RFB-MobileNet-300", "SSDMnetv1")):
        assert looks(built(name)) == looks(built(alike))
    first, again, second, *extras = looks(built("PeleeNet"))
    assert first == again and first[0] == (16, 16) and second[0] == (32, 32)
    assert [step for step, _ in extras] == [(64, 64)] * 3
    # padded with stride 2, then twice not padded
    assert [offset[0] - second[1][0] for _, offset in extras] == [0, 64, 128]


@pytest.mark.parametrize("name", ["SSDMnetv1", "SSDMnetv1-S1L0", "SSDMnetv1-S2L4-6"])
def test_the_rule_for_other_backbones_gives_the_papers_sizes(name: str) -> None:
    assert tuple(model.sizes_for(model.maps(built(name)), 300)) == ROWS[name].sizes


# ---- any backbone


@pytest.mark.parametrize(
    ("backbone", "surgery", "dual"),
    [
        ("test_resnet", None, False),
        ("test_resnet", "S1L0", True),
        ("test_efficientnet", "S1L0", False),
        ("shufflenet_v2_x0_5", "S1L0", False),
        ("swin_s3_tiny_224", None, False),  # its channels are last
    ],
)
def test_any_backbone_trains_and_detects(backbone: str, surgery: str | None, dual: bool) -> None:
    torch.manual_seed(0)
    ssd = model.build(backbones.configuration_for(backbone, surgery, 96, dual=dual), 4)
    images = [torch.rand(3, 96, 96), torch.rand(3, 70, 120)]
    target = {"boxes": torch.tensor([[10.0, 10, 60, 50]]), "labels": torch.tensor([2])}
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long()}
    losses = ssd(images, [target, nothing])
    assert losses["positives"] > 0 and all(v.isfinite() for v in losses.values())
    with torch.inference_mode():
        found = ssd.eval()(images)
    assert all(f["boxes"].shape == (len(f["labels"]), 4) for f in found)


def test_a_surgery_makes_boxes_smaller_and_cells_denser() -> None:
    rows = [backbones.configuration_for("test_resnet", s, 96) for s in (None, "S1L0")]
    both = [model.build(row) for row in rows]
    coarse, fine = (looks(ssd)[0][0] for ssd in both)
    assert coarse == (2 * fine[0], 2 * fine[1])
    widest = [float(ssd.anchor_generator.boxes[0, 2]) for ssd in both]
    assert widest[1] < widest[0]


def test_classifiers_are_left_out_and_unknown_backbones_told() -> None:
    assert backbones.create("swin_s3_tiny_224")(torch.zeros(1, 3, 72, 72)).shape == (1, 768)
    assert sum(p.numel() for p in backbones.create("vgg11").parameters()) < 10e6
    with pytest.raises(DetectionError, match="neither timm nor torchvision knows .* 'resnet19'"):
        backbones.configuration_for("resnet19", None, 300)
    with pytest.raises(DetectionError, match="two paths need a stride to remove"):
        backbones.configuration_for("resnet18", None, 96, dual=True)
    with pytest.raises(DetectionError, match="has tokens, or maps of one size only; take"):
        backbones.configuration_for("vit_tiny_patch16_224", "S1L0", 224)
