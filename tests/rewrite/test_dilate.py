"""`dilate=True`: every later map sampled on the old grid is the original's, and so is the answer."""

import copy
import io
import itertools
import math

import pytest
import timm
import torch
from timm.layers.conv2d_same import Conv2dSame
from torch import nn

import stridesurgery as ss
from stridesurgery.ops import space_to_batch
from tests.conftest import Case, one_of
from tests.features.test_dual_path import maps_of, rotating
from tests.models import awake, create, image
from tests.watch import error, sampled


@pytest.mark.half
def test_every_map_sampled_is_the_originals(case: Case) -> None:
    """Squeeze-excite, group norm, blur pools and attention included."""
    transition = rotating(case)
    k = int(transition.factor[0])
    fine = ss.eliminate(
        case.original, L=one_of(case.report, transition), dilate=True, input_size=case.size
    )
    names = ss.features(case.original, input_size=case.size).feature_info.module_name()
    original = maps_of(ss.features(case.original, names, input_size=case.size), case.image)
    dilated = ss.features(fine, names, input_size=case.size)
    larger = 0
    for name, found in maps_of(dilated, case.image).items():
        grows = tuple(
            k if a != b else 1 for a, b in zip(found.shape, original[name].shape, strict=True)
        )
        assert error(sampled(found, original[name], grows), original[name]) < 1e-5, (
            f"{case.name}, {name}"
        )
        larger += grows != (1,) * 4
    assert larger
    with torch.no_grad():
        assert error(fine(case.image), case.original(case.image)) < 1e-5, f"{case.name}: the answer"
    assert list(fine.state_dict()) == list(case.original.state_dict())


@pytest.mark.parametrize("size", [75, 97, 100])
def test_odd_sizes(size: int) -> None:
    """Maps have a cell wherever one looks into the image, and the original's cells always."""
    for name in ("mobilenetv2_050", "resnet18d", "torchvision/squeezenet1_1"):
        net, x = create(name), image(size)
        fine = ss.eliminate(net, S=1, dilate=True, input_size=size)
        original = maps_of(ss.features(net, input_size=size), x)
        for module, found in maps_of(ss.features(fine, list(original), input_size=size), x).items():
            assert error(found[..., ::2, ::2], original[module]) < 1e-5, f"{name}, {module}"


def test_several_strides_and_what_remains_of_one() -> None:
    net, x = create("resnet18"), image(64)
    original = maps_of(ss.features(net, input_size=64), x)
    fine = ss.eliminate(
        net, L=(11, 16), dilate=True, input_size=64
    )  # output stride 8, as DeepLab makes it
    maps = ss.features(fine, list(original), input_size=64)
    assert maps.feature_info.reduction() == [2, 4, 8, 8, 8]
    found = maps_of(maps, x)
    assert error(found["layer3"][..., ::2, ::2], original["layer3"]) < 1e-5
    assert error(found["layer4"][..., ::4, ::4], original["layer4"]) < 1e-5
    stem = create("convnextv2_atto")
    half = ss.eliminate(stem, "S1L0", stride=2, dilate=True, input_size=64)
    wanted = maps_of(ss.features(stem, "stages.3", input_size=64), x)["stages.3"]
    assert (
        error(
            maps_of(ss.features(half, "stages.3", input_size=64), x)["stages.3"][..., ::2, ::2],
            wanted,
        )
        < 1e-5
    )


def test_one_axis() -> None:
    net, x = create("seresnet18"), image(64)
    fine = ss.eliminate(net, S=1, axis="w", dilate=True, input_size=64)
    maps = ss.features(fine, "layer3", input_size=64)
    wanted = maps_of(ss.features(net, "layer3", input_size=64), x)["layer3"]
    assert maps.feature_info.reduction() == [(16, 8)]
    assert error(maps_of(maps, x)["layer3"][..., ::2], wanted) < 1e-5


def test_positions_of_a_fixed_number_are_no_obstacle() -> None:
    """A vision transformer sees as many patches as before, in each phase."""
    net = awake(
        timm.create_model("vit_tiny_patch16_224", depth=2, embed_dim=48, num_heads=3)
    ).eval()
    with pytest.raises(ss.GridError):
        ss.eliminate(net, S=1, stride=8)
    fine, x = ss.eliminate(net, S=1, stride=8, dilate=True), image(224)
    with torch.no_grad():
        assert error(fine(x), net(x)) < 1e-5
    assert ss.inspect(fine)[0].out_grid == (28, 28)


