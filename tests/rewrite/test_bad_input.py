"""What bad input gets: a typed error that names the place, the fact and the way out, and a model left as it was."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import stridesurgery as ss
from tests.models import create
from tests.watch import snapshot, unchanged


@pytest.fixture(scope="module")
def net() -> Iterator[nn.Module]:
    model = create("mobilenetv1_100")
    before = snapshot(model)
    yield model
    assert unchanged(before, model) == []


STRIDED = "0, 2, 4, 6, 12"


@pytest.mark.parametrize(
    "request_,said",
    [
        ({"L": 5}, ["layer 5", "blocks.", "stride 1", STRIDED]),
        ({"L": 99}, ["layer 99", "0 to 13", STRIDED]),
        ({"L": -1}, ["layer -1", STRIDED]),
        ({"L": (0, 99)}, ["99"]),
        ({"L": "nowhere"}, ["'nowhere'", STRIDED]),
        ({"L": 1.5}, ["1.5"]),
        ({"L": True}, ["True"]),
        ({"L": ()}, ["empty", STRIDED]),
        ({}, ["S1L0", STRIDED]),
        ({"S": 2, "L": 0}, ["S is 2", STRIDED]),
        ({"S": 1, "L": (0, 2)}, ["S is 1", STRIDED]),
        ({"S": 0}, ["positive", "0"]),
        ({"S": 6}, ["5 transitions", STRIDED]),
        ({"S": "S2L0"}, ["S2L0", "2", "1"]),
        ({"S": "L0S1"}, ["L0S1", "S2L4-6"]),
        ({"S": "S2L0-0"}, ["twice"]),
        ({"S": ""}, ["S1L0"]),
        ({"S": "S1L0", "L": 0}, ["S1L0"]),
        ({"S": 1, "axis": "x"}, ["'h', 'w'", "'x'"]),
        ({"S": 1, "stride": 2}, ["nothing to eliminate", "2 is to remain"]),
        ({"S": 1, "stride": 3}, ["3", "divide"]),
        ({"S": 1, "stride": 0}, ["positive", "0"]),
        ({"S": 1, "stride": 1.0}, ["positive", "1.0"]),
        ({"S": 1, "pool": "drop"}, ["'remove'", "'drop'"]),
        ({"S": 1, "form": "onnx"}, ["'module'", "'onnx'"]),
        ({"S": 1, "input_size": 0}, ["input_size", "0"]),
        ({"S": 1, "input_size": (64,)}, ["input_size", "64"]),
        ({"S": 1, "input_size": (64, 64, 64)}, ["input_size"]),
        ({"S": 1, "input_size": 64.0}, ["input_size"]),
        ({"S": 1, "input_size": "64"}, ["input_size"]),
    ],
    ids=str,
)
def test_wrong_requests(net: nn.Module, request_: dict[str, Any], said: list[str]) -> None:
    with pytest.raises(ss.RequestError) as raised:
        ss.eliminate(net, **request_)
    assert all(word in str(raised.value) for word in said), raised.value


def test_every_error_is_a_value_error() -> None:
    for kind in (ss.RequestError, ss.ModelError, ss.TraceError, ss.OperatorError, ss.GridError):
        assert issubclass(kind, ss.SurgeryError) and issubclass(kind, ValueError)


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[1]", '{"S": 1}', '{"S": "1", "L": [0]}', '{"S": 1, "L": [0], "who": 2}', "1"],
)
def test_recipes_that_are_none(text: str) -> None:
    with pytest.raises(ss.RequestError):
        ss.Surgery.from_json(text)


@pytest.mark.parametrize(
    "thing", [None, 3, "resnet18", torch.zeros(3), [nn.Conv2d(3, 3, 1)], nn.Conv2d]
)
def test_no_module(thing: Any) -> None:
    for call in (ss.inspect, lambda m: ss.eliminate(m, S=1)):
        with pytest.raises(ss.ModelError, match="Module"):
            call(thing)


def test_wrapped_and_compiled_models() -> None:
    model = create("resnet18")
    with pytest.raises(ss.ModelError, match=r"DataParallel.*\.module"):
        ss.eliminate(nn.DataParallel(model), S=1)
    with pytest.raises(ss.ModelError, match=r"\._orig_mod"):
        ss.eliminate(torch.compile(model, backend="eager"), S=1)
    with pytest.raises(ss.ModelError, match="ScriptModule"):
        ss.eliminate(torch.jit.trace(model, torch.zeros(1, 3, 64, 64)), S=1)


class Failing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise KeyError("nothing here")


class Reading(nn.Module):
    """Looks at a value, which a recording without weights does not have."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum() > 0 else x


