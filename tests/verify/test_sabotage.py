"""Operated models that somebody has spoilt: `verify` fails on each and names the place."""

import types
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import stridesurgery as ss
from stridesurgery._node import info
from stridesurgery._trace import copied
from tests.models import awake, create
from tests.watch import snapshot, unchanged

SIZE = 64
Spoil = Callable[[Any], Any]


class Answers(nn.Module):
    """Returns a dict and a tuple, and has a branch, a buffer that is not saved, and a norm of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.down = (
            nn.Conv2d(3, 8, 3, 2, 1),
            nn.BatchNorm2d(8),
            nn.Conv2d(8, 8, 3, 2, 1),
        )
        self.left, self.right = nn.Conv2d(8, 8, 3, 1, 1), nn.Conv2d(8, 8, 3, 1, 1)
        self.act, self.pool = nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        self.register_buffer("gain", torch.full((1,), 2.0), persistent=False)

    def forward(self, x: Tensor) -> dict[str, Any]:
        y = self.pool(self.norm(self.stem(x)))
        z = self.act(self.left(y)) + self.right(y)
        return {"maps": (y, self.down(z) * self.gain), "mean": z.mean((2, 3)), "count": 4}


def answers() -> nn.Module:
    torch.manual_seed(0)
    return awake(Answers()).eval()


class Gated(Answers):
    """The same with a group norm, which has no dilated form."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.Sequential(self.norm, nn.GroupNorm(2, 8))


def gated() -> nn.Module:
    torch.manual_seed(0)
    return awake(Gated()).eval()


def vit() -> nn.Module:
    return create("vit_tiny_patch16_224", dynamic_img_size=True, img_size=32, depth=1)


def resnet() -> nn.Module:
    return create("resnet18")


def levels() -> nn.Module:
    return create("resnet18", features_only=True)


def setting(path: str, **values: Any) -> Spoil:
    """Set attributes of a module."""

    def spoil(net: nn.Module) -> None:
        module = net.get_submodule(path)
        for name, value in values.items():
            setattr(module, name, value)

    return spoil


def putting(path: str, module: Callable[[], nn.Module]) -> Spoil:
    """Put another module in a place."""

    def spoil(net: nn.Module) -> None:
        owner, _, name = path.rpartition(".")
        setattr(net.get_submodule(owner), name, module().eval())

    return spoil


def adding(name: str) -> Spoil:
    """Add one to the first value of a weight or buffer."""

    def spoil(net: nn.Module) -> None:
        owner, _, own = name.rpartition(".")
        with torch.no_grad():
            getattr(net.get_submodule(owner), own).view(-1)[0].add_(1)

    return spoil


def answering(change: Callable[[Any], Any]) -> Spoil:
    """Change what the model returns."""

    def spoil(net: nn.Module) -> None:
        forward = net.forward
        net.forward = lambda x: change(forward(x))

    return spoil


def hooking(path: str, before: bool = False) -> Spoil:
    """Add a hook that doubles what a module returns, or takes."""

    def spoil(net: nn.Module) -> None:
        module = net.get_submodule(path)
        if before:
            module.register_forward_pre_hook(lambda module, args: (args[0] * 2,))
        else:
            module.register_forward_hook(lambda module, args, result: result * 2)

    return spoil


def asking(**fields: Any) -> Spoil:
    """Attach another recipe."""

    def spoil(net: nn.Module) -> None:
        net.surgery = replace(net.surgery, **fields)

    return spoil


def swapped(net: nn.Module) -> None:
    net.left, net.right = net.right, net.left


def without_branch(net: nn.Module) -> None:
    block = net.layer1[0]
    block.forward = types.MethodType(
        lambda self, x: self.act2(self.bn2(self.conv2(self.act1(self.bn1(self.conv1(x)))))), block
    )


def stale(net: nn.Module) -> None:
    net.feature_info[-1]["reduction"] = 99


def stale_levels(net: nn.Module) -> None:
    net.feature_info.info[2]["reduction"] = 8


def counting_in(norm: nn.Module) -> None:
    """Move a statistic in eval mode."""
    norm.register_forward_pre_hook(lambda module, args: module.num_batches_tracked.add_(1) and None)


def counting(net: nn.Module) -> None:
    """Move a statistic in eval mode."""
    net.norm.register_forward_pre_hook(
        lambda module, args: module.running_mean.add_(1e-9 + 1) and None
    )


