"""`features`: the maps it returns are the model's own, and nothing else is computed."""

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import stridesurgery as ss
from tests.conftest import Case
from tests.models import awake, create, image
from tests.watch import error, outputs_of
from tests.zoo.maps import differences, weightless


@pytest.mark.half
def test_maps_are_the_models_own(case: Case) -> None:
    """Bit for bit what the named modules return, whatever runs on the maps later."""
    maps = ss.features(case.original, input_size=case.size)
    modules = [
        name
        for name in maps.feature_info.module_name()
        if name in dict(case.original.named_modules())
    ]
    with torch.no_grad():
        wanted = outputs_of(case.original, modules, case.image)
        found = maps(case.image)
    assert list(found) == maps.feature_info.module_name()
    for name in modules:
        assert torch.equal(found[name], wanted[name]), name


@pytest.mark.half
def test_one_map_per_reduction_with_what_is_known_of_it(case: Case) -> None:
    maps = ss.features(case.original, input_size=case.size)
    info = maps.feature_info
    with torch.no_grad():
        found = list(maps(case.image).values())
    for channels, found_map in zip(info.channels(), found, strict=True):
        assert channels in (found_map.shape[1], found_map.shape[3])
    assert info.reduction() == sorted(set(info.reduction()))
    levels = [max(t.level) for t in case.report.transitions]
    assert set(info.reduction()) <= {*levels, max(layer.reduction[0] for layer in case.report)}
    assert [g.step[0] for g in info.geometry()] == [float(r) for r in info.reduction()]
    assert info.out_indices == maps.out_indices == tuple(range(len(found)))


@pytest.mark.half
def test_nothing_is_computed_that_no_map_needs(case: Case) -> None:
    """The first map needs fewer operators than all maps, and what every operator makes is used."""
    everything = ss.features(case.original, input_size=case.size)
    first = ss.features(case.original, everything.feature_info.module_name(0), input_size=case.size)
    assert len(first.graph.nodes) < len(everything.graph.nodes)
    for node in everything.graph.nodes:
        assert node.users or node.op in ("output", "placeholder") or writes(node), node


def writes(node: torch.fx.Node) -> bool:
    return str(getattr(node.target, "__name__", node.target)).endswith(("setitem", "_"))


SWIN = "swin_tiny_patch4_window7_224"  # whose stages hold no layers that could tell where they end


@pytest.mark.parametrize(
    "name",
    [
        "resnet50",
        "convnext_atto",
        "densenet121",
        "regnetx_002",
        "mobilenetv1_100",
        "inception_v3",
        "pvt_v2_b0",
        SWIN,
    ],
)
def test_maps_are_those_that_timm_lists(name: str) -> None:
    """Where timm keeps a list by hand it names the same maps."""
    info = ss.features(timm.create_model(name)).feature_info
    theirs = timm.create_model(name, features_only=True).feature_info
    assert info.channels() == theirs.channels()
    assert info.reduction() == theirs.reduction()


@pytest.mark.parametrize(
    "name", ["nest_tiny", "mixnet_s", "efficientnet_blur_b0", "repvit_m1", "levit_conv_128s"]
)
def test_maps_are_not_inside_the_block_that_leads_on(name: str) -> None:
    """Which widens, norms, mixes or blurs its map before it strides."""
    assert not differences(name)


@pytest.mark.parametrize(("name", "maps"), [("mvitv2_tiny", ["stages.3[0]"]), ("levit_128s", [])])
def test_attention_makes_no_maps_of_tokens_for_itself(name: str, maps: list[str]) -> None:
    names = ss.features(weightless(name)).feature_info.module_name()
    assert [m for m in names if m.startswith("stages")] == maps


