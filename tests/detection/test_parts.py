"""A part of a model is operated as it would be by itself, and what knows its strides follows."""

import copy
import io
from collections import OrderedDict
from collections.abc import Iterator

import pytest
import timm
import torch
from torch import Tensor, nn
from torchvision.models import detection

import stridesurgery as ss
from stridesurgery._analysis import KINDS
from tests.detection.laws import SMALL
from tests.models import awake


class Detector(nn.Module):
    """Takes images in bytes; its backbone sees them at half their size."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = awake(timm.create_model("resnet10t", num_classes=0, global_pool=""))
        self.head = nn.Conv2d(512, 6, 1)
        self.stride = 64

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.backbone(images[:, :, ::2, ::2] / 255))


@pytest.fixture
def model() -> Detector:
    return Detector().eval()


@pytest.fixture
def known() -> Iterator[None]:
    def follow(before: nn.Module, after: nn.Module, surgery: ss.Surgery, stride: object) -> None:
        assert callable(stride)
        after.stride = 2 * int(stride((before.stride // 2, before.stride // 2))[0])

    ss.detection.register_detector(Detector, at="backbone", follow=follow)
    yield
    del KINDS[Detector]


def test_a_part_is_operated_as_it_is_by_itself(model: Detector) -> None:
    state = {key: value.clone() for key, value in model.state_dict().items()}
    fine = ss.eliminate(model, "S1L0", at="backbone", input_size=(128, 192))
    alone = ss.eliminate(model.backbone, "S1L0", input_size=(64, 96))
    x = torch.rand(3, 3, 128, 192)
    with torch.inference_mode():
        found = fine(x)
        torch.testing.assert_close(found, model.head(alone(x[:, :, ::2, ::2] / 255)))
        assert found.shape[2:] == (4, 6) and model(x).shape[2:] == (2, 3)
    assert type(fine) is Detector and fine.surgery.input_size == (128, 192)
    assert fine.backbone.surgery.input_size == (64, 96)  # what it saw
    for net in (model, fine):
        assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    assert not hasattr(model, "surgery") and not hasattr(model.backbone, "surgery")


def test_inspect_cost_compare_and_search_look_at_the_part(model: Detector) -> None:
    part = {"at": "backbone", "input_size": (128, 192)}
    assert ss.inspect(model, **part).layers == ss.inspect(model.backbone, (64, 96)).layers
    assert ss.cost(model, **part).macs == ss.cost(model.backbone, (64, 96)).macs
    row = ss.compare(model, "S1L0", **part)["S1L0"]
    assert row.cost.macs == ss.cost(ss.eliminate(model.backbone, "S1L0"), (64, 96)).macs
    found = ss.search(model, 4.5, **part)
    assert len(found) > 1
    for surgery in (row.surgery, found[0].surgery):  # both are surgeries of the whole
        assert surgery is not None and surgery.at == "backbone"
        assert ss.eliminate(model, surgery).surgery == surgery


def test_a_recipe_of_a_part_is_replayed_and_chained(model: Detector) -> None:
    first = ss.eliminate(model, "S1L0", at="backbone")
    twice = ss.eliminate(first, "S1L3", at="backbone")
    recipe = ss.Surgery.from_json(twice.surgery.to_json())
    again = ss.eliminate(model, recipe)
    x = torch.rand(1, 3, 128, 128)
    with torch.inference_mode():
        torch.testing.assert_close(again(x), twice(x))
    assert ss.verify(model, again, 64).surgery == recipe


def test_what_was_registered_follows(model: Detector, known: None) -> None:
    fine = ss.eliminate(model, "S1L0")
    assert (fine.stride, model.stride) == (32, 64)
    assert ss.inspect(model).model == type(model.backbone).__name__
    assert ss.verify(model, fine, 64).tensors == len(model.state_dict())
    stale = copy.deepcopy(fine)
    stale.stride = 64
    with pytest.raises(ss.SurgeryError, match="stride is 64 where the surgery makes it 32"):
        ss.verify(model, stale, 64)
    holder = nn.Sequential(model)
    with pytest.raises(ss.RequestError, match="holds a Detector; name it: at='0'"):
        ss.eliminate(holder, "S1L0")
    assert ss.eliminate(holder, "S1L0", at="0")[0].stride == 32
    with pytest.raises(ss.RequestError, match="leave inplace out"):
        ss.eliminate(model, "S1L0", inplace=True)


def test_a_part_in_place_and_as_a_graph(model: Detector) -> None:
    x = torch.rand(2, 3, 128, 64)
    wanted = ss.eliminate(model, "S1L0", at="backbone")
    graph = ss.eliminate(model, "S1L0", at="backbone", form="graph")
    parameters = list(model.parameters())
    assert ss.eliminate(model, "S1L0", at="backbone", inplace=True) is model
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    with torch.inference_mode():
        torch.testing.assert_close(graph(x), wanted(x))
        torch.testing.assert_close(model(x), wanted(x))
    file = io.BytesIO()
    torch.save(wanted, file)
    file.seek(0)
    with torch.inference_mode():
        torch.testing.assert_close(torch.load(file, weights_only=False)(x), wanted(x))


def test_weights_that_a_part_shares_stay_shared(model: Detector) -> None:
    model.twin = model.backbone.conv1  # outside of the part
    fine = ss.eliminate(model, "S1L0", at="backbone")
    assert fine.twin is fine.backbone.conv1


class Blind(nn.Module):
    """Holds an anchor generator of torchvision, and is of no known kind."""

    def __init__(self) -> None:
        super().__init__()
        stock = detection.ssd300_vgg16(**SMALL)
        self.backbone, self.boxes, self.never = stock.backbone, stock.anchor_generator, nn.ReLU()

    def forward(self, images: Tensor) -> Tensor:
        return self.backbone(images)["0"]


def test_what_cannot_be_done_is_said(model: Detector) -> None:
    blind = Blind().eval()
    with pytest.raises(
        ss.RequestError, match="register_detector, or operate a part alone with at="
    ):
        ss.eliminate(blind, "S1L9", input_size=300)
    assert ss.eliminate(blind, "S1L9", at="backbone", input_size=300).surgery.name == "S1L9"
    with pytest.raises(
        ss.RequestError, match="'neck' names no submodule of Detector; it holds back"
    ):
        ss.eliminate(model, "S1L0", at="neck")
    with pytest.raises(ss.TraceError, match="cannot be run up to 'never' .*does not call it"):
        ss.eliminate(blind, "S1L0", at="never", input_size=300)
    with pytest.raises(ss.RequestError, match="at is the path of a submodule"):
        ss.Surgery(1, (0,), at=3)
    with pytest.raises(ss.RequestError, match="at is the path of a submodule"):
        ss.inspect(model, at=3)
    with pytest.raises(ss.RequestError, match="class of modules or its qualified name"):
        ss.detection.register_detector(3, at="", follow=lambda *_: None)
    head = detection.retinanet_resnet50_fpn(**SMALL).head  # which takes a list of maps
    with pytest.raises(ss.TraceError) as alone:
        ss.eliminate(head, "S1L0")
    assert "at=" not in str(alone.value)
    whole = nn.Sequential(OrderedDict(backbone=nn.Conv2d(3, 8, 3, 2, 1), head=head))
    with pytest.raises(ss.TraceError, match="operated by itself: at='backbone'"):
        ss.eliminate(whole, "S1L0")
    assert ss.eliminate(whole, "S1L0", at="backbone", input_size=64).surgery.at == "backbone"


class Strided(nn.Module):
    """Reads the numbers of a buffer and of tensors in a list, and keeps what it computed."""

    def __init__(self) -> None:
        super().__init__()
        self.net = awake(timm.create_model("resnet10t", num_classes=0, global_pool=""))
        self.register_buffer("strides", torch.tensor([16.0, 32.0]))
        self.shape: object = None

    def forward(self, x: Tensor) -> Tensor:
        maps = self.net(x)
        if self.shape != maps.shape:
            self.shape, self.rows = maps.shape, torch.arange(maps.shape[2]).to(maps)
        stride = self.strides.sqrt()[1] ** 2  # all that is computed from a known tensor is known
        return maps + self.rows[:, None] * maps.new_full((1, 1, 1, 1), stride)


@pytest.mark.parametrize("form", ["module", "graph"])
def test_numbers_of_a_buffer_are_known_and_nothing_is_kept(form: str) -> None:
    net = Strided().eval()
    fine = ss.eliminate(net, "S1L0", form=form, input_size=64)
    ss.verify(net, fine)
    assert net.shape is None
    x, alone = torch.rand(3, 3, 64, 96), ss.eliminate(net.net, "S1L0")
    with torch.inference_mode():
        wanted = net.net(x), alone(x)
        for found, maps in zip((net(x), fine(x)), wanted, strict=True):
            rows = torch.arange(maps.shape[2])[:, None]
            torch.testing.assert_close(found, maps + 32 * rows)
    assert ss.cost(net, 64).macs == ss.cost(net.net, 64).macs


def test_a_decision_by_a_buffers_numbers_is_lost_in_a_graph() -> None:
    class Decides(Strided):
        def forward(self, x: Tensor) -> Tensor:
            return self.net(x) if self.strides[0] > 8 else x

    net = Decides().eval()
    assert ss.verify(net, ss.eliminate(net, "S1L0", input_size=64)).exact
    with pytest.raises(ss.OperatorError, match="reads the numbers of a buffer"):
        ss.eliminate(net, "S1L0", form="graph", input_size=64)
