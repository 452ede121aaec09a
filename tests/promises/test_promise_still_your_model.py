"""Promise 4: the result is the same class of model, and what one does with a model still works."""

import copy
import io
from collections import OrderedDict
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import stridesurgery as ss
from tests.conftest import Case, one_of
from tests.models import create, image, size_of
from tests.watch import error

PLAIN = (
    "resnet18",
    "mobilenetv2_050",
    "regnety_002",
    "convnextv2_atto",
    "efficientnet_lite0",
    "pvt_v2_b0",
)
REWRITTEN = (
    "inception_v3",
    "ghostnetv2_100",
    "torchvision/shufflenet_v2_x0_5",
    "torchvision/squeezenet1_1",
    "resnet18d",
)
CHECKPOINTED = (
    "resnet18",
    "mobilenetv3_small_050",
    "convnextv2_atto",
    "regnetx_002",
    "resnetv2_18",
    "densenet121",
)
HAS_FEATURES = (
    "resnet18",
    "mobilenetv3_small_050",
    "hrnet_w18_small",
    "convnextv2_atto",
    "regnetx_002",
    "dla34",
)


def graph_of(name: str, **options: Any) -> tuple[nn.Module, nn.Module]:
    model = create(name, **options)
    return model, ss.eliminate(model, S=1, form="graph", input_size=size_of(name))


def features(model: nn.Module, x: Tensor, seed: int = 0) -> Tensor:
    """What the model computes; what it drops in training is the same at every call."""
    torch.manual_seed(seed)
    with torch.no_grad():
        return model(x)


def test_class_and_mode_are_the_original_ones(case: Case) -> None:
    for fine in case.operated:
        assert [n for n, _ in fine.named_modules()] == [n for n, _ in case.original.named_modules()]
        assert [m.training for m in fine.modules()] == [m.training for m in case.original.modules()]
        assert isinstance(fine, type(case.original)) or isinstance(fine, torch.fx.GraphModule)
        for name, module in case.original.named_modules():
            if name:
                assert (
                    isinstance(fine.get_submodule(name), type(module))
                    or "Same" in type(module).__name__
                ), name


def test_stride_in_modules_gives_a_module(case: Case) -> None:
    modules = dict(case.original.named_modules())
    for transition, fine in zip(case.report.transitions, case.operated, strict=True):
        if all(case.report[i].name in modules for i in transition.layers):
            assert type(fine) is type(case.original)


@pytest.mark.half
def test_recipe_replayed_on_a_fresh_model_is_the_result(case: Case) -> None:
    fine = case.operated[0]
    buffer = io.BytesIO()
    torch.save({"state": fine.state_dict(), "recipe": fine.surgery.to_json()}, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=True)
    fresh = ss.eliminate(create(case.name), ss.Surgery.from_json(loaded["recipe"])).eval()
    fresh.load_state_dict(loaded["state"])
    assert fresh.surgery == fine.surgery
    assert features(fresh, case.image).equal(features(fine, case.image))


@pytest.mark.half
def test_deepcopy_and_whole_model_save(case: Case) -> None:
    fine = case.operated[-1]
    wanted = features(fine, case.image)
    assert features(copy.deepcopy(fine), case.image).equal(wanted)
    buffer = io.BytesIO()
    torch.save(fine, buffer)
    buffer.seek(0)
    assert features(torch.load(buffer, weights_only=False), case.image).equal(wanted)


@pytest.mark.half
def test_every_parameter_of_the_result_learns(case: Case) -> None:
    """Which parameters get a gradient is the same as in the original."""
    reached = []
    for model in (case.original, case.operated[0]):
        copied = copy.deepcopy(model)
        copied(case.image).square().sum().backward()
        reached.append(
            {
                n
                for n, p in copied.named_parameters()
                if p.grad is not None and p.grad.isfinite().all()
            }
        )
    assert reached[0] == reached[1] != set()


@pytest.mark.parametrize("name", PLAIN)
def test_graph_form_computes_what_the_module_form_computes(name: str) -> None:
    model, graph = graph_of(name)
    module = ss.eliminate(model, S=1, input_size=size_of(name))
    x = image(size_of(name), batch=2)
    assert error(features(graph, x), features(module, x)) < 1e-5
    assert error(features(graph.train(), x), features(module.train(), x)) < 1e-5