class Stages(nn.Module):
    """Stages that end with a pool, as they are written by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = (
            nn.Sequential(
                nn.Conv2d(i, 4, 3, 1, 1),
                nn.ReLU(),
                nn.Conv2d(4, 4, 3, 1, 1),
                nn.ReLU(),
                nn.MaxPool2d(2),
            )
            for i in (3, 4)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.two(self.one(x))


def test_stages_that_end_with_a_pool_keep_their_last_map() -> None:
    assert ss.features(Stages(), input_size=16).feature_info.module_name() == [
        "one.3",
        "two.3",
        "two",
    ]


def test_layers_modules_and_their_names() -> None:
    net = create("mobilenetv1_100")
    maps = ss.features(net, (11, 13, "blocks.2"), input_size=96)
    found = maps(image(96))
    assert {name: tuple(m.shape[1:]) for name, m in found.items()} == {
        "11": (512, 6, 6),
        "13": (1024, 3, 3),
        "blocks.2": (256, 12, 12),
    }
    assert maps.feature_info.module_name() == ["blocks.3", "blocks", "blocks.2"]
    report = ss.inspect(net, 96)
    for index, layer in ((0, report[11]), (1, report[13])):
        geometry = maps.feature_info.geometry(index)
        assert (geometry.step, geometry.offset) == (layer.step, layer.offset)
    assert maps.feature_info[0] == {
        "num_chs": 512,
        "reduction": 16,
        "module": "blocks.3",
        "index": 0,
    }
    assert maps.feature_info.channels([1]) == [1024]


def test_weights_stay_and_the_model_is_untouched() -> None:
    net = create("resnet18")
    before = {key: value.clone() for key, value in net.state_dict().items()}
    maps = ss.features(net.train(), "layer2", input_size=64)
    assert maps.training and net.training
    assert list(maps.state_dict()) == list(before)
    assert all(torch.equal(value, before[key]) for key, value in maps.state_dict().items())
    assert {name for name, p in maps.named_parameters() if p.requires_grad} == {
        name
        for name, _ in net.named_parameters()
        if name.split(".")[0] in ("conv1", "bn1", "layer1", "layer2")
    }
    assert all(p.requires_grad for p in net.parameters())
    maps(image(64, batch=2))["layer2"].sum().backward()
    assert maps.get_parameter("conv1.weight").grad is not None
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_a_map_that_is_overwritten_later_is_returned_as_it_was() -> None:
    """An in-place activation writes into the map that its convolution made."""
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1),
        nn.Identity(),
        nn.Hardswish(inplace=True),
        nn.Conv2d(4, 4, 3, 2, 1),
    ).eval()
    x = image(16)
    maps = ss.features(net, ("0", "1", "2", "3"), input_size=16)(x)
    with torch.no_grad():
        convolved = net[0](x)
        assert torch.equal(maps["0"], convolved) and torch.equal(maps["1"], convolved)
        assert torch.equal(maps["2"], nn.functional.hardswish(convolved))


def test_writes_into_views_are_kept() -> None:
    """Swin v2 zeroes a part of a copied bias before it is used."""
    net = create("torchvision/swin_v2_t")
    with torch.no_grad():
        wanted = outputs_of(net, ["features.1"], image(64))["features.1"]
        assert torch.equal(
            ss.features(net, "features.1", input_size=64)(image(64))["features.1"], wanted
        )


@pytest.mark.parametrize("form", ["module", "graph"])
def test_operated_models_give_their_finer_maps(form: str) -> None:
    net = create("resnet18")
    fine = ss.eliminate(net, "S1L0", form=form, input_size=64)
    maps = ss.features(fine, ("layer1", "layer4"), input_size=64)
    assert maps.feature_info.reduction() == [2, 16]
    with torch.no_grad():
        found = maps(image(64))
    assert [tuple(m.shape[2:]) for m in found.values()] == [(32, 32), (4, 4)]


@pytest.mark.parametrize("options", [{}, {"form": "graph"}, {"dilate": True}, {"axis": "w"}])
def test_a_model_of_maps_that_is_operated_tells_what_its_maps_are(options: dict[str, Any]) -> None:
    net = create("resnet18")
    later = ss.eliminate(
        ss.features(net, ("layer1", "layer3"), input_size=64), S=1, input_size=64, **options
    )
    sooner = ss.features(
        ss.eliminate(net, S=1, input_size=64, **options), ("layer1", "layer3"), input_size=64
    )
    assert repr(later.feature_info) == repr(sooner.feature_info)  # a step may be nan
    with torch.no_grad():
        for name, found in later(image(64)).items():
            assert error(found, sooner(image(64))[name]) < 1e-5


class Detector(nn.Module):
    """A head on a model that returns maps."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body, self.head = body, nn.Conv2d(48, 4, 3, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x)["blocks.4"])