def test_dilated_is_what_replacing_strides_by_dilation_gives_where_that_is_exact() -> None:
    """A chain of convolutions: torch's own dilated convolutions, padded alike, make the same map."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, 1, 1), nn.Conv2d(4, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, 1, 1)
    ).eval()
    by_hand = copy.deepcopy(net)
    by_hand[1].stride, by_hand[3].dilation, by_hand[3].padding = (1, 1), (2, 2), (2, 2)
    fine = ss.eliminate(net, S=1, dilate=True, input_size=16)
    with torch.no_grad():
        assert torch.allclose(fine(image(16)), by_hand(image(16)), atol=1e-6)


def test_reports_and_records_follow() -> None:
    net = create("resnet18")
    fine = ss.eliminate(net, "S1L0", dilate=True, input_size=64)
    plain = ss.eliminate(net, "S1L0", pool="keep", input_size=64)
    assert not any(n.target is space_to_batch for n in fine.graph.nodes)
    ours, theirs = ss.inspect(fine, 64), ss.inspect(plain, 64)
    for dilated, finer in zip(ours, theirs, strict=True):
        assert (dilated.name, dilated.reduction, dilated.out_grid) == (
            finer.name,
            finer.reduction,
            finer.out_grid,
        )
        assert dilated.channels == finer.channels
        assert dilated.step == finer.step
    assert (
        ours[20].receptive_field == ss.inspect(net, 64)[20].receptive_field
    )  # the features are the original's
    assert [entry["reduction"] for entry in fine.feature_info] == [1, 2, 4, 8, 16]
    assert (
        "dilate" in fine.surgery.to_json()
        and ss.Surgery.from_json(fine.surgery.to_json()) == fine.surgery
    )
    assert ss.verify(net, fine).exact
    again = ss.eliminate(create("resnet18"), fine.surgery)
    with torch.no_grad():
        assert torch.equal(again(image(64)), fine(image(64)))


@pytest.mark.parametrize(
    "name, even",
    [
        ("S1L0", False),
        ("S1L1", False),
        ("S1L2", True),
        ("S2L0-1", False),
        ("S2L1-2", True),
        ("S3L0-1-2", True),
    ],
)
@pytest.mark.parametrize("phases", [True, False])
def test_cells_look_where_the_geometry_says(name: str, even: bool, phases: bool) -> None:
    """Where a cell looks is the centre of its gradient, as all weights are ones.

    Behind a stride that stays, phases stand in groups; dilated convolutions keep all cells even.
    """
    layers = [torch.nn.Conv2d(1, 1, 3, stride=2, padding=1, bias=False) for _ in range(3)]
    if phases:  # padding that has no dilated form
        layers.append(torch.nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect", bias=False))
    even = even or not phases
    net = torch.nn.Sequential(*layers)
    for p in net.parameters():
        torch.nn.init.ones_(p)
    maps = ss.features(ss.eliminate(net, name, dilate=True, input_size=64), 2, input_size=64)
    x = torch.rand(1, 1, 64, 64, requires_grad=True)
    (y,) = maps(x).values()
    middle, looks = y.shape[-1] // 2, []
    for j in range(middle, middle + 6):
        (gradient,) = torch.autograd.grad(y[0, 0, middle, j], x, retain_graph=True)
        weights = gradient[0, 0].sum(0)
        looks.append(float((weights * torch.arange(64)).sum() / weights.sum()))
    geometry = maps.feature_info.geometry(0)
    if even:
        torch.testing.assert_close(
            geometry.centres(y.shape[-2:])[1][middle : middle + 6] - 0.5, torch.tensor(looks)
        )
    else:
        assert len({b - a for a, b in itertools.pairwise(looks)}) > 1
        with pytest.raises(ss.GridError, match="not evenly spaced"):
            geometry.centres(y.shape[-2:])


def test_training_and_saving() -> None:
    fine = ss.eliminate(create("mobilenetv2_050"), "S1L0", dilate=True, input_size=64).train()
    fine(image(64, batch=2)).sum().backward()
    assert all(p.grad is not None for p in fine.parameters())
    stored = io.BytesIO()
    torch.save(fine.eval(), stored)
    stored.seek(0)
    again = torch.load(stored, weights_only=False)
    assert torch.equal(again(image(64)), fine(image(64)))


def test_bad_requests() -> None:
    net = create("resnet18")
    fine = ss.eliminate(net, "S1L0", dilate=True, input_size=64)
    with pytest.raises(ss.RequestError, match="dilated already"):
        ss.eliminate(fine, S=1, input_size=64)
    with pytest.raises(ss.RequestError, match="not possible in place"):
        ss.eliminate(net, "S1L0", dilate=True, inplace=True, input_size=64)
    with pytest.raises(ss.RequestError, match="choose one"):
        ss.eliminate(net, "S1L0", dilate=True, restore_at=6, input_size=64)
    with pytest.raises(ss.RequestError, match="dilate is True or False"):
        ss.eliminate(net, "S1L0", dilate=2, input_size=64)


class Tokens(nn.Module):
    """Reads the length of the batch before the phases open, as vision transformers with a class token do."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3, 2, 1), *(nn.Conv2d(8, 8, 3, 2, 1) for _ in "bc")
        self.token = nn.Parameter(torch.randn(1, 1, 8))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        token, y = self.token.expand(x.shape[0], -1, -1), self.b(self.a(x))
        other = self.token.repeat(y.shape[0], 1, 1)
        cells = self.c(y).flatten(2).transpose(1, 2)
        return torch.cat([token, other, cells], 1).mean(1), other


