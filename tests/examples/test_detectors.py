"""The examples of detectors: a pyramid on any model, an encoder for segmentation."""

import pytest
import timm
import torch

import stridesurgery as ss
from examples.detectors import Encoder, faster_rcnn, pyramid
from examples.detectors.pyramid import read_info
from stridesurgery.detection import levels
from tests.detection.laws import RESIZED, check_anchors, check_losses, watched
from tests.models import awake

# ---- pyramids of timm's models


def test_feature_info_of_timm_follows() -> None:
    net = timm.create_model("regnetx_002", features_only=True).eval()
    fine = ss.eliminate(net, "S1L0")
    assert fine.feature_info.reduction() == [r // 2 for r in net.feature_info.reduction()]
    for value, reduction, channels in zip(
        fine(torch.rand(1, 3, 96, 64)),
        fine.feature_info.reduction(),
        fine.feature_info.channels(),
        strict=True,
    ):
        assert value.shape == (1, channels, 96 // reduction, 64 // reduction)


@pytest.mark.parametrize("name", ("resnet18", "mobilenetv3_small_050"))
def test_a_detector_on_the_pyramid_of_any_model(name: str) -> None:
    net = timm.create_model(name, num_classes=0)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    fine = pyramid(net, "S1L0", out_channels=32)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(torch.equal(fine.state_dict()[f"body.{k}"], v) for k, v in before.items())
    plain = levels(pyramid(net, None, out_channels=32), (256, 192))
    doubled = [(level.name, (2 * level.grid[0], 2 * level.grid[1])) for level in plain]
    assert [(level.name, level.grid) for level in levels(fine, (256, 192))] == doubled
    assert [level.name for level in plain] == ["0", "1", "2", "3", "pool"]

    model = faster_rcnn(fine, num_classes=4, **RESIZED).eval()
    check_anchors(
        watched(model, model.rpn.anchor_generator), [la.looks for la in levels(fine, 512)], [3] * 5
    )
    assert model.roi_heads.box_roi_pool.scales == [1 / 2, 1 / 4, 1 / 8, 1 / 16]
    check_losses(model)


@pytest.mark.parametrize("layer", [6, 0])
def test_a_dilated_pyramid_keeps_the_features(layer: int) -> None:
    net = awake(timm.create_model("resnet18")).eval()
    plain = pyramid(net, None, 16, taps=["layer2"])
    fine = pyramid(net, ss.Surgery(1, (layer,), dilate=True), 16, taps=["layer2"])
    x = torch.rand(1, 3, 64, 96)
    with torch.inference_mode():
        for old, new in zip(
            plain.eval().body(x).values(), fine.eval().body(x).values(), strict=True
        ):
            torch.testing.assert_close(new[..., ::2, ::2], old, rtol=1e-4, atol=1e-5)
    assert [la.looks.step for la in levels(fine, (64, 96))] == [(4, 4), (8, 8)]


# ---- segmentation


@pytest.mark.parametrize("finest, depth", [(1, 5), (2, 4), (1, 3)])
def test_an_encoder_gives_the_image_and_a_map_for_each_reduction(finest: int, depth: int) -> None:
    net = Encoder(timm.create_model("resnet18"), "S1L0", depth, finest=finest).eval()
    maps = net(torch.rand(2, 3, 64, 96))
    sides = [1, *(finest * 2**i for i in range(depth))]
    assert [m.shape for m in maps] == [
        (2, c, 64 // r, 96 // r) for c, r in zip(net.out_channels, sides, strict=True)
    ]
    assert net.output_stride == sides[-1]


def test_an_encoder_says_what_it_has_not() -> None:
    with pytest.raises(ValueError, match="there are 4 maps, not 5"):
        Encoder(timm.create_model("resnet18"), "S1L0", finest=2)
    net = Encoder(timm.create_model("resnet18"), "S1L0")
    net.make_dilated(16)
    with pytest.raises(ValueError, match="the output stride is 16"):
        net.make_dilated(8)
    with pytest.raises(ValueError, match="in_chans=4"):
        net.set_in_channels(4)


@pytest.mark.parametrize(
    "decoder, finest", [("Unet", 1), ("UnetPlusPlus", 2), ("DeepLabV3Plus", 2)]
)
def test_decoders_of_smp_take_it(decoder: str, finest: int) -> None:
    smp = pytest.importorskip("segmentation_models_pytorch")
    backbone, depth = timm.create_model("resnet18"), 5 if finest == 1 else 4
    smp.encoders.encoders["fine"] = {
        "params": {},
        "encoder": lambda depth, output_stride: Encoder(backbone, "S1L0", depth, finest=finest),
    }
    own = (
        {"encoder_output_stride": 16}
        if decoder == "DeepLabV3Plus"
        else {"decoder_channels": (32, 24, 16, 8, 8)[:depth]}
    )
    try:
        net = getattr(smp, decoder)(
            "fine", encoder_weights=None, encoder_depth=depth, classes=2, **own
        )
    finally:
        del smp.encoders.encoders["fine"]
    masks = net.train()(torch.rand(2, 3, 64, 96))
    assert masks.shape == (2, 2, 64, 96)
    masks.mean().backward()
    assert backbone.conv1.weight.grad is None  # the encoder's weights are its own
    assert all(p.grad is not None for p in net.encoder.parameters() if p.requires_grad)


def test_channels_of_the_encoder_are_those_of_its_maps() -> None:
    net = Encoder(timm.create_model("mobilenetv3_small_100"), "S1L0", 4)
    assert net.out_channels[1:] == read_info(net.maps).channels()
