"""The whole answer of an operated model is what the same model gives with its strides edited by hand, or it is refused.

The witness never meets the library: a second model from the same builder whose `stride` is set from
outside. What is dilated is compared with the original: maps on its grid, and everything else as it
is.
"""

import contextlib
import dataclasses
from collections import deque
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, fx, nn

import stridesurgery as ss
from tests.models import image
from tests.unusual import UNUSUAL, Unusual
from tests.unusual_answers import ANSWERS
from tests.watch import error, sampled

SIZE = 32
NO_MAPS = ("similarity (N, 1, L, L)",)  # of four dimensions, and yet no maps
ALL = {**UNUSUAL, **ANSWERS}
FORMS: dict[str, dict[str, Any]] = {
    "module": {},
    "graph": {"form": "graph"},
    "dilate": {"dilate": True},
}


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf of an answer, at a path that tells the kinds and keys of what holds it."""
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, (list, tuple)):
        items = list(enumerate(value))
    elif dataclasses.is_dataclass(value):
        items = list(vars(value).items())
    else:
        yield path, value
        return
    yield f"{path}/{type(value).__name__}", len(items)
    for key, item in items:
        yield from leaves(item, f"{path}/{type(value).__name__}:{key}")


def held(value: Any, seen: dict[int, Any]) -> dict[int, Any]:
    """Every object that a model refers to, through containers, methods and the functions that are its hooks."""
    if id(value) in seen or isinstance(value, (str, type, fx.Graph, ss.Surgery)):
        return seen
    seen[id(value)] = value
    inner: list[Any] = []
    if isinstance(value, (list, tuple, set, deque)):
        inner = list(value)
    elif isinstance(value, dict):
        inner = list(value.values())
    elif isinstance(value, partial):
        inner = [value.func, value.args, value.keywords]
    elif isinstance(value, nn.Module):
        inner = [vars(value)]
    elif hasattr(value, "__self__"):
        inner = [value.__self__]
    elif getattr(value, "__closure__", None):
        inner = [cell.cell_contents for cell in value.__closure__]
    for item in inner:
        held(item, seen)
    return seen


def strange(net: nn.Module) -> list[Any]:
    """What a recording leaves behind: tensors without values, proxies, numbers that only look like numbers."""
    values = list(held(net, {}).values())
    found = [
        v
        for v in values
        if isinstance(v, (fx.Proxy, fx.Node)) or (isinstance(v, Tensor) and v.is_meta)
    ]
    return found + [
        v for v in values if isinstance(v, (int, float)) and type(v) not in (int, float, bool)
    ]


def remembered(net: nn.Module) -> dict[str, Any]:
    """Everything of a model that may not change behind its owner's back; identities count."""
    return {
        "values": {k: v.clone() for k, v in net.state_dict().items()},
        "modes": [(n, m.training) for n, m in net.named_modules()],
        "held": {
            i: v
            for i, v in held(net, {}).items()
            if isinstance(v, (Tensor, nn.Module)) or callable(v)
        },
    }


def assert_untouched(before: dict[str, Any], net: nn.Module) -> None:
    now = remembered(net)
    assert (
        now["modes"] == before["modes"]
        and now["held"].keys() == before["held"].keys()
        and not strange(net)
    )
    assert now["values"].keys() == before["values"].keys()
    assert all(torch.equal(v, now["values"][k]) for k, v in before["values"].items())


def in_mode(net: nn.Module, mode: str) -> nn.Module:
    """Eval, train, or train with frozen norms."""
    net.train(mode != "eval")
    if mode == "frozen":
        for module in net.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
    return net


@torch.no_grad()
def ready(case: Unusual, mode: str) -> nn.Module:
    """A model that its owner has used once."""
    net = in_mode(case.make(), mode)
    net(image(SIZE, batch=2))
    return net


@torch.no_grad()
def answers(net: nn.Module) -> dict[str, Any]:
    found = dict(leaves(net(image(SIZE, batch=2, seed=5))))
    return {
        path: leaf.clone() if isinstance(leaf, Tensor) else leaf for path, leaf in found.items()
    }


