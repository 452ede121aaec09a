"""Copy models without their weights, and read what a model says of its own input."""

import copy
import types
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.overrides import TorchFunctionMode

from stridesurgery._trace.copied_functions import ATOMS, Observer, copied_function
from stridesurgery.errors import ModelError


def check_plain(model: nn.Module) -> None:
    """Refuse what is not a plain module.

    Raises:
        ModelError: the model is not a module, or is wrapped or scripted.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(f"expected a torch.nn.Module, got {type(model).__name__}")
    for wrapper in (
        "DistributedDataParallel",
        "DataParallel",
        "FullyShardedDataParallel",
        "OptimizedModule",
    ):
        if type(model).__name__ == wrapper:
            inner = "_orig_mod" if wrapper == "OptimizedModule" else "module"
            raise ModelError(
                f"the model is wrapped in {wrapper}; pass the model inside it (.{inner}) and wrap "
                "the result"
            )
    for path, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            place = f"submodule {path!r}" if path else "the model"
            raise ModelError(
                f"{place} is a ScriptModule, whose code cannot be read; pass the original module"
            )
        if ".quantiz" in type(module).__module__:
            raise ModelError(
                f"submodule {path!r} ({type(module).__name__}) is quantised, or observed for that: "
                "operate on the model in floating point first, and quantise the result"
            )


@torch.inference_mode(False)
def copy_to_meta(model: nn.Module) -> nn.Module:
    """Return a deep copy with meta tensors and with no hooks but those of the forward pass.

    The copy needs no memory for weights. The containers in which hooks collect values are copied
    as well.

    Raises:
        ModelError: the model is not a module, is wrapped or scripted, or cannot be copied.
    """
    check_plain(model)
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(_meta(parameter), requires_grad=parameter.requires_grad)
    for module in model.modules():
        copied = _meta if isinstance(module, _NormBase) else _known
        memo.update((id(b), copied(b)) for b in module._buffers.values() if b is not None)
    try:
        with _MetaCopy():
            return duplicate(model, memo, apart=True)
    except Exception as problem:
        raise ModelError(
            f"{type(model).__name__} cannot be copied ({problem}); copy.deepcopy(model) must work"
        ) from problem


def duplicate(model: nn.Module, memo: dict[int, Any], *, apart: bool = False) -> nn.Module:
    """Copy a model as `copy.deepcopy(model, memo)` does, but several times faster.

    The copy keeps the mode of every module and both graphs. torch's own copies of graph modules
    lose their mode and, if there is one, the graph for training. Functions that refer to the
    model's modules, such as hooks, refer to the copy's modules in the copy.

    Args:
        model: any module.
        memo: the copies that exist already, by the id of their original.
        apart: also copy the containers outside of the model that its hooks write into.
    """
    with _DetachedCopy():
        return _duplicate(model, memo, apart)


def _duplicate(model: nn.Module, memo: dict[int, Any], apart: bool) -> nn.Module:
    modules = [module for module in model.modules() if _is_copied_by_its_attributes(type(module))]
    for module in modules:
        memo[id(module)] = _shell(type(module))
    tables = (vars(module).get(name) for module in model.modules() for name in _HOOKS)
    memo.update((id(table), type(table)()) for table in tables if table is not None)
    for module in reversed(modules):  # parts before the module that contains them
        settings = {
            name: _copied(v, memo)
            for name, v in vars(module).items()
            if name != "_compiled_call_impl"
        }
        # nothing of model.compile() stays: the copy runs as written
        memo[id(module)].__dict__.update(settings)
    result = copy.deepcopy(model, memo)
    for module in modules:
        if isinstance(module, fx.GraphModule):
            memo[id(module)].graph = memo[id(module)]._graph  # compiles its code
    copies = dict(result.named_modules(remove_duplicate=False))
    for path, module in model.named_modules(remove_duplicate=False):
        if (twin := copies.get(path, module)) is not module:
            twin.training = module.training
            _copy_hooks(module, twin, memo, apart)
    return result


def _copy_hooks(module: nn.Module, twin: nn.Module, memo: dict[int, Any], apart: bool) -> None:
    """Give a module's copy its hooks; if `apart`, only those of the forward pass."""
    for name in _HOOKS & vars(module).keys():
        hooks = vars(module)[name]
        vars(twin)[name] = table = memo.setdefault(id(hooks), type(hooks)())  # handles refer to it
        for key, hook in hooks.items() if not apart or name in _FORWARD_HOOKS else ():
            called = apart and callable(hook)  # some tables hold flags instead of hooks
            table[key] = Observer(hook, memo) if called else copied_function(hook, memo, False)


_HOOKS = frozenset(
    name for name, value in vars(nn.Module()).items() if "hooks" in name and isinstance(value, dict)
)
_FORWARD_HOOKS = frozenset(name for name in _HOOKS if name.startswith("_forward"))


