"""What really happens in a network while it runs: an independent witness that knows nothing of the library."""

import copy
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn


@dataclass(frozen=True)
class Call:
    """One call of a leaf module."""

    name: str  # module path
    times: int  # how often it had been called before
    given: Tensor
    made: Tensor


@torch.no_grad()
def calls(model: nn.Module, x: Tensor) -> list[Call]:
    """Every call of a leaf module that turns a tensor into a tensor, in running order."""
    found: list[Call] = []
    times: dict[str, int] = defaultdict(int)

    def watch(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], result: Any) -> None:
            if args and isinstance(args[0], Tensor) and isinstance(result, Tensor):
                found.append(Call(name, times[name], given[name], result.clone()))
                times[name] += 1

        return hook

    given: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            if args and isinstance(args[0], Tensor):
                given[name] = args[0].clone()  # activations that work in place would overwrite it

        return hook

    handles = []
    for name, module in model.named_modules():
        if name and is_watched(module):
            handles += [
                module.register_forward_pre_hook(keep(name)),
                module.register_forward_hook(watch(name)),
            ]
    try:
        model(x)
    finally:
        for handle in handles:
            handle.remove()
    return found


def is_watched(module: nn.Module) -> bool:
    """Modules without children; and Swin's merging, whose slices are its own."""
    return not list(module.children()) or "Merging" in type(module).__name__


def pairs(original: nn.Module, operated: nn.Module, x: Tensor) -> Iterator[tuple[Call, Call]]:
    """The calls of two networks on one input, matched by module and number of the call, in the original's order.

    A rewritten graph does not call a module that holds no operator of its own (an empty
    `Sequential`).
    """
    after = {(c.name, c.times): c for c in calls(operated, x)}
    for before in calls(original, x):
        key = before.name, before.times
        if key in after or not isinstance(operated, fx.GraphModule):
            yield before, after[key]


def grown(before: Tensor, after: Tensor) -> tuple[int, ...] | None:
    """By how much each dimension grew; None where that is not a whole number."""
    if before.dim() != after.dim() or any(
        b % a for a, b in zip(before.shape, after.shape, strict=True)
    ):
        return None
    return tuple(b // a for a, b in zip(before.shape, after.shape, strict=True))


def sampled(fine: Tensor, like: Tensor, k: tuple[int, ...] | None = None) -> Tensor:
    """`fine[::k, ::k]` along the dimensions in which it is larger than `like`."""
    k = k or tuple(-(-f // c) for f, c in zip(fine.shape, like.shape, strict=True))
    return fine[tuple(slice(None, None, step) for step in k)]


def error(found: Tensor, wanted: Tensor) -> float:
    """The largest difference, relative to the largest value wanted; infinite where the shapes differ."""
    if found.shape != wanted.shape:
        return float("inf")
    return ((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-12)).item()


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Everything of a model that nobody may change behind its owner's back."""
    return {
        "state": {
            k: v.clone() if isinstance(v, Tensor) else v for k, v in model.state_dict().items()
        },
        "storage": {
            k: v.data_ptr() for k, v in model.state_dict().items() if isinstance(v, Tensor)
        },
        "modules": [(n, type(m), id(m), m.training) for n, m in model.named_modules()],
        "hooks": [(n, k, tuple(v.items())) for n, m in model.named_modules() for k, v in _hooks(m)],
        "attributes": [(n, sorted(vars(m))) for n, m in model.named_modules()],
        "settings": repr(model),
        "gradients": [(n, p.requires_grad) for n, p in model.named_parameters()],
        "feature_info": copy.deepcopy(getattr(model, "feature_info", None)),
    }


def _hooks(module: nn.Module) -> list[tuple[str, Any]]:
    return [(k, v) for k, v in vars(module).items() if k.endswith("_hooks") and isinstance(v, dict)]


def unchanged(before: dict[str, Any], model: nn.Module) -> list[str]:
    """The names of the parts of a snapshot in which the model differs now."""
    now = snapshot(model)
    odd = [
        key for key in before if key not in ("state", "feature_info") and before[key] != now[key]
    ]
    odd += [
        f"state {k}"
        for k, v in before["state"].items()
        if isinstance(v, Tensor) and not v.equal(now["state"][k])
    ]
    if repr(_plain(before["feature_info"])) != repr(_plain(now["feature_info"])):
        odd.append("feature_info")
    return odd


def _plain(info: Any) -> Any:
    return getattr(info, "info", info)


@torch.no_grad()
def outputs_of(model: nn.Module, names: list[str], x: Tensor) -> dict[str, Tensor]:
    """What these modules return in one pass, copied before anything can overwrite it."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], result: Tensor) -> None:
            found[name] = result.clone()

        return hook

    handles = [model.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    try:
        model(x)
    finally:
        for handle in handles:
            handle.remove()
    return found
