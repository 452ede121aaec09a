"""The networks: what predictors read, and any backbone."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import stridesurgery as ss
from examples.ssd import backbones, custom, model
from examples.ssd.configurations import ROWS, Configuration
from examples.ssd.errors import RequestError
from examples.ssd.neck import L2Norm
from examples.ssd.tokens import share_on_tokens
from tests.ssd.conftest import built


def awake(ssd: model.SSD) -> model.SSD:
    """With norms that do something: zero means and unit variances would hide a path taken wrongly."""
    for module in ssd.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.8, 1.2)
            torch.nn.init.uniform_(module.bias, -0.1, 0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
            torch.nn.init.normal_(module.running_mean, std=0.1)
    return ssd


def test_the_split_networks_predictors_3_to_6_see_what_the_base_networks_see() -> None:
    base = awake(model.build(ROWS["SSDMnetv1"]).eval())
    split = model.build(ROWS["SSDMnetv1-S1L0-DualPath19-10-S"]).eval()
    split.load_state_dict(base.state_dict())
    image = base.prepare(torch.randint(0, 256, (1, 3, 300, 300)))
    with torch.inference_mode():
        ours, theirs = split.maps(image), base.maps(image)
    assert float(theirs[2].std()) > 0
    for mine, other in zip(ours[2:], theirs[2:], strict=True):
        assert torch.equal(mine, other)
    assert [m.shape[-1] for m in ours[:2]] == [38, 19]


def test_concatenation_widens_what_the_paper_widens() -> None:
    widths = {
        name: built(f"SSDMnetv1-S1L0-DualPath19-{name}").neck.out_channels for name in ("C", "10-C")
    }
    assert widths["C"] == (512, 1536, 512, 256, 256, 128)
    assert widths["10-C"] == (512, 1536, 1536, 256, 256, 128)


def test_outputs_and_priors_agree() -> None:
    ssd = built("SSDMnetv1-S1L0")
    with torch.inference_mode():
        offsets, logits = ssd(ssd.prepare(torch.zeros(1, 3, 300, 300, dtype=torch.uint8)))
    assert (
        offsets.shape == (1, 11650, 4)
        and logits.shape == (1, 11650, 81)
        and len(ssd.priors) == 11650
    )


def test_l2_norm_gives_every_cell_its_learned_length() -> None:
    norm = L2Norm(8)
    lengths = norm(torch.randn(2, 8, 3, 3)).norm(dim=1)
    assert torch.allclose(lengths, torch.full_like(lengths, 20))


def test_pixels_are_prepared_as_imagenet_backbones_expect() -> None:
    ssd = built("SSDMnetv1")
    grey = torch.tensor([124, 116, 104]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    assert ssd.prepare(grey).abs().max() < 0.02


@pytest.mark.parametrize(
    ("backbone", "surgery", "dual"),
    [
        ("test_resnet", None, False),
        ("test_resnet", "S1L0", True),
        ("test_efficientnet", "S1L0", False),
        ("shufflenet_v2_x0_5", "S1L0", False),
    ],
)
def test_any_backbone(backbone: str, surgery: str | None, dual: bool) -> None:
    row = custom.configuration_for(backbone, surgery, 96, dual=dual)
    ssd = model.build(row, 4).eval()
    with torch.inference_mode():
        offsets, logits = ssd(torch.zeros(1, 3, 96, 96))
    assert offsets.shape[1] == logits.shape[1] == len(ssd.priors) and logits.shape[2] == 4
    assert ssd.priors.min() >= 0 and ssd.priors.max() <= 1


class PatchesLast(nn.Module):
    """A small backbone that works on (N, H, W, C), as Swin does; `turned` gives the same maps as (N, C, H, W)."""

    def __init__(self, turned: bool) -> None:
        super().__init__()
        self.turned = turned
        self.stem, self.mix = nn.Conv2d(3, 8, 4, stride=4), nn.Linear(8, 8)
        self.down, self.mix_again = nn.Conv2d(8, 16, 2, stride=2), nn.Linear(16, 16)
        self.first, self.second = nn.Identity(), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.mix(self.stem(x).permute(0, 2, 3, 1))
        x = self._out(self.first, x)
        x = self.mix_again(self.down(x).permute(0, 2, 3, 1))
        return self._out(self.second, x)

    def _out(self, place: nn.Module, x: Tensor) -> Tensor:
        """Through a module that can be tapped, and on as (N, C, H, W)."""
        return place(x.permute(0, 3, 1, 2)) if self.turned else place(x).permute(0, 3, 1, 2)


def test_backbones_with_their_channels_last_are_read_all_the_same() -> None:
    row = Configuration("patches", size=64, small=("first", "second"), steps=None)
    torch.manual_seed(1)
    first = model.build(row, 4, PatchesLast(turned=True)).eval()
    last = model.build(row, 4, PatchesLast(turned=False)).eval()
    last.load_state_dict(first.state_dict())
    image = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(last(image), first(image))
    assert torch.equal(first.priors, last.priors) and len(last.turned) == 2 and not first.turned
    with pytest.raises(RequestError, match="map first has as many channels as rows"):
        model.build(replace(row, size=32), 4, PatchesLast(turned=False))


def test_swin_takes_any_size_and_vgg_ends_before_its_fully_connected_layers() -> None:
    assert backbones.create("swin_s3_tiny_224")(torch.zeros(1, 3, 72, 72)).shape == (1, 768)
    assert sum(p.numel() for p in backbones.create("vgg11").parameters()) < 10e6


class Tokens(nn.Module):
    """Half a vision transformer: patches, then layers on (N, L, C)."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 32, 8, stride=8)
        self.layers = nn.Sequential(*(nn.Linear(32, 32) for _ in range(layers)))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(self.patches(x).flatten(2).transpose(1, 2)).mean(dim=1)


def test_what_works_on_tokens_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    net = Tokens(layers=12)  # 6176 parameters in the patches, 1056 in each layer
    assert share_on_tokens(net, ss.features(net, input_size=64), 64) == 12 * 1056 / (
        6176 + 12 * 1056
    )
    monkeypatch.setattr(custom, "create", lambda name: Tokens(layers=12))
    with pytest.raises(
        RequestError, match=r"67% of it works on tokens, behind the last map .* \(patches\)"
    ):
        custom.configuration_for("it", None, 64)
    assert custom.configuration_for("it", None, 64, taps=("patches",)).small == ("patches",)


def test_a_size_that_does_not_fit_is_told_with_one_that_may(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(
        RequestError, match="does not run on 100 x 100 pixels. .* such as --size 128"
    ):
        custom.configuration_for("hrnet_w18_small", None, 100)


def test_a_surgery_makes_boxes_smaller_and_cells_denser() -> None:
    before, after = (custom.configuration_for("test_resnet", s, 96) for s in (None, "S1L0"))
    assert after.sizes[0] < before.sizes[0]
    steps = [
        model.true_cells(s, model.map_sizes(s))[0].step
        for s in (model.build(before), model.build(after))
    ]
    assert steps[0] == (2 * steps[1][0], 2 * steps[1][1])


def test_an_unknown_backbone_is_told() -> None:
    with pytest.raises(
        RequestError, match="neither timm nor torchvision knows a backbone 'resnet19'"
    ):
        custom.configuration_for("resnet19", None, 300)


def test_a_configuration_that_contradicts_itself_is_refused() -> None:
    with pytest.raises(RequestError, match="7 predictors, and boxes for 6"):
        Configuration("wrong", small=(5, 11, 13))
