"""Token maps: the cells of a vision transformer's tokens as a map, in their own order."""

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

import stridesurgery as ss
from tests.models import awake, timm_model

SMALL = {
    "vit_tiny_patch16_224": {"depth": 2, "img_size": 64},
    "vit_wee_patch16_reg1_gap_256": {"depth": 2, "img_size": 64},
    "deit_tiny_distilled_patch16_224": {"depth": 2, "img_size": 64},
    "eva02_tiny_patch14_224": {"depth": 2, "img_size": 56},
    "beit_base_patch16_224": {"depth": 2, "img_size": 64, "embed_dim": 96, "num_heads": 3},
    "cait_xxs24_224": {"depth": 2, "img_size": 64},
    "test_vit_relpos": {},
    "vit_tiny_r_s16_p8_224": {"depth": 2, "img_size": 64},
}


@pytest.fixture(scope="module", params=SMALL)
def model(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return awake(timm_model(request.param, **SMALL[request.param])).eval()


def blocks_of(model: nn.Module) -> list[str]:
    return [f"blocks.{i}" for i in range(len(model.blocks))]


def image_for(model: nn.Module) -> Tensor:
    return torch.randn(2, 3, *ss.inspect(model).input_size)


def test_it_is_the_map_of_forward_intermediates(model: nn.Module) -> None:
    image = image_for(model)
    maps = ss.features(model, blocks_of(model))
    with torch.no_grad():
        wanted = model.forward_intermediates(image, intermediates_only=True)
        for value, other in zip(maps(image).values(), wanted, strict=True):
            torch.testing.assert_close(value, other, rtol=1e-5, atol=1e-5)
    assert maps.feature_info.channels() == [value.shape[1] for value in wanted]


def test_without_names_the_last_blocks_map_is_there(model: nn.Module) -> None:
    image = image_for(model)
    last = list(ss.features(model)(image).values())[-1]
    with torch.no_grad():
        torch.testing.assert_close(
            last, model.forward_intermediates(image, intermediates_only=True)[-1]
        )


def test_dilated_tokens_are_one_fine_map(model: nn.Module) -> None:
    reduction = ss.features(model).feature_info.reduction(-1)
    fine = ss.eliminate(model, output_stride=reduction // 2, dilate=True)
    last = blocks_of(model)[-1]
    maps, image = ss.features(fine, last), image_for(model)
    ss.verify(model, maps)
    with torch.no_grad():
        sampled = maps(image)[last][:, :, ::2, ::2]
        wanted = model.forward_intermediates(image, intermediates_only=True)[-1]
    torch.testing.assert_close(sampled, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dilate", [False, True])
def test_a_dual_path_gives_both_grids(dilate: bool) -> None:
    model = awake(timm.create_model("vit_tiny_patch16_224", depth=2, img_size=64)).eval()
    how = {"dilate": True} if dilate else {"positions": "resample"}
    both = ss.dual_path(model, "S1L0", stride=8, taps="blocks.1", **how)
    image = torch.randn(2, 3, 64, 64)
    ss.verify(model, both)
    with torch.no_grad():
        maps = both(image)
        large = model.forward_intermediates(image, intermediates_only=True)[-1]
        fine = ss.features(ss.eliminate(model, "S1L0", stride=8, **how), "blocks.1")(image)
    torch.testing.assert_close(maps["large.blocks.1"], large)
    torch.testing.assert_close(maps["small.blocks.1"], fine["blocks.1"])


def test_a_dual_path_keeps_what_was_made_for_the_old_grid() -> None:
    """Swin's masks and torchvision's patch size, of which each path needs its own."""
    swin = timm.create_model("swin_tiny_patch4_window7_224", depths=(2, 2), img_size=56)
    vit = torchvision.models.VisionTransformer(56, 14, 1, 3, 48, 96)
    for model, stride in ((swin, 2), (vit, 7)):
        model = awake(model).eval()
        options = {"stride": stride, "positions": "resample", "input_size": 56}
        found = ss.verify(model, ss.dual_path(model, "S1L0", **options))
        assert any(check.name.startswith("large") for check in found.maps)


@pytest.mark.parametrize("name", ["hiera_tiny_224", "tnt_s_legacy_patch16_224"])
def test_tokens_in_an_order_of_their_own_are_no_map(name: str) -> None:
    model = timm_model(name).eval()
    block = "blocks.0" if name.startswith("hiera") else "blocks.0.norm1_proj"
    with pytest.raises(ss.RequestError, match="does not return a map"):
        ss.features(model, block)


def test_another_size_gives_a_map_of_that_size() -> None:
    model = timm.create_model("vit_tiny_patch16_224", depth=1, dynamic_img_size=True).eval()
    maps = ss.features(model, "blocks.0", input_size=(96, 160))
    with torch.no_grad():
        assert maps(torch.randn(1, 3, 96, 160))["blocks.0"].shape == (1, 192, 6, 10)


def test_tokens_after_the_cells_are_no_map() -> None:
    class Appended(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches = nn.Conv2d(3, 8, 16, 16)
            self.token = nn.Parameter(torch.randn(1, 1, 8))
            self.norm = nn.LayerNorm(8)

        def forward(self, x: Tensor) -> Tensor:
            x = self.patches(x).flatten(2).transpose(1, 2)
            return self.norm(torch.cat([x, self.token.expand(x.shape[0], -1, -1)], 1))

    with pytest.raises(ss.RequestError, match="does not return a map"):
        ss.features(Appended(), "norm", input_size=64)


@pytest.mark.parametrize("name", ["ViT", "Dinov2", "Beit", "Swin", "Swinv2"])
def test_the_last_map_is_that_of_transformers(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"image_size": 64, "patch_size": 4 if "Swin" in name else 16}
    depth = {"depths": [2, 2], "num_heads": [2, 4], "embed_dim": 16, "window_size": 4}
    plain = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    more = depth if "Swin" in name else plain
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**{**sizes, **more})
    net = awake(getattr(transformers, f"{name}Model")(config)).eval()
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        tokens = net(image, output_hidden_states=True).hidden_states[-1]
        last = list(ss.features(net, input_size=64)(image).values())[-1]
    prefix = tokens.shape[1] - last.shape[2] * last.shape[3]  # the class token
    wanted = tokens[:, prefix:].transpose(1, 2).reshape(last.shape)
    torch.testing.assert_close(last, wanted, rtol=1e-5, atol=1e-5)