@pytest.mark.parametrize("layers", ["a", "b", "c", "ab", "bc", "abc"])
def test_lengths_of_a_batch_that_are_read_before_the_phases_open(layers: str) -> None:
    net, x = awake(Tokens()).eval(), torch.randn(3, 3, 32, 40)
    fine = ss.eliminate(net, L=list(layers), dilate=True, input_size=(32, 40))
    for found, wanted in zip(fine(x), net(x), strict=True):
        assert found.shape == wanted.shape and error(found, wanted) < 1e-5
    ss.verify(net, fine)


@pytest.mark.parametrize(
    "name, size, count",
    [
        ("resnet18", (64, 96), 2),
        ("mobilenetv2_050", (75, 97), 2),
        ("tf_efficientnet_lite0", (64, 96), 1),
        ("dla34", (96, 64), 2),
    ],
)
def test_your_own_class_comes_back_where_dilated_convolutions_do(
    name: str, size: tuple[int, int], count: int
) -> None:
    """Nothing after the stride reads more than its window: no graph, every cell the original has is exact."""
    net, k = create(name, num_classes=0, global_pool=""), 2**count
    numbers = [la for t in ss.inspect(net, size).transitions[-count:] for la in t.layers[:1]]
    fine, x = ss.eliminate(net, L=numbers, dilate=True, input_size=size), torch.randn(3, 3, *size)
    with torch.no_grad():
        found, wanted = fine(x), net(x)
    assert type(fine) is type(net)
    assert found.shape[-1] > k / 2 * wanted.shape[-1]
    assert error(found[..., ::k, ::k], wanted) < 1e-5
    ss.verify(net, fine)
    again = ss.eliminate(copy.deepcopy(net), L=numbers, dilate=True, input_size=size, inplace=True)
    with torch.no_grad():
        assert torch.equal(again(x), found)


@pytest.mark.parametrize("name", ["semnasnet_050", "mobilenetv3_small_050", "regnety_002"])
def test_squeeze_excite_is_given_the_originals_cells(name: str) -> None:
    """Two strides, sides that they do not divide: its gate is the original's, and no phases run."""
    net, x = create(name).double(), torch.randn(2, 3, 75, 97).double()
    numbers = [t.layers[0] for t in ss.inspect(net, (75, 97)).transitions[-2:]]
    fine = ss.eliminate(net, L=numbers, dilate=True, input_size=(75, 97))
    assert not any(n.target is space_to_batch for n in fine.graph.nodes)
    maps = [ss.features(m, input_size=(75, 97)) for m in (net, fine)]
    with torch.no_grad():
        wanted, found = (list(m(x).values())[-1] for m in maps)
        assert error(fine(x), net(x)) < 1e-9
    assert error(found[..., ::4, ::4], wanted) < 1e-9 and found.shape[-1] > 2 * wanted.shape[-1]
    assert all(map(math.isfinite, maps[1].feature_info.geometry(-1).step))
    ss.verify(net, fine)


@pytest.mark.parametrize(
    "last",
    [
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"),
        nn.AvgPool2d(3, 1, 1),
        nn.GroupNorm(1, 4),
        nn.MaxPool2d(3, 2, 1, ceil_mode=True),
    ],
)
def test_what_has_no_dilated_form_runs_phases(last: nn.Module) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 1, 1), last).eval()
    fine, x = ss.eliminate(net, L=0, dilate=True, input_size=32), image(32)
    assert any(n.target is space_to_batch for n in fine.graph.nodes)
    with torch.no_grad():
        assert error(fine(x)[..., ::2, ::2], net(x)) < 1e-5


def test_a_layer_behind_it_that_pads_as_tensorflow_does_is_verified() -> None:
    model = awake(nn.Sequential(Conv2dSame(3, 8, 3, 2), nn.ReLU(), Conv2dSame(8, 8, 3, 1))).eval()
    fine = ss.eliminate(model, "S1L0", dilate=True, input_size=32)
    assert type(fine[2]) is Conv2dSame and fine[2].dilation == (2, 2)
    assert len(ss.verify(model, fine).sites) == 2