def in_graphs(name: str, change: Callable[[fx.Node], None]) -> Spoil:
    """Change the first node that calls something."""

    def spoil(net: Any) -> None:
        for graph in set(net.graphs.values()):
            change(
                next(n for n in graph.nodes if str(getattr(n.target, "__name__", n.target)) == name)
            )
        net.graph = net.graphs[net.training]

    return spoil


def in_train_graph(net: Any) -> None:
    net.graphs = {**net.graphs, True: copied(net.graphs[True])}
    next(n for n in net.graphs[True].nodes if n.target == "left").target = "right"


def in_train_mode(net: nn.Module) -> None:
    net.left.register_forward_hook(
        lambda module, args, result: result * (2 if module.training else 1)
    )


class Fixed(nn.Module):
    """Computes with sizes as constants: a graph of it runs at one size."""

    def forward(self, x: Tensor) -> Tensor:
        return x.expand(-1, -1, int(x.shape[2]), int(x.shape[3]))


def in_train_statistics(net: nn.Module) -> None:
    """Leave the answer as it is and spoil what is kept for later."""

    def count(module: nn.Module, args: Any, y: Any) -> None:
        if module.training:
            module.norm.running_mean.add_(1)

    net.register_forward_hook(count)


def in_train_answer(net: nn.Module) -> None:
    forward = net.forward
    net.forward = lambda x: {**forward(x), **({"aux": x} if net.training else {})}


def failing(when: Callable[[nn.Module, Tensor], bool]) -> Spoil:
    def spoil(net: nn.Module) -> None:
        forward = net.forward

        def fail(x: Tensor) -> Any:
            if not x.is_meta and when(net, x):
                raise ValueError("no")
            return forward(x)

        net.forward = fail

    return spoil


class Tied(Answers):
    def __init__(self) -> None:
        super().__init__()
        self.right.weight = self.left.weight


def tied() -> nn.Module:
    torch.manual_seed(0)
    return awake(Tied()).eval()


def untied(net: nn.Module) -> None:
    net.right.weight = nn.Parameter(net.right.weight.detach().clone())


def one_image(y: dict[str, Any]) -> dict[str, Any]:
    return {**y, "mean": y["mean"] * (2 if len(y["mean"]) == 1 else 1)}


def target(value: Any) -> Callable[[fx.Node], None]:
    return lambda node: setattr(node, "target", value)


def flipped(axis: int) -> Spoil:
    """Take other parts of what a node reads: the last images instead of the first, other columns."""

    def spoil(node: fx.Node) -> None:
        with node.graph.inserting_before(node):
            turned = node.graph.call_function(torch.flip, (node.args[0], [axis]))
        info(turned).take(node)
        node.args = (turned, *node.args[1:])

    return spoil


MAPS = {"taps": ("act1", "layer2"), "input_size": SIZE}


@dataclass(frozen=True)
class Case:
    build: Callable[[], nn.Module]
    spoil: Spoil
    place: str  # what the error must name
    options: dict[str, Any] | None = None  # of eliminate