def by_hand(case: Unusual, cut: tuple[str, ...], mode: str) -> nn.Module:
    net, stride = ready(case, mode), case.request.get("stride", 1)
    for name in cut:
        net.get_submodule(name).stride = (stride, stride)
    if hasattr(net, "patch_size"):
        net.patch_size = stride
    return net


def operated(case: Unusual, net: nn.Module, cut: tuple[str, ...], form: str) -> nn.Module | None:
    """What `eliminate` gives, or None where it refuses and may."""
    before = remembered(net)
    try:
        fine = ss.eliminate(
            net, **{"L": cut[0], **case.request}, pool="keep", input_size=SIZE, **FORMS[form]
        )
    except ss.SurgeryError as problem:
        assert form in case.may_refuse + case.must_refuse, f"refused: {problem}"
        fine = None
    else:
        assert form not in case.must_refuse, "not refused"
        assert not strange(fine)
    assert_untouched(before, net)
    return fine


def assert_plain(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert list(found) == list(wanted)
    for path, leaf in wanted.items():
        if isinstance(leaf, Tensor):
            assert error(found[path], leaf) < 1e-5, (
                f"{path}: {tuple(found[path].shape)} for {tuple(leaf.shape)}"
            )
        else:
            assert found[path] == leaf, path


def assert_dilated(
    found: dict[str, Any], original: dict[str, Any], finer: dict[str, Any], maps: bool
) -> None:
    """Maps have the finer size and the original's values on its grid; everything else is the original's."""
    assert list(found) == list(original)
    for path, leaf in original.items():
        if not isinstance(leaf, Tensor):
            assert found[path] in (leaf, finer[path]), path
        elif leaf.dim() == 4 and maps and leaf.shape != finer[path].shape:
            assert found[path].shape == finer[path].shape, f"{path}: {tuple(found[path].shape)}"
            assert error(sampled(found[path], leaf), leaf) < 1e-5, path
        else:
            assert error(found[path], leaf) < 1e-5, (
                f"{path}: {tuple(found[path].shape)} for {tuple(leaf.shape)}"
            )


def assert_records(net: nn.Module, fine: nn.Module, found: dict[str, Any]) -> None:
    """What the model claims of its maps is so."""
    if isinstance(getattr(net, "output_stride", None), int):
        assert fine.output_stride == net.output_stride // 2
    if isinstance(getattr(net, "feature_info", None), timm.models.FeatureInfo):
        sizes = [leaf.shape[-1] for leaf in found.values() if isinstance(leaf, Tensor)]
        assert [SIZE / size for size in sizes] == list(fine.feature_info.reduction())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ALL)
def test_the_whole_answer(name: str, form: str) -> None:
    case = ALL[name]
    for cut in case.cuts:
        net = ready(case, "eval")
        fine, hand = operated(case, net, cut, form), by_hand(case, cut, "eval")
        if fine is None:
            continue
        before, found, wanted = remembered(fine), answers(fine), answers(hand)
        if form == "dilate":
            assert_dilated(found, answers(net), wanted, name not in NO_MAPS)
        else:
            assert_plain(found, wanted)
        assert_records(net, fine, found)
        assert all(torch.equal(v, fine.state_dict()[k]) for k, v in before["values"].items()), (
            "a buffer moved"
        )
        assert list(before["values"]) == list(net.state_dict())
        with contextlib.suppress(
            *([ss.SurgeryError] if form in case.may_refuse else [])
        ):  # once the models have run
            ss.verify(net, fine)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("mode", ["train", "frozen"])
@pytest.mark.parametrize("name", ALL)
def test_modes(name: str, mode: str, form: str) -> None:
    """Every module has the mode of the original's; norms use and move the statistics that they did."""
    case = ALL[name]
    cut = case.cuts[-1]
    net = ready(case, mode)
    fine, hand = operated(case, net, cut, form), by_hand(case, cut, mode)
    if fine is None:
        return
    modes = {n: m.training for n, m in net.named_modules()}
    assert {n: m.training for n, m in fine.named_modules()} == modes
    found, wanted = answers(fine), answers(hand)
    if form != "dilate":
        assert_plain(found, wanted)
        assert_plain(fine.state_dict(), hand.state_dict())
    elif mode == "frozen":
        assert_dilated(found, answers(net), wanted, name not in NO_MAPS)