@pytest.mark.parametrize("inner", [Failing(), Reading()], ids=["raises", "reads a value"])
def test_models_that_cannot_be_traced(inner: nn.Module) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.Sequential(inner))
    with pytest.raises(ss.TraceError) as raised:
        ss.eliminate(model, S=1)
    assert "'1.0'" in str(raised.value) and type(inner).__name__ in str(raised.value)
    assert "test_bad_input.py:" in str(raised.value)


class Hooked(nn.Module):
    """Has a layer with a hook."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.act = nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.stem(x))


def test_an_error_of_the_library_is_said_once_with_the_place() -> None:
    model = Hooked()
    model.act.register_forward_hook(lambda module, args, y: y[..., 1:])
    said = r"^Hooked cannot be traced at 32x32 pixels \(test_bad_input\.py:\d+: return self.*\): a forward hook of act"
    with pytest.raises(ss.TraceError, match=said):
        ss.eliminate(model, S=1, input_size=32)


def test_operator_that_is_not_understood() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.LPPool2d(2, 2), nn.Conv2d(4, 4, 3, 2, 1))
    assert ss.inspect(model, 64)[1].operator == "LPPool2d"
    with pytest.raises(ss.OperatorError, match="(?s)1 .LPPool2d.*register_operator"):
        ss.eliminate(model, L=1, input_size=64)
    assert ss.eliminate(model, L=2, input_size=64)[2].stride == (1, 1)


@pytest.mark.parametrize(
    "name,parameter",
    [
        ("vit_tiny_patch16_224", "pos_embed"),
        ("levit_conv_128s", "attention_bias"),
        ("mixer_s32_224", "mlp_tokens"),
    ],
)
def test_size_fixed_by_a_parameter(name: str, parameter: str) -> None:
    with pytest.raises(ss.SurgeryError, match=parameter):
        ss.eliminate(create(name), S=1)


class Cropping(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, :16, :16]


class Resizing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, size=(16, 16))


@pytest.mark.parametrize("fixed", [Cropping(), Resizing()], ids=lambda m: type(m).__name__)
def test_map_that_would_leave_the_grid(fixed: nn.Module) -> None:
    """A map that keeps its size although the map before it grows."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), fixed, nn.Conv2d(4, 4, 3, 1, 1))
    with pytest.raises(ss.GridError, match="grid"):
        ss.eliminate(model, L=0, input_size=64)


def test_input_too_small() -> None:
    for call in (ss.inspect, lambda m, s: ss.eliminate(m, S=1, input_size=s)):
        with pytest.raises(ss.TraceError, match="too small.*larger input_size"):
            call(create("inception_v3"), 20)


def test_graph_cannot_be_made_in_place() -> None:
    model = create("resnet18")
    before = snapshot(model)
    with pytest.raises(ss.RequestError, match="in place"):
        ss.eliminate(model, S=1, form="graph", inplace=True)
    assert unchanged(before, model) == []


def test_verify_finds_what_is_off() -> None:
    net = create("resnet18")
    with pytest.raises(ss.RequestError, match="no .surgery"):
        ss.verify(net, net)
    fine = ss.eliminate(net, S=1, input_size=64)
    with torch.no_grad():
        fine.layer1[0].conv1.weight[0, 0, 0, 0] += 1
    with pytest.raises(ss.SurgeryError, match=r"layer1\.0\.conv1\.weight"):
        ss.verify(net, fine)
    moved = ss.eliminate(net, S=1, input_size=64)
    moved.conv1.padding = (2, 2)
    with pytest.raises(ss.SurgeryError, match="conv1"):
        ss.verify(net, moved)
    stale = ss.eliminate(net, S=1, input_size=64)
    stale.layer2[0].conv1.stride = (1, 1)
    with pytest.raises(ss.SurgeryError):
        ss.verify(net, stale)


def test_a_head_of_a_fixed_size_names_features() -> None:
    body = [nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, 1, 1)]
    model = nn.Sequential(*body, nn.Flatten(), nn.Linear(4 * 16 * 16, 5)).eval()
    with pytest.raises(ss.GridError, match=r"fixed by 4\.weight.*operate on `features\(model\)`"):
        ss.eliminate(model, "S1L0", input_size=32)
    body_alone = ss.features(model, "2", input_size=32)
    fine = ss.eliminate(body_alone, "S1L0", input_size=32)
    assert fine(torch.rand(1, 3, 32, 32))["2"].shape[2:] == (32, 32)