CASES = {
    "padding of a changed layer": Case(resnet, setting("conv1", padding=(2, 2)), "conv1"),
    "padding of another layer": Case(resnet, setting("layer2.1.conv2", padding=(0, 0)), r"layer2\.1"),
    "a weight": Case(resnet, adding("layer3.0.conv1.weight"), r"layer3\.0\.conv1\.weight"),
    "a statistic": Case(resnet, adding("layer2.0.bn1.running_mean"), r"layer2\.0\.bn1\.running_mean"),
    "a buffer that is not saved": Case(answers, adding("gain"), "gain"),
    "another branch": Case(
        resnet, putting("layer2.0.downsample.0", lambda: nn.Conv2d(64, 128, 1, 2)), r"layer2\.0\.downsample\.0"
    ),
    "a branch left out": Case(resnet, without_branch, r"layer1\.0"),
    "swapped blocks": Case(answers, swapped, "left"),
    "activation": Case(answers, putting("act", lambda: nn.LeakyReLU(0.1)), "act"),
    "activation's setting": Case(answers, putting("act", nn.ReLU6), "act"),
    "dilation": Case(resnet, setting("layer4.1.conv2", dilation=(2, 2), padding=(2, 2)), r"layer4\.1\.conv2"),
    "eps": Case(answers, setting("norm", eps=0.5), "norm"),
    "momentum of a norm": Case(answers, setting("norm", momentum=0.9), "norm"),
    "another layer in the recipe": Case(resnet, asking(L=(6,)), "conv1"),
    "another stride in the recipe": Case(vit, asking(stride=4), "S1L0|patch", {"stride": 8}),
    "dilation in the recipe": Case(answers, asking(dilate=True), "output|stem|norm"),
    "pool kept": Case(answers, asking(pool="remove"), "pool", {"L": "pool", "pool": "keep"}),
    "another pool": Case(answers, putting("pool", lambda: nn.AvgPool2d(3, 2, 1)), "pool"),
    "rolled output": Case(answers, answering(lambda y: {**y, "mean": y["mean"].roll(1, 1)}), r"output\['mean'\]"),
    "scaled output": Case(answers, answering(lambda y: {**y, "mean": y["mean"] * 1.01}), r"output\['mean'\]"),
    "permuted batch": Case(
        answers, answering(lambda y: {**y, "maps": tuple(m.flip(0) for m in y["maps"])}), r"output\['maps'\]\[0\]"
    ),
    "lost output": Case(answers, answering(lambda y: {"maps": y["maps"]}), "output has the keys"),
    "lost part": Case(answers, answering(lambda y: {**y, "maps": y["maps"][:1]}), r"output\['maps'\] has 1 parts"),
    "another number": Case(answers, answering(lambda y: {**y, "count": 5}), r"output\['count'\] is 5"),
    "an output too many": Case(answers, answering(lambda y: {**y, "more": y["mean"]}), "output has the keys"),
    "None for a tensor": Case(answers, answering(lambda y: {**y, "mean": None}), r"output\['mean'\] is a NoneType"),
    "exchanged parts": Case(answers, answering(lambda y: {**y, "maps": y["maps"][::-1]}), r"output\['maps'\]\[0\]"),
    "another number format": Case(
        answers, answering(lambda y: {**y, "mean": y["mean"].double()}), r"output\['mean'\] is torch.float64"
    ),
    "another axis in the recipe": Case(resnet, asking(axis="w"), "conv1"),
    "dilation taken out of the recipe": Case(answers, asking(dilate=False), "grid|stem|down|output", {"dilate": True}),
    "list for tuple": Case(answers, answering(lambda y: {**y, "maps": list(y["maps"])}), r"output\['maps'\] is a list"),
    "hook that changes": Case(answers, hooking("right"), "right"),
    "pre-hook that changes": Case(answers, hooking("right", before=True), "right"),
    "hook of the model": Case(resnet, hooking(""), "output"),
    "stale feature_info": Case(resnet, stale, r"feature_info\[4\]"),
    "stale feature_info of maps": Case(levels, stale_levels, r"feature_info\[2\]"),
    "stale patch_size": Case(vit, setting("patch_embed", patch_size=(16, 16)), "patch_size", {"stride": 8}),
    "one norm in train mode": Case(resnet, lambda net: net.layer1[0].bn1.train(), r"layer1\.0\.bn1 is in train"),
    "the block in train mode": Case(resnet, lambda net: net.layer3.train(), "layer3 is in train"),
    "statistics that move": Case(answers, counting, "changes its buffer norm.running_mean"),
    "graph: another function": Case(answers, in_graphs("add", target("sub")), "output", {"form": "graph"}),
    "train mode: another hook": Case(answers, in_train_mode, "train mode output"),
    "train mode: another module": Case(answers, in_train_graph, "train mode output", {"form": "graph"}),
    "train mode: detached": Case(answers, answering(lambda y: {**y, "mean": y["mean"].detach()}), "mean.* is detached"),
    "one image alone": Case(answers, answering(one_image), r"for one image alone output\['mean'\]"),
    "one image alone raises": Case(answers, failing(lambda net, x: len(x) == 1), "for one image alone .* raises Value"),
    "one image alone: a lost output": Case(
        answers, answering(lambda y: y if len(y["mean"]) > 1 else {"maps": y["maps"]}), "has the keys .* one image"
    ),
    "train mode: statistics": Case(
        answers, in_train_statistics, "in train mode norm.running_mean differs"
    ),
    "train mode raises": Case(answers, failing(lambda net, x: net.training), "train mode"),
    "train mode: an output too many": Case(answers, in_train_answer, "has the keys .* in train mode"),
    "forward_intermediates: a lost map": Case(
        vit, lambda net: setattr(net, "forward_intermediates", lambda *args, **given: []),
        "forward_intermediates gives 0 maps", {"stride": 8},
    ),
    "a small change": Case(answers, putting("act", lambda: nn.LeakyReLU(0.001)), "act"),
    "graph: a small change": Case(
        answers, lambda net: setattr(net, "act", nn.LeakyReLU(0.001).eval()), "act|output", {"form": "graph"}
    ),
    "weights no longer tied": Case(tied, untied, "left.weight and right.weight"),
    "channels in feature_info": Case(
        resnet, lambda net: net.feature_info[1].update(num_chs=3), r"feature_info\[1\]\['num_chs'\]"
    ),
    "module in feature_info": Case(
        resnet, lambda net: net.feature_info[1].update(module="layer2"), r"feature_info\[1\]\['module'\]"
    ),
    "an entry of feature_info lost": Case(resnet, lambda net: net.feature_info.pop(), r"feature_info\[4\]"),
    "size of a graph": Case(
        lambda: awake(nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), Fixed(), nn.Conv2d(8, 8, 3, 1, 1))).eval(),
        setting("", only_at=None), "only_at is None", {"form": "graph"},
    ),
    "another recipe's restore_at": Case(resnet, asking(restore_at=11), "what S1L0"),
    "forward_features": Case(resnet, lambda net: setattr(net, "forward_features", net.conv1), "forward_features"),
    "forward_intermediates": Case(
        vit, lambda net: setattr(net, "forward_intermediates", lambda *args, **given: [torch.ones(2, 192, 4, 4)]),
        "forward_intermediates", {"stride": 8},
    ),
    "attention heads": Case(vit, setting("blocks.0.attn", num_heads=1, head_dim=192), r"blocks\.0", {"stride": 8}),
    "graph: another module": Case(answers, in_graphs("left", target("right")), "left|right|output", {"form": "graph"}),
    "dilate: another phase": Case(
        gated, in_graphs("first_phase", flipped(0)), r"output\['mean'\]", {"dilate": True}
    ),
    "dilate: other cells": Case(
        answers, in_graphs("original_cells", flipped(3)), r"output\['mean'\]", {"dilate": True}
    ),
    "dilate: another function": Case(answers, in_graphs("add", target("sub")), "output", {"dilate": True}),
}  # fmt: skip