@pytest.mark.parametrize("name", (*PLAIN, *REWRITTEN))
def test_graph_form_survives_copying_and_saving_with_its_switch(name: str) -> None:
    x = image(size_of(name), batch=2)
    _, graph = graph_of(name)
    wanted = features(graph, x)
    trained = features(copy.deepcopy(graph).train(), x)
    if any(isinstance(m, nn.BatchNorm2d) for m in graph.modules()):
        assert not trained.equal(wanted)
    buffer = io.BytesIO()
    torch.save(graph, buffer)
    buffer.seek(0)
    for other in (
        copy.deepcopy(graph),
        torch.load(buffer, weights_only=False),
        copy.deepcopy(copy.copy(graph)),
    ):
        other.train()
        assert features(other, x).equal(trained)
        assert all(m.training for m in other.modules())
        other.load_state_dict(graph.state_dict())
        assert features(other.eval(), x).equal(wanted)
    assert features(graph, x).equal(wanted)


@pytest.mark.parametrize(
    "name,options",
    [
        ("resnet18", {"drop_rate": 0.5}),
        ("resnet18", {"drop_path_rate": 0.5}),
        ("efficientnet_lite0", {"drop_path_rate": 0.5}),
        ("convnextv2_atto", {"drop_path_rate": 0.5}),
        ("pvt_v2_b0", {"drop_path_rate": 0.5}),
        ("torchvision/squeezenet1_1", {"dropout": 0.5}),
        ("torchvision/efficientnet_b0", {"stochastic_depth_prob": 0.5}),
    ],
)
def test_graph_form_drops_in_training_only(name: str, options: dict[str, float]) -> None:
    x = image(size_of(name), batch=2)
    model, graph = graph_of(name, **options)
    for norm in (m for m in graph.modules() if hasattr(m, "momentum")):
        norm.momentum = 0.0  # training leaves the statistics alone
    still = features(graph, x)
    assert features(graph, x).equal(still)
    graph.train()
    draws = [features(graph, x, seed) for seed in range(8)]
    assert any(not draw.equal(draws[0]) for draw in draws[1:])
    assert features(graph.eval(), x).equal(still)


@pytest.mark.parametrize("name", ("resnet18", "efficientnet_lite0", "convnextv2_atto"))
def test_train_mode_result_stays_in_train_mode(name: str) -> None:
    for form in ("module", "graph"):
        fine = ss.eliminate(create(name).train(), S=1, input_size=size_of(name), form=form)
        assert all(m.training for m in fine.modules())


class Wired(nn.Module):
    """Refers to its parts in every way that Python has."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two = (nn.Conv2d(i, 4, 3, 2, 1) for i in (3, 4, 4))
        self.two.weight = self.one.weight
        self.register_buffer("scale", torch.ones(4, 1, 1), persistent=False)
        self.view, self.mean = self.scale[:2], torch.zeros(1)
        self.row, self.call, self.settings = (
            [self.one, self.two],
            self.run,
            {"sizes": [1, 2], (0, 1): self.stem},
        )

    def run(self, x: Tensor) -> Tensor:
        for conv in self.row:
            x = conv(x)
        return x * self.scale + self.mean

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self.settings[0, 1](x))


def test_a_copy_is_as_deep_as_deepcopy_makes_it() -> None:
    net = Wired().eval()
    fine = ss.eliminate(net, "S1L0", input_size=32)
    assert (
        fine.row == [fine.one, fine.two]
        and fine.call.__self__ is fine
        and fine.settings[0, 1] is fine.stem
    )
    assert fine.two.weight is fine.one.weight is not net.one.weight
    assert fine.settings["sizes"] == [1, 2] and fine.settings["sizes"] is not net.settings["sizes"]
    assert fine.mean is not net.mean and list(fine.state_dict()) == list(net.state_dict())
    with torch.no_grad():
        assert error(fine.stem(image(32))[..., ::2, ::2], net.stem(image(32))) < 1e-5
        for parameter in fine.parameters():
            parameter.zero_()
        assert net(image(32)).abs().max() > 0 == fine(image(32)).abs().max()


class Levels(nn.Module):
    """Returns its maps as torchvision's pyramids do."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1)

    def forward(self, x: Tensor) -> dict[str, Any]:
        fine = self.stem(x)
        return OrderedDict(fine=fine, rest=[OrderedDict(coarse=self.down(fine))])


@pytest.mark.parametrize("options", [{"form": "graph"}, {"dilate": True}])
def test_ordered_dicts_stay_ordered_dicts(options: dict[str, Any]) -> None:
    net, x = Levels().eval(), image(16)
    fine = ss.eliminate(net, S=1, input_size=16, **options)
    ss.verify(net, fine)
    buffer = io.BytesIO()
    torch.save(fine, buffer)
    buffer.seek(0)
    for model in (
        fine,
        copy.deepcopy(fine),
        torch.load(buffer, weights_only=False),
        ss.eliminate(net, S=1),
    ):
        found = model(x)
        assert type(found) is OrderedDict and list(found) == ["fine", "rest"]
        assert type(found["rest"][0]) is OrderedDict
        assert error(found["fine"][..., ::2, ::2], net.stem(x)) < 1e-5
        assert found["rest"][0]["coarse"].shape[-1] == 8
    assert ss.features(fine, input_size=16).feature_info.reduction() == [1, 2]


