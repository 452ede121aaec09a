"""What is known of operators beyond their windows: which modules are one, and which results are plain.

Running those whose result is plain on weightless tensors would take half of a recording's time.
"""

from typing import Any

from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from stridesurgery.ops.registry import MODULES

_SHAPELESS = {nn.BatchNorm2d, BatchNormAct2d, nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU} | {
    nn.Hardswish,
    nn.Hardsigmoid,
    nn.Sigmoid,
    nn.Dropout,
}
_SUMS = {"add", "__add__", "mul", "__mul__"}


def known_result(module: nn.Module, x: Tensor) -> Tensor | None:
    """A module's output; None where it must be run to know."""
    if type(module) in _SHAPELESS:
        return x if getattr(module, "inplace", False) else x.clone()
    if type(module) is nn.LayerNorm and tuple(x.shape[-len(module.normalized_shape) :]) == module.normalized_shape:
        return x.clone()
    if type(module) is nn.Linear and x.shape[-1] == module.in_features:
        return x.new_empty((*x.shape[:-1], module.out_features))
    if type(module) is nn.AdaptiveAvgPool2d and module.output_size in (1, (1, 1)):
        return x.new_empty((*x.shape[:-2], 1, 1))
    return None


def known_sum(name: str, args: Any, kwargs: dict[str, Any]) -> Tensor | None:
    """What adding or multiplying plain tensors gives: without numbers torch takes long to tell their shape."""
    if name not in _SUMS or len(args) != 2 or kwargs or not all(isinstance(a, Tensor) for a in args):
        return None
    a, b = args
    if a.dtype != b.dtype or a.dim() != b.dim() or not (a.is_contiguous() and b.is_contiguous()):
        return None
    sides = list(zip(a.shape, b.shape, strict=True))
    return a.new_empty([max(side) for side in sides]) if all(n == m or min(n, m) == 1 for n, m in sides) else None


def is_leaf(module: nn.Module) -> bool:
    """Whether a module is one operator: known here, or torch's or timm's own without space inside."""
    kind = type(module)
    if kind in MODULES or kind is ParametrizationList:  # which may keep its gradients to itself (spectral_norm)
        return True
    if kind.__module__.startswith("torch.nn.modules"):
        return not isinstance(module, (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict))
    return kind.__module__ in _POINTWISE


# modules that treat every cell alike (or drop some in training): what they do inside says nothing of the grid
_POINTWISE = {
    *(
        f"timm.layers.{name}"
        for name in ("norm", "norm_act", "drop", "activations", "activations_me", "grn", "layer_scale")
    ),
    "torchvision.ops.stochastic_depth",
}
