"""The DETR family of transformers, operated whole."""

import importlib
from typing import Any

import pytest
import torch

import stridesurgery as ss
from stridesurgery.detection.transformers_models import PLACES
from tests.models import awake

transformers = pytest.importorskip("transformers")

SMALL = {
    **dict.fromkeys(("encoder_layers", "decoder_layers"), 2),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 2),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim", "d_model"), 32),
    "num_queries": 5,
}


def backbone() -> Any:
    """transformers' own ResNet, as a configuration."""
    return transformers.ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16, 32, 64],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )


@pytest.mark.parametrize("name", ("Detr", "ConditionalDetr", "DeformableDetr"))
def test_a_detr_is_operated_in_its_backbone(name: str) -> None:
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")
    config = config(use_timm_backbone=False, backbone=None, backbone_config=backbone(), **SMALL)
    model = awake(getattr(transformers, f"{name}ForObjectDetection")(config)).eval()
    fine = ss.eliminate(model, "S1L0", input_size=128)
    assert fine.surgery.at == "model.backbone.model"
    ss.verify(model, fine)
    x = torch.rand(3, 3, 64, 96)
    with torch.inference_mode():
        old, new = (net.model.backbone.model(x).feature_maps for net in (model, fine))
        boxes = fine(pixel_values=x).pred_boxes
    assert [m.shape[2] for m in new] == [2 * m.shape[2] for m in old]
    assert boxes.shape == (3, 5, 4) and boxes.isfinite().all()


def test_the_strides_of_rt_detr_follow() -> None:
    options: dict[str, Any] = {
        "encoder_hidden_dim": 32,
        "num_queries": 5,
        "backbone_config": transformers.RTDetrResNetConfig(
            embedding_size=8,
            hidden_sizes=[8, 16, 32, 64],
            depths=[1, 1, 1, 1],
            layer_type="basic",
            out_features=["stage2", "stage3", "stage4"],
        ),
        "encoder_in_channels": [16, 32, 64],
        "decoder_in_channels": [32, 32, 32],
        "d_model": 32,
        "encoder_ffn_dim": 32,
        "decoder_ffn_dim": 32,
        "decoder_layers": 1,
    }
    model = transformers.RTDetrForObjectDetection(transformers.RTDetrConfig(**options)).eval()
    fine = ss.eliminate(model, "S1L0", input_size=128)
    assert list(model.config.feat_strides) == [8, 16, 32] and fine.config.feat_strides == [4, 8, 16]
    assert fine.model.encoder.feat_strides == [4, 8, 16]
    with torch.inference_mode():
        assert fine(pixel_values=torch.rand(1, 3, 128, 160)).pred_boxes.shape == (1, 5, 4)
    fixed = transformers.RTDetrConfig(**options, anchor_image_size=[128, 128])
    with pytest.raises(ss.RequestError, match="anchor_image_size fixes the anchors"):
        ss.eliminate(transformers.RTDetrForObjectDetection(fixed).eval(), "S1L0", input_size=128)


def test_every_name_is_a_class_of_transformers() -> None:
    for name in PLACES:
        module, _, kind = name.rpartition(".")
        assert isinstance(getattr(importlib.import_module(module), kind), type)