def test_hooks_survive_and_run() -> None:
    model, seen = create("resnet18"), []
    model.conv1.register_forward_hook(lambda module, args, result: seen.append(tuple(result.shape)))
    model.layer2[0].register_forward_pre_hook(lambda module, args: seen.append("layer2"))
    fine = ss.eliminate(model, L=0, input_size=64)
    assert seen == []  # nothing has run yet
    fine(image(64))
    assert seen == [(1, 64, 64, 64), "layer2"]


def test_frozen_parameters_stay_frozen() -> None:
    model = create("resnet18")
    model.conv1.weight.requires_grad_(False)
    fine = ss.eliminate(model, L=0, input_size=64)
    assert not fine.conv1.weight.requires_grad and fine.fc.weight.requires_grad


@pytest.mark.parametrize("name", HAS_FEATURES)
def test_forward_features_and_recorded_reductions(name: str) -> None:
    model = create(name)
    report = ss.inspect(model, 64)
    for transition in report.transitions:
        fine = ss.eliminate(model, L=one_of(report, transition), input_size=64)
        level, k = transition.level[0], transition.factor[0]
        for before, after in zip(infos(model), infos(fine), strict=True):
            assert after == (before / k if before > level else before)
        grown = fine.forward_features(image(64)).shape[-2:]
        assert tuple(grown) == tuple(
            int(k) * s for s in model.forward_features(image(64)).shape[-2:]
        )


def infos(model: nn.Module) -> list[int]:
    return [entry["reduction"] for entry in getattr(model.feature_info, "info", model.feature_info)]


@pytest.mark.parametrize(
    "name", ("resnet18", "mobilenetv3_small_050", "hrnet_w18_small", "convnextv2_atto")
)
def test_feature_backbones_tell_the_reductions_of_their_maps(name: str) -> None:
    """timm's features_only models: what `feature_info.reduction()` says is what one measures."""
    model = create(name, features_only=True)
    report = ss.inspect(model, 64)
    for transition in report.transitions:
        fine = ss.eliminate(model, L=one_of(report, transition), input_size=64)
        with torch.no_grad():
            measured = [64 / m.shape[-1] for m in fine(image(64))]
        assert fine.feature_info.reduction() == measured
        assert (
            model.feature_info.reduction()
            == timm.create_model(name, features_only=True).feature_info.reduction()
        )


@pytest.mark.parametrize("name", CHECKPOINTED)
def test_gradient_checkpointing_gives_the_same_gradients(name: str) -> None:
    fine = ss.eliminate(create(name), S=2, input_size=64)
    grads = []
    for enable in (False, True):
        fine.set_grad_checkpointing(enable)
        fine.zero_grad()
        fine(image(64)).sum().backward()
        grads.append([p.grad.clone() for p in fine.parameters() if p.grad is not None])
    for plain, checkpointed in zip(*grads, strict=True):
        assert error(checkpointed, plain) < 1e-5


@pytest.mark.parametrize(
    "name",
    ("resnet18", "efficientnet_lite0", "tf_efficientnet_b0", "resnetblur18", "convnextv2_atto"),
)
def test_compiles_without_graph_breaks(name: str) -> None:
    torch.compiler.reset()
    fine = ss.eliminate(create(name), S=2, input_size=64)
    x = image(64)
    with torch.no_grad():
        assert error(torch.compile(fine, backend="eager", fullgraph=True)(x), fine(x)) < 1e-5


@pytest.mark.parametrize("name", ("resnet18", "tf_efficientnet_b0", "torchvision/squeezenet1_1"))
def test_exports(name: str) -> None:
    fine = ss.eliminate(create(name), S=2, pool="keep", input_size=64)
    x = image(64)
    program = torch.export.export(fine, (x,)).module()
    assert error(features(program, x), features(fine, x)) < 1e-5


def test_result_runs_at_other_sizes_and_in_other_formats() -> None:
    for form in ("module", "graph"):
        fine = ss.eliminate(create("tf_efficientnet_b0"), S=1, input_size=64, form=form)
        wanted = features(fine.double(), image(96, 160).double())
        assert error(features(fine.float(), image(96, 160)).double(), wanted) < 1e-4
        assert features(fine.to(memory_format=torch.channels_last), image(64)).isfinite().all()