def test_maps_of_a_body_have_the_bodys_names() -> None:
    net = Detector(ss.features(create("mobilenetv2_050"), input_size=64)).eval()
    names = ss.features(net, input_size=64).feature_info.module_name()
    assert names == ["body[blocks.0]", "body[blocks.1]", "body[blocks.2]", "body[blocks.4]", "head"]


def test_saved_and_copied() -> None:
    maps = ss.features(create("resnet18"), input_size=64)
    stored = io.BytesIO()
    torch.save(maps, stored)
    stored.seek(0)
    for again in (copy.deepcopy(maps), torch.load(stored, weights_only=False)):
        assert again.feature_info == maps.feature_info
        for name, value in again(image(64)).items():
            assert torch.equal(value, maps(image(64))[name])


@pytest.mark.parametrize(
    ("taps", "words"),
    [
        (3, "inside a residual or parallel block.*'layer1.0'"),
        (99, "layers 0 to 20"),
        ("layer9", "no module 'layer9'"),
        ("fc", "does not return a map"),
        ("global_pool", "does not return a map"),
        ("layer1.0.drop_path", "no module|not called"),
        ([], "empty"),
        ((0, 0), "twice"),
        (True, "layer number or a module path"),
        (1.5, "layer number or a module path"),
    ],
)
def test_taps_that_are_no_maps(taps: object, words: str) -> None:
    net = create("resnet18")
    with pytest.raises(ss.RequestError, match=words):
        ss.features(net, taps, input_size=64)


def test_a_network_without_layers_has_no_maps_to_choose() -> None:
    with pytest.raises(ss.RequestError, match="no layers"):
        ss.features(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()), input_size=16)


def test_modules_that_run_twice_or_return_several_maps() -> None:
    with pytest.raises(ss.RequestError, match="runs 2 times"):
        ss.features(create("torchvision/resnet18"), "layer1.0.relu", input_size=64)
    hrnet = create("hrnet_w18_small")
    with pytest.raises(ss.RequestError, match=r"stage2\[0\]"):
        ss.features(hrnet, "stage2", input_size=64)
    assert ss.features(hrnet, "stage2[1]", input_size=64)(image(64))["stage2[1]"].shape[1:] == (
        32,
        8,
        8,
    )


@pytest.mark.parametrize("name", ["mobilenetv2_050", "resnet18d", "torchvision/convnext_tiny"])
def test_centres_are_where_the_cells_look(name: str) -> None:
    """The gradient of a cell of the first map is centred on the pixel that the geometry says."""
    net, size = create(name), 128
    maps = ss.features(net, input_size=size)
    geometry = maps.feature_info.geometry(0)
    x = image(size).requires_grad_()
    found = next(iter(maps(x).values()))
    rows, columns = geometry.centres(found.shape[2:])
    row, column = found.shape[2] // 2, found.shape[3] // 2
    (gradient,) = torch.autograd.grad(found[0, :, row, column].square().sum(), x)
    seen = (
        gradient.abs().sum((0, 1)).nonzero().float() + 0.5
    )  # a pixel's centre in image coordinates
    middle = (seen.min(0).values + seen.max(0).values) / 2
    assert middle.tolist() == [rows[row].item(), columns[column].item()]
    assert (seen.max(0).values - seen.min(0).values + 1).tolist() == list(geometry.receptive_field)


class Dropped(nn.Module):
    """Stochastic depth as it is written in forward code: calls that train mode alone makes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x) * self.conv.weight.mean()
        if self.training:
            y = y * (torch.rand([y.shape[0], 1, 1, 1], device=y.device) + 0.8).floor()
        return y + x


@pytest.mark.parametrize("operate", [ss.features, lambda net, **o: ss.dual_path(net, S=2, **o)])
def test_noise_that_train_mode_alone_applies(operate: Callable[..., nn.Module]) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), Dropped(), nn.Conv2d(8, 8, 3, 2, 1), Dropped())
    maps = operate(awake(net).eval(), input_size=32)
    last = "large.3" if "large.3" in maps(image(32)) else "3"
    assert torch.equal(maps(image(32))[last], net(image(32)))
    torch.manual_seed(0)
    trained = maps.train()(image(32, batch=8))[last]
    torch.manual_seed(0)
    assert trained.requires_grad and not torch.equal(trained, maps.eval()(image(32, batch=8))[last])