def _shell(kind: type[nn.Module]) -> nn.Module:
    """Return an instance without attributes.

    A graph module has a class of its own, for its code.
    """
    return kind.__new__(kind) if issubclass(kind, fx.GraphModule) else object.__new__(kind)


def _is_copied_by_its_attributes(kind: type[nn.Module]) -> bool:
    """Tell whether a class leaves the copying of its instances to torch."""
    if issubclass(kind, fx.GraphModule):
        return True
    if hasattr(kind, "__deepcopy__") or kind.__reduce_ex__ is not object.__reduce_ex__:
        return False
    own = (getattr(kind, name, None) for name in ("__getstate__", "__setstate__", "__reduce__"))
    return all(f is None or getattr(f, "__module__", "torch.nn").startswith(_TORCH) for f in own)


_TORCH = (
    "torch.nn",
    "torch._dynamo",
)  # torch.compile replaces nn.Module's __setstate__ by one that counts


_CONTAINERS = frozenset({dict, OrderedDict, set, list})


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    kind = type(value)
    if kind in ATOMS or (kind is tuple and all(type(v) in ATOMS for v in value)):
        return value
    if id(value) in memo:
        return memo[id(value)]
    if kind in _CONTAINERS and not value:
        return memo.setdefault(id(value), kind())
    if kind is dict and all(type(key) is str for key in value):  # parameters, buffers, modules
        memo[id(value)] = found = {}
        found.update({key: _copied(v, memo) for key, v in value.items()})
        return found
    return (
        copied_function(value, memo, False)
        if kind is types.FunctionType
        else copy.deepcopy(value, memo)
    )


def _meta(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor.detach(), device="meta")


SMALL = 64  # numbers: strides, anchors of a cell, sizes; no weight, and nothing that takes memory


def _known(tensor: Tensor) -> Tensor:
    """Return a weightless copy of a buffer; a small one keeps its numbers for code to read."""
    result = _meta(tensor)
    value = numbers_of(tensor) if tensor.is_meta else tensor.detach()
    if value is not None and value.numel() <= SMALL:
        vars(result)["numbers"] = value.clone().cpu()
    return result


def numbers_of(tensor: Tensor) -> Tensor | None:
    """Return the numbers that a weightless tensor stands for, where they are known."""
    return getattr(tensor, "numbers", None)


class _MetaCopy(TorchFunctionMode):
    """Make deepcopy turn tensors that are plain attributes into meta tensors as well."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__deepcopy__:
            return args[1].setdefault(id(args[0]), _known(args[0]))
        return func(*args, **(kwargs or {}))


class _DetachedCopy(TorchFunctionMode):
    """Make deepcopy detach tensors that a forward pass has left in attributes.

    torch refuses to copy such tensors.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            return args[1].setdefault(id(args[0]), copy.deepcopy(args[0].detach()))
        return func(*args, **(kwargs or {}))


def input_channels(model: nn.Module) -> list[int]:
    """Return the numbers of channels that the model may take, the likeliest first."""
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    config = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    told = (config or {}).get("input_size") if isinstance(config, dict) else None
    found = [told[0]] if told else []
    if first is not None:
        # timm keeps the pretrained configuration when a model is built with another in_chans
        found.insert(0 if first.in_channels <= 4 else len(found), first.in_channels)
    return list(dict.fromkeys([*found, 3]))


def number_format(model: nn.Module) -> torch.dtype:
    """Return the dtype that the model's input must have.

    It is the floating-point type of the model's first parameter that has one.
    """
    return next(
        (p.dtype for p in model.parameters() if p.is_floating_point()), torch.get_default_dtype()
    )


def default_size(model: nn.Module) -> tuple[int, int]:
    """Return the (h, w) in pixels that the model was made for, by default (224, 224)."""
    for holder in (getattr(model, "patch_embed", None), model):
        for name in ("img_size", "image_size"):
            said = getattr(holder, name, None)
            if isinstance(said, int) and not isinstance(said, bool) and said > 0:
                return said, said
            if isinstance(said, (tuple, list)) and len(said) == 2:
                return int(said[0]), int(said[1])
    config = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    if isinstance(config, dict) and config.get("input_size"):
        return tuple(config["input_size"][-2:])
    # torchvision records no size
    return (299, 299) if type(model).__name__ == "Inception3" else (224, 224)


@torch.inference_mode(False)  # in which a copy could never learn
def copied_model(model: nn.Module, *, apart: bool = False) -> nn.Module:
    """Return a deep copy of a model.

    If `apart`, the containers outside of the model that its hooks write into are copied as well.

    Raises:
        ModelError: the model cannot be copied.
    """
    try:
        return duplicate(model, {}, apart=apart)
    except Exception as problem:
        raise ModelError(
            f"{type(model).__name__} cannot be copied ({problem}); make copy.deepcopy(model) work "
            "(for old-style weight_norm: use torch.nn.utils.parametrizations), or pass "
            "inplace=True"
        ) from problem
