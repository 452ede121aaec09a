"""Modes, hooks, records and token maps of operated models, beside what running them shows."""

import contextlib
import copy
from collections.abc import Mapping
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import stridesurgery as ss
from tests.conftest import Case
from tests.models import awake, create, image
from tests.unusual import UNUSUAL
from tests.watch import error
from tests.zoo.tail import tail_errors

FORMS: dict[str, dict[str, Any]] = {
    "module": {},
    "graph": {"form": "graph"},
    "dilate": {"dilate": True},
}
SIZE = 32


def kinds(value: Any) -> Any:
    """The structure of what is returned; graphs give mappings of any class as dicts."""
    if isinstance(value, Mapping):
        return {key: kinds(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return (type(value), [kinds(part) for part in value])
    return None if isinstance(value, int) else type(value)


@torch.no_grad()
def answer(net: nn.Module, x: Tensor) -> Any:
    """What a model returns in eval mode, which changes none of its buffers."""
    buffers = {name: value.clone() for name, value in net.named_buffers()}
    result = net(x.clone())
    assert all(torch.equal(value, buffers[name]) for name, value in net.named_buffers())
    return result


@pytest.mark.parametrize("mode", ["train", "eval", "mixed"])
@pytest.mark.parametrize(
    "name", ["feature extractor", "feature extractor inside", "features_only fx", "__deepcopy__"]
)
def test_every_module_keeps_its_mode(name: str, mode: str) -> None:
    case = UNUSUAL[name]
    net = case.make().train(mode != "eval")
    if mode == "mixed":
        next(m for m in net.modules() if isinstance(m, nn.BatchNorm2d)).eval()
    fine = ss.eliminate(net, L=case.cuts[0][0], input_size=SIZE)
    assert {n: m.training for n, m in fine.named_modules()} == {
        n: m.training for n, m in net.named_modules()
    }


def test_hooks_leave_nothing_weightless_with_the_caller() -> None:
    seen: list[Any] = []
    net = create("resnet18")
    net.layer1.register_forward_hook(lambda module, args, result: seen.append(result))
    net.layer2.register_forward_hook(lambda module, args, result: seen.append(result.mean().item()))
    for options in FORMS.values():
        try:
            ss.eliminate(net, L="layer4.0.conv1", input_size=64, **options)
        except ss.OperatorError as problem:
            assert options and "hook of layer2 needs numbers, which is lost in a graph" in str(
                problem
            )
    inner = nn.Sequential(UNUSUAL["__deepcopy__"].make()).eval()  # copied in its own way
    inner[0].register_forward_pre_hook(lambda module, args: seen.append(args))
    ss.eliminate(inner, S=1, input_size=SIZE)
    assert seen == []


class Keeper:
    def __init__(self) -> None:
        self.maps: list[Any] = []


KEEPER, KEPT, OUTSIDE = Keeper(), {}, nn.BatchNorm2d(64).train()  # globals that hooks write into
LAST: Any = None


def _keeps_in_globals(module: nn.Module, args: Any, result: Any) -> None:
    global LAST
    LAST = result
    KEEPER.maps.append(result)
    (lambda: KEPT.update(last=result))()
    OUTSIDE(result)


def test_recording_writes_nothing_into_what_hooks_reach() -> None:
    last, kept = None, []

    def keeps(module: nn.Module, args: Any, result: Any, more: list[Any] = kept) -> None:
        nonlocal last
        last = result
        more.append(result)

    net, before = create("resnet18"), OUTSIDE.running_mean.clone()
    net.layer1.register_forward_hook(keeps)
    net.layer1.register_forward_hook(_keeps_in_globals)
    for options in FORMS.values():
        with contextlib.suppress(ss.SurgeryError):
            ss.eliminate(net, L="layer4.0.conv1", input_size=64, **options)
    assert last is None and kept == [] and KEEPER.maps == [] and KEPT == {} and LAST is None
    assert torch.equal(OUTSIDE.running_mean, before)


@pytest.mark.parametrize("how", ["default", "keyword", "list", "object"])
def test_hooks_that_reach_the_model_reach_the_copy(how: str) -> None:
    net = create("resnet18")
    first = net.conv1
    held: list[Any] = [first]
    keeper = Keeper()
    keeper.maps.append(first)
    hooks = {
        "default": lambda module, args, result, conv=first: result * conv.weight.mean(),
        "keyword": lambda module, args, result, *, conv=held: result * conv[0].weight.mean(),
        "list": lambda module, args, result: result * held[0].weight.mean(),
        "object": lambda module, args, result: result * keeper.maps[0].weight.mean(),
    }
    net.layer1.register_forward_hook(hooks[how])
    fine = ss.eliminate(net, L="layer4.0.conv1", input_size=64)
    x = torch.ones(1, 64, 8, 8)
    wanted = fine.layer1(x)
    with torch.no_grad():
        first.weight.add_(1)
    assert torch.equal(fine.layer1(x), wanted)
    with torch.no_grad():
        fine.conv1.weight.add_(1)
    assert not torch.equal(fine.layer1(x), wanted)


def test_a_forward_that_holds_the_model_follows_after_torch_compile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """torch.compile leaves another `__setstate__` in nn.Module, which says nothing of how modules are copied."""

    def patched(self: nn.Module, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    patched.__module__ = "torch._dynamo.mutation_guard"
    monkeypatch.setattr(nn.Module, "__setstate__", patched)
    net = UNUSUAL["forward replaced by a closure"].make()
    fine = ss.eliminate(net, S=1, input_size=SIZE)
    assert fine(image(SIZE)).shape[-1] == 2 * net(image(SIZE)).shape[-1]


def test_a_flag_is_no_hook() -> None:
    net = UNUSUAL["use_hooks"].make()
    assert "pool" in [layer.name for layer in ss.inspect(net, SIZE)]


def test_nothing_that_is_a_tensor_is_refused() -> None:
    with pytest.raises(ss.TraceError, match="returns {}, in which there is no tensor"):
        ss.inspect(UNUSUAL["no tensor in the answer"].make(), SIZE)


TRANSFORMERS = [
    ("vit_tiny_patch16_224", 64, {"dynamic_img_size": True, "img_size": 32}),
    ("vit_small_patch16_dinov3_qkvb", 64, {}),
]


@pytest.mark.parametrize(("name", "size", "options"), TRANSFORMERS)
def test_token_maps_follow_the_patches(name: str, size: int, options: dict[str, Any]) -> None:
    """The maps that a vision transformer makes of its tokens are its tokens, row by row."""
    net, x = create(name, depth=2, num_classes=0, **options), image(size, batch=2)
    fine = ss.eliminate(net, "S1L0", stride=8, input_size=size)
    assert fine.patch_embed.patch_size == (8, 8) and net.patch_embed.patch_size == (16, 16)
    with torch.no_grad():
        (found,) = fine.forward_intermediates(x, indices=[1], norm=True, intermediates_only=True)
        tokens = fine.forward_features(x)[:, fine.num_prefix_tokens :]
    wanted = tokens.transpose(1, 2).reshape(2, -1, size // 8, size // 8)
    assert error(found, wanted) < 1e-5
    ss.verify(net, fine)


def test_token_maps_of_another_grid_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    net = create("vit_small_patch16_dinov3_qkvb", depth=1)
    monkeypatch.setattr(
        type(net.patch_embed),
        "dynamic_feat_size",
        lambda self, size: (size[0] // 16, size[1] // 16),
    )
    fine = ss.eliminate(net, "S1L0", stride=8, input_size=64)
    assert not hasattr(fine, "forward_intermediates") and ss.verify(net, fine)
    with pytest.raises(ss.GridError, match="forward_intermediates would give"):
        ss.eliminate(net, "S1L0", stride=8, input_size=64, inplace=True)


def test_maps_whose_cells_are_not_understood_are_not_dilated() -> None:
    class Folded(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            x = super().forward(x)
            return x.reshape(x.shape[0], -1, x.shape[2], x.shape[3] // 2).softmax(3)

    with pytest.raises(ss.GridError, match="has the form of a map"):
        ss.eliminate(Folded(nn.Conv2d(3, 8, 3, 2, 1)), "S1L0", dilate=True, input_size=64)


def test_maps_of_hieras_units_are_dilated() -> None:
    torch.manual_seed(0)
    net = awake(timm.create_model("hiera_tiny_224", features_only=True)).eval()
    fine = ss.eliminate(net, "S1L0", stride=2, dilate=True)
    with torch.no_grad():
        x = torch.randn(1, 3, 224, 224)
        for old, new in zip(net(x), fine(x), strict=True):
            torch.testing.assert_close(new[..., ::2, ::2], old, rtol=1e-4, atol=1e-4)


def test_a_layer_that_spans_transitions_names_none() -> None:
    net = create("pvt_v2_b0")
    report = ss.inspect(net, 64)
    last = report.transitions[-1]
    spanning = next(la for la in last.layers if sum(la in t.layers for t in report.transitions) > 1)
    with pytest.raises(ss.RequestError, match="spans transitions .* so it does not name one"):
        ss.eliminate(net, L=spanning, input_size=64)
    maps = ss.features(ss.eliminate(net, L=last.layers[0], input_size=64))
    assert maps.feature_info.reduction()[-1] == 16


def recorded(model: nn.Module) -> dict[str, int]:
    """The reductions that a timm model keeps on record, by module."""
    entries = getattr(model, "feature_info", None)
    return {
        e["module"]: e["reduction"] for e in entries or [] if isinstance(e, dict) and "module" in e
    }


@torch.no_grad()
def real(model: nn.Module, x: Tensor, names: list[str]) -> dict[str, set[int]]:
    """What the maps of modules have for reductions, by running the model: the side of a map is one of two axes."""
    found: dict[str, set[int]] = {}
    modules = dict(model.named_modules())
    for name in names:
        if name in modules:
            modules[name].register_forward_hook(
                lambda module, args, result, name=name: (
                    found.update(
                        {
                            name: {
                                x.shape[2] // side for side in result.shape[1:3] + result.shape[2:3]
                            }
                        }
                    )
                    if isinstance(result, Tensor) and result.dim() == 4
                    else None
                )
            )
    model(x.clone())
    return found


def test_records_and_answers_of_the_sample_follow(case: Case) -> None:
    """Every reduction on record that the original's maps have is that of the operated model's maps as well."""
    net, fine = copy.deepcopy(case.original), copy.deepcopy(case.operated[0])
    before, after = recorded(net), recorded(fine)
    sizes, finer = real(net, case.image, list(before)), real(fine, case.image, list(after))
    assert list(before) == list(after)
    for name in before:
        if name in sizes and name in finer and before[name] in sizes[name]:
            assert after[name] in finer[name], name
    wanted, found = (answer(model, case.image) for model in (net, fine))
    assert kinds(found) == kinds(wanted) and error(found, wanted) < float("inf")
    assert [m.training for m in fine.modules()] == [m.training for m in net.modules()]


def test_the_answer_of_a_cut_is_that_of_the_originals_tail(case: Case) -> None:
    """The original, its layers of the transition given the finer maps, is the outside witness of the whole answer."""
    gates = (
        case.name == "ghostnetv2_100"
    )  # whose last strides are those of its gates: no map becomes finer
    last = case.report.transitions[-2 if gates else -1]
    fine = ss.eliminate(case.original, L=last.layers[0], input_size=case.size)
    errors = tail_errors(case.original, fine, image(case.size, batch=2))
    assert max(errors) <= 1e-3