def operated(case: Case) -> tuple[nn.Module, nn.Module]:
    net = case.build()
    options = {"L": 0, **(case.options or {})}
    return net, ss.eliminate(net, input_size=SIZE, **options)


@pytest.mark.parametrize("name", CASES)
def test_spoilt_models_fail_with_the_place(name: str) -> None:
    case = CASES[name]
    net, fine = operated(case)
    case.spoil(fine)
    with pytest.raises(ss.SurgeryError, match=case.place):
        ss.verify(net, fine)


@pytest.mark.parametrize("build", [answers, vit, resnet, levels])
@pytest.mark.parametrize("options", [{}, {"form": "graph"}, {"dilate": True}])
def test_what_nobody_spoilt_is_verified_and_left_alone(
    build: Callable[[], nn.Module], options: dict[str, Any]
) -> None:
    net, fine = operated(Case(build, stale, "", {"stride": 8 if build is vit else 1, **options}))
    before = snapshot(net), snapshot(fine)
    found = ss.verify(net, fine)
    assert not unchanged(before[0], net) and not unchanged(before[1], fine)
    assert found.outputs and all(
        check.error is not None and check.error < 1e-5 for check in found.outputs
    )
    assert f"{len(found.outputs)} tensors equal" in str(found)


def test_the_whole_model_in_another_mode_is_said() -> None:
    net = resnet()
    fine = ss.eliminate(net, "S1L0", input_size=SIZE).train()
    assert "all modules in train mode, the original in eval mode" in str(ss.verify(net, fine))


