"""The options of `eliminate`, and teaching it an operator."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.layers import ScaledStdConv2d, ScaledStdConv2dSame, StdConv2d
from timm.layers.std_conv import StdConv2dSame
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

import stridesurgery as ss
from stridesurgery.ops import read_conv, set_stride
from tests.models import awake, create, image
from tests.watch import error


def out(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x)


@pytest.mark.parametrize("kind", [StdConv2d, StdConv2dSame, ScaledStdConv2d, ScaledStdConv2dSame])
@pytest.mark.parametrize("kernel", [1, 3, 4])
@pytest.mark.parametrize("size", [16, 17])
def test_standardised_convolutions(kind: Any, kernel: int, size: int) -> None:
    net = awake(nn.Sequential(kind(3, 4, kernel, stride=2, bias=True))).eval()
    fine = ss.eliminate(net, L=0, input_size=size)
    x = image(size)
    assert isinstance(fine[0], kind)
    assert error(out(fine, x)[:, :, ::2, ::2], out(net, x)) < 1e-5
    assert ss.verify(net, fine, size).sites[0].error < 1e-5


class Doubled(nn.Conv2d):
    """A convolution of one's own, whose weights are computed."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(
            x, self.weight * 2, self.bias, self.stride, self.padding, self.dilation, self.groups
        )


class Taught(Doubled):
    """The same, to be registered."""


def test_unregistered_subclass_is_read_from_the_inside() -> None:
    net = nn.Sequential(Doubled(3, 4, 3, 2, 1)).eval()
    fine = ss.eliminate(net, L=0, input_size=16)
    assert isinstance(fine, torch.fx.GraphModule)
    assert error(out(fine, image(16))[:, :, ::2, ::2], out(net, image(16))) < 1e-5


@pytest.mark.parametrize("parametrized", [spectral_norm, weight_norm])
def test_parametrized_weights_learn_in_a_graph_as_in_their_module(parametrized: Any) -> None:
    """The power iteration of spectral_norm writes without gradients."""
    torch.manual_seed(0)
    net = nn.Sequential(
        parametrized(nn.Conv2d(3, 4, 3, 2, 1)), nn.ReLU(), parametrized(nn.Conv2d(4, 4, 3, 2, 1))
    )
    fine, by_hand = (
        ss.eliminate(net.train(), "S1L0", form="graph", input_size=16),
        copy.deepcopy(net),
    )
    by_hand[0].stride = (1, 1)
    for model in (fine, by_hand):
        model(image(16, batch=2)).square().sum().backward()
    for name, parameter in by_hand.named_parameters():
        assert error(fine.get_parameter(name).grad, parameter.grad) < 1e-5, name
    for key, value in by_hand.state_dict().items():
        assert torch.equal(fine.state_dict()[key], value), key


@pytest.mark.parametrize("parametrized", [spectral_norm, weight_norm])
def test_parametrized_weights_on_two_paths(parametrized: Any) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), parametrized(nn.Conv2d(4, 4, 3, 2, 1))
    ).eval()
    both, maps = (
        ss.dual_path(net, L=(0, 1), taps="2", input_size=16),
        ss.features(net, "2", input_size=16),
    )
    both.train()(image(16, batch=2))["large.2"].sum().backward()
    assert all(p.grad is not None for p in both.parameters())
    maps.load_state_dict(both.state_dict())
    assert error(out(both.eval(), image(16))["large.2"], out(maps, image(16))["2"]) < 1e-5


class Table(nn.Module):
    """Adds a table that has one row and one column for each of its cells."""

    def __init__(self, parametrized: bool) -> None:
        super().__init__()
        self.stem, self.table = nn.Conv2d(3, 4, 3, 2, 1), nn.Linear(8, 8, bias=False)
        if parametrized:
            weight_norm(self.table)

    def forward(self, x: Tensor) -> Tensor:
        return self.stem(x) + self.table.weight


@pytest.mark.parametrize("parametrized", [False, True])
def test_a_table_fixes_the_size(parametrized: bool) -> None:
    with pytest.raises(ss.GridError, match="fixed by table"):
        ss.eliminate(Table(parametrized), S=1, input_size=16)


class InTheFormatOfItsInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down, self.last = (nn.Conv2d(i, 4, 3, 2, 1) for i in (3, 4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.down(self.stem(x)).type_as(x).to(x))


def test_what_is_read_for_its_number_format_has_no_say_in_the_grid() -> None:
    net = InTheFormatOfItsInput().eval()
    assert [layer.reduction for layer in ss.inspect(net, 32)] == [(2, 2), (4, 4), (8, 8)]
    for options in ({}, {"dilate": True}):
        ss.verify(net, ss.eliminate(net, L=1, form="graph", input_size=32, **options))


def test_registered_operator_is_edited_as_a_module() -> None:
    ss.register_operator(Taught, read=read_conv, refine=set_stride)
    net = nn.Sequential(Taught(3, 4, 3, 2, 1)).eval()
    fine = ss.eliminate(net, L=0, input_size=16)
    assert type(fine) is nn.Sequential and type(fine[0]) is Taught and fine[0].stride == (1, 1)
    assert ss.inspect(net, 16)[0].operator == "Taught"
    assert error(out(fine, image(16))[:, :, ::2, ::2], out(net, image(16))) < 1e-5
    ss.verify(net, fine, 16)


def test_registered_operator_that_cannot_is_a_refusal() -> None:
    """`set_stride` cannot pad asymmetrically: that is a typed error too."""
    ss.register_operator(Taught, read=read_conv, refine=set_stride)
    with pytest.raises(ss.SurgeryError):
        ss.eliminate(nn.Sequential(Taught(3, 4, 4, 2, 1)), L=0, input_size=16)


def test_operator_registered_without_refine_is_listed_and_refused() -> None:
    ss.register_operator(Taught, read=read_conv)
    net = nn.Sequential(Taught(3, 4, 3, 2, 1))
    assert ss.inspect(net, 16).strided == (0,)
    with pytest.raises(ss.OperatorError, match="refine"):
        ss.eliminate(net, L=0, input_size=16)


class Renamed(Taught):
    """What a wrong `refine` puts in place."""


def window(**fields: Any) -> ss.Operator:
    return ss.Operator("Taught", "conv", (ss.Window(**{"kernel": 3, **fields}),) * 2)


def put_in_place(module: nn.Module, to: ss.Operator) -> None:
    module.__class__ = Renamed


@pytest.mark.parametrize(
    "read, said",
    [
        (lambda m: window(stride=4), "makes 8x8 cells of 16x16, but by its entry .* 4x4: correct"),
        (lambda m: window(stride=2), "makes 8x8 cells of 16x16, but by its entry .* 7x7: correct"),
        (lambda m: window(stride=2.0), "gives .*whose stride cannot be"),
        (lambda m: window(stride=(2, 2)), "gives .*whose stride cannot be"),
        (lambda m: window(stride=0), "gives .*whose stride cannot be"),
        (lambda m: window(padding="valid"), "gives .*whose padding cannot be"),
        (lambda m: ss.Operator("Taught", "convolution"), "kind 'convolution' is none of conv, "),
        (lambda m: ss.Operator("Taught", "conv", (3, 3)), "windows is a Window of rows and one"),
        (lambda m: None, "gives a NoneType, not an Operator"),
        (lambda m: m.strides, "`read` fails: 'Taught' object has no attribute 'strides'"),
    ],
)
def test_a_wrong_teaching_is_refused_by_name(read: Any, said: str) -> None:
    ss.register_operator(Taught, read=read, refine=set_stride)
    net = nn.Sequential(Taught(3, 4, 3, 2, 1))
    for call in (ss.inspect, ss.cost):
        with pytest.raises(ss.OperatorError, match=f"Taught.*{said}"):
            call(net, 16)


def test_a_refine_must_put_what_is_known_in_place() -> None:
    ss.register_operator(Taught, read=read_conv, refine=put_in_place)
    net = nn.Sequential(Taught(3, 4, 3, 2, 1))
    with pytest.raises(ss.OperatorError, match="puts a Renamed in place, .*register_operator it"):
        ss.eliminate(net, L=0, input_size=16)
    assert type(net[0]) is Taught
    for wrong in ({"read": 3}, {"read": read_conv, "refine": "set_stride"}):
        with pytest.raises(TypeError, match="of Taught are functions"):
            ss.register_operator(Taught, **wrong)
    with pytest.raises(TypeError, match="takes a module class"):
        ss.register_operator(Taught(3, 4, 3), read=read_conv)


@pytest.mark.parametrize("name", ["resnet18", "torchvision/googlenet", "torchvision/densenet121"])
def test_pool_is_kept_or_removed(name: str) -> None:
    net, x = create(name), image(64)
    pool = next(la for la in ss.inspect(net, 64) if "MaxPool" in la.operator)
    kept, removed = (
        ss.eliminate(net, L=pool.index, pool=p, input_size=64) for p in ("keep", "remove")
    )
    given = torch.relu(torch.randn(1, 8, 16, 16))
    before, after = (
        out(net.get_submodule(pool.name), given),
        out(kept.get_submodule(pool.name), given),
    )
    assert after[:, :, ::2, ::2].equal(before)
    assert kept.surgery.pool == "keep" and removed.surgery.pool == "remove"
    assert not out(kept, x).equal(out(removed, x))
    for fine in (kept, removed):
        ss.verify(net, fine, 64)


def test_patch_stem_goes_to_two() -> None:
    net, x = create("convnext_atto"), image(64)
    half, whole = (
        ss.eliminate(net, L=0, stride=2, input_size=64),
        ss.eliminate(net, L=0, input_size=64),
    )
    assert half.stem[0].stride == (2, 2) and whole.stem[0].stride == (1, 1)
    coarse = out(net.stem[0], x)
    assert error(out(half.stem[0], x)[:, :, ::2, ::2], coarse) < 1e-5
    assert error(out(whole.stem[0], x)[:, :, ::4, ::4], coarse) < 1e-5
    assert [i["reduction"] for i in half.feature_info] == [2, 4, 8, 16]


@pytest.mark.parametrize(
    "name", ["resnet18", "tf_efficientnet_b0", "convnextv2_atto", "torchvision/swin_t"]
)
@pytest.mark.parametrize("axis", ["h", "w"])
def test_one_axis(name: str, axis: str) -> None:
    net = create(name)
    fine = ss.eliminate(net, S=1, axis=axis, input_size=64)
    before, after = ss.inspect(net, 64)[0], ss.inspect(fine, 64)[0]
    changed, still = (0, 1) if axis == "h" else (1, 0)
    k = before.stride[0]
    assert after.stride[changed] == 1 and after.stride[still] == k
    assert (
        after.out_grid[changed] == k * before.out_grid[changed]
        and after.out_grid[still] == before.out_grid[still]
    )
    ss.verify(net, fine, 64)


def test_layers_by_name_number_and_surgery_are_the_same_plan() -> None:
    net = create("mobilenetv1_100")
    report = ss.inspect(net)
    wanted = ss.eliminate(net, S=2, L=(4, 6), input_size=64).surgery
    assert wanted == ss.Surgery(2, (4, 6), input_size=(64, 64)) and wanted.name == "S2L4-6"
    for S, L in (
        (None, [report[4].name, report[6].name]),
        (None, (4, 6)),
        ("S2L4-6", None),
        (2, [4, report[6].name]),
    ):
        assert ss.eliminate(net, S, L, input_size=64).surgery == wanted
    assert ss.eliminate(net, S=2, input_size=64).surgery.L == (0, 2)
    assert ss.eliminate(net, wanted, input_size=64).surgery == wanted


def test_a_surgery_given_as_a_plan_keeps_its_options() -> None:
    net = create("resnet18")
    asked = ss.Surgery(1, (0,), axis="w", pool="keep")
    done = ss.eliminate(net, asked, input_size=64).surgery
    assert (done.axis, done.pool) == ("w", "keep")


def test_surgery_survives_json_and_its_name() -> None:
    before = ss.Surgery(1, (0,), axis="w")
    surgery = ss.Surgery(2, (4, 6), stride=2, pool="keep", input_size=(32, 64), after=before)
    assert ss.Surgery.from_json(surgery.to_json()) == surgery
    assert ss.Surgery.parse(surgery.name) == ss.Surgery(2, (4, 6))
    assert hash(surgery) == hash(ss.Surgery.from_json(surgery.to_json()))


def test_in_place_edits_the_model_itself() -> None:
    net = create("resnet18")
    weight = net.conv1.weight
    assert ss.eliminate(net, S=1, input_size=64, inplace=True) is net
    assert net.conv1.stride == (1, 1) and net.conv1.weight is weight and net.surgery.name == "S1L0"


@pytest.mark.parametrize("size", [(64, 128), (96, 64), (65, 97)])
def test_inputs_that_are_not_square(size: tuple[int, int]) -> None:
    net = create("tf_efficientnet_b0")
    fine = ss.eliminate(net, S=1, input_size=size)
    x = image(*size)
    coarse = out(net.conv_stem, x)
    assert error(out(fine.conv_stem, x)[:, :, ::2, ::2], coarse) < 1e-5
    assert fine.surgery.input_size == size
    assert out(fine, x).shape == out(net, x).shape


@pytest.mark.parametrize(
    "name",
    ["resnet18", "tf_efficientnet_b0", "convnextv2_atto", "torchvision/swin_t", "inception_v3"],
)
def test_surgery_after_surgery(name: str) -> None:
    """Two in turn are the two at once, and the recipe remembers both."""
    net, size = create(name), 192 if name == "inception_v3" else 64
    firsts = [t.layers[0] for t in ss.inspect(net, size).transitions][:2]
    once = ss.eliminate(net, L=firsts, pool="keep", input_size=size)
    first = ss.eliminate(net, L=firsts[0], pool="keep", input_size=size)
    twice = ss.eliminate(
        first, L=ss.inspect(first, size).transitions[0].layers[0], pool="keep", input_size=size
    )
    assert error(out(twice, image(size)), out(once, image(size))) < 1e-5
    assert twice.surgery.after == first.surgery and twice.surgery.after.after is None
    replayed = ss.eliminate(create(name), ss.Surgery.from_json(twice.surgery.to_json()))
    assert out(replayed, image(size)).equal(out(twice, image(size)))
    ss.verify(net, twice, size)


def test_stride_taken_in_two_steps() -> None:
    net, x = create("convnextv2_atto"), image(64)
    half = ss.eliminate(net, L=0, stride=2, input_size=64)
    whole = ss.eliminate(half, L=0, input_size=64)
    assert error(out(whole, x), out(ss.eliminate(net, L=0, input_size=64), x)) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_models_in_other_number_formats(dtype: torch.dtype, bias: bool) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1, bias=bias), nn.BatchNorm2d(4)).eval().to(dtype)
    fine = ss.eliminate(net, L=0, input_size=16)
    assert fine[0].stride == (1, 1) and fine[0].weight.dtype == dtype
    ss.verify(net, fine, 16)