def test_what_is_not_compared_is_named() -> None:
    class Drawing(Answers):
        def forward(self, x: Tensor) -> dict[str, Any]:
            found = super().forward(x)
            return {**found, "noise": torch.randn_like(found["mean"])}

    net = awake(Drawing()).eval()
    net.forward = types.MethodType(lambda self, x: Drawing.forward(self, x), net)
    fine = ss.eliminate(net, "S1L0", input_size=SIZE)
    draws = iter(range(100))
    plain = fine.forward
    fine.forward = lambda x: (torch.manual_seed(next(draws)), plain(x))[1]
    assert "output['noise']: not compared: the model draws random numbers" in str(
        ss.verify(net, fine)
    )


def test_a_model_without_weights_is_refused() -> None:
    with torch.device("meta"):
        net = Answers().eval()
    fine = ss.eliminate(net, "S1L0", input_size=SIZE)
    with pytest.raises(ss.ModelError, match="meta device"):
        ss.verify(net, fine)


@pytest.mark.parametrize("maps", ["features", "dual_path"])
def test_stale_records_of_maps_are_found(maps: str) -> None:
    net = resnet()
    fine = ss.eliminate(net, "S1L0", input_size=SIZE)
    given = ss.features(fine, **MAPS) if maps == "features" else ss.dual_path(net, "S1L0", **MAPS)
    ss.verify(net, given)
    old = given.feature_info.features
    given.feature_info = ss.FeatureInfo((replace(old[0], reduction=(7, 7)), *old[1:]))
    with pytest.raises(ss.GridError, match="act1 the reduction"):
        ss.verify(net, given)
    given.feature_info = ss.FeatureInfo(
        (replace(old[0], geometry=replace(old[0].geometry, offset=(9, 9))), *old[1:])
    )
    with pytest.raises(ss.GridError, match="act1 .*offset"):
        ss.verify(net, given)


@pytest.mark.parametrize("maps", ["features", "dual_path"])
@pytest.mark.parametrize("spoil", [hooking("conv1"), lambda net: counting_in(net.bn1)])
def test_spoilt_models_that_return_maps_fail(maps: str, spoil: Spoil) -> None:
    net = resnet()
    fine = ss.eliminate(net, "S1L0", input_size=SIZE)
    given = ss.features(fine, **MAPS) if maps == "features" else ss.dual_path(net, "S1L0", **MAPS)
    spoil(given)
    with pytest.raises(
        ss.SurgeryError, match="map act1|map small|running_mean|changes its buffer|conv1"
    ):
        ss.verify(net, given)


def one_image_differs(maps: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: y * (1 if len(y) > 1 else 1.1) for name, y in maps.items()}


@pytest.mark.parametrize("maps", ["features", "dual_path"])
@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (failing(lambda net, x: True), "the operated model raises ValueError: no"),
        (answering(one_image_differs), "map "),
    ],
)
def test_models_that_return_maps_are_run_as_they_are(maps: str, spoil: Spoil, said: str) -> None:
    net = resnet()
    fine = ss.eliminate(net, "S1L0", input_size=SIZE)
    given = ss.features(fine, **MAPS) if maps == "features" else ss.dual_path(net, "S1L0", **MAPS)
    ss.verify(net, given)
    spoil(given)
    with pytest.raises(ss.SurgeryError, match=said):
        ss.verify(net, given)


class Asking(nn.Module):
    """Its forward_features takes more than an image."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, 2, 1)

    def forward_features(self, x: Tensor, depth: int) -> Tensor:
        return self.stem(x) * depth

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_features(x, 1)


def test_a_method_that_cannot_be_compared_is_named() -> None:
    net = Asking().eval()
    found = ss.verify(net, ss.eliminate(net, "S1L0", input_size=SIZE))
    assert "forward_features: not compared: it gives no tensors for an image alone" in str(found)


def test_what_the_original_does_itself_is_named() -> None:
    net = answers()
    counting(net)
    found = ss.verify(net, ss.eliminate(net, "S1L0", input_size=SIZE))
    assert "buffer norm.running_mean: the original changes it in eval mode, too" in str(found)


def test_a_recipe_of_another_form_is_said() -> None:
    net = resnet()
    fine = ss.eliminate(net, "S1L0", input_size=SIZE)
    fine.surgery = replace(fine.surgery, form="graph")
    with pytest.raises(ss.SurgeryError, match="recipe gives a graph"):
        ss.verify(net, fine)
