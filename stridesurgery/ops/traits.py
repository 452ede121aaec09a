"""The table of what operators do besides moving windows over a grid; every room reads it here.

Modules by their exact type, functions by the name by which forward code calls them.
"""

from dataclasses import dataclass
from typing import Any

from timm import layers
from timm.layers import activations
from torch import Tensor, fx, nn
from torch.nn.utils.parametrize import ParametrizationList
from torchvision.ops import FrozenBatchNorm2d

from stridesurgery._node import called
from stridesurgery.ops.registry import MODULES


@dataclass(frozen=True)
class Traits:
    """Facts about one operator; nothing is known of an operator without an entry."""

    per_cell: bool = (
        False  # a cell of the result depends on that cell of the input, batch statistics apart
    )
    passes: bool = False  # eval mode returns the input as it is
    updates_statistics: bool = False  # in train mode, as `F.batch_norm` does
    arithmetic: bool = False  # of two operands, one of which may be a number or broadcast
    per_map: bool = False  # reads no size besides those of its own input: pooled and joined values
    mixes_cells: bool = False  # a product of matrices, such as attention
    like_first: bool = (
        False  # takes the number format and the device, no values, from other operands
    )
    looks_up: bool = False  # reads rows of a table
    reads_part: bool = False  # reads some positions of its input


def _variants(names: str) -> list[str]:
    """Names of arithmetic as operators, in place and as methods."""
    return [
        f"{kind}{name}{end}"
        for name in names.split()
        for kind, end in (("", ""), ("", "_"), ("i", ""))
    ]


_PER_CELL = Traits(per_cell=True)
_BATCH_NORM = Traits(per_cell=True, updates_statistics=True)
_ARITHMETIC = Traits(per_cell=True, arithmetic=True)
_READS = Traits(reads_part=True)

_MODULES: dict[type[nn.Module], Traits] = {
    nn.Identity: Traits(per_cell=True, passes=True),
    **dict.fromkeys((nn.Dropout, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout), Traits(passes=True)),
    **dict.fromkeys(
        (
            nn.ReLU,
            nn.ReLU6,
            nn.LeakyReLU,
            nn.PReLU,
            nn.ELU,
            nn.SELU,
            nn.CELU,
            nn.GELU,
            nn.SiLU,
            nn.Mish,
            nn.Tanh,
        )
        + (
            nn.Sigmoid,
            nn.Hardswish,
            nn.Hardsigmoid,
            nn.Hardtanh,
            nn.Softplus,
            nn.Softsign,
            nn.LogSigmoid,
        )
        + (nn.Tanhshrink, nn.Softshrink, nn.Hardshrink, nn.Threshold)
        + (
            activations.Swish,
            activations.Mish,
            activations.Sigmoid,
            activations.Tanh,
            activations.HardSwish,
        )
        + (
            activations.HardSigmoid,
            activations.HardMish,
            activations.PReLU,
            activations.GELU,
            activations.GELUTanh,
        )
        + (activations.QuickGELU, FrozenBatchNorm2d, layers.FrozenBatchNormAct2d),
        _PER_CELL,
    ),
    **dict.fromkeys(
        (
            nn.BatchNorm1d,
            nn.BatchNorm2d,
            nn.SyncBatchNorm,
            layers.BatchNormAct2d,
            layers.SyncBatchNormAct,
        ),
        _BATCH_NORM,
    ),
    nn.Embedding: Traits(looks_up=True),
}

_FUNCTIONS: dict[str, Traits] = {
    **dict.fromkeys(
        _variants(
            "add sub mul div truediv floordiv pow rsub true_divide floor_divide maximum minimum"
        ),
        _ARITHMETIC,
    ),
    **dict.fromkeys(
        """
        relu relu_ relu6 leaky_relu leaky_relu_ elu elu_ selu celu gelu silu mish prelu tanh tanh_
        sigmoid sigmoid_ logsigmoid log_sigmoid hardswish hardsigmoid hardtanh hardtanh_ softplus
        softsign threshold clamp clamp_ clip exp log sqrt rsqrt abs neg square reciprocal batch_norm
        type_as to float half clone detach contiguous
        """.split(),
        _PER_CELL,
    ),
    **dict.fromkeys(("type_as", "to"), Traits(per_cell=True, like_first=True)),
    **dict.fromkeys(("dropout", "dropout_"), Traits(passes=True)),
    **dict.fromkeys(("cat", "concat", "flatten", "mean"), Traits(per_map=True)),
    **dict.fromkeys(
        ("matmul", "bmm", "baddbmm", "einsum", "scaled_dot_product_attention"),
        Traits(mixes_cells=True),
    ),
    **dict.fromkeys(("narrow", "select", "topk", "unbind", "split", "chunk"), _READS),
    **dict.fromkeys(("getitem", "index_select"), Traits(looks_up=True, reads_part=True)),
    **dict.fromkeys(("embedding", "gather", "take", "take_along_dim"), Traits(looks_up=True)),
}
_UNKNOWN = Traits()


def module_traits(module: nn.Module) -> Traits:
    """Return what is known of a module, by its exact type."""
    return _MODULES.get(type(module), _UNKNOWN)


def function_traits(node: fx.Node) -> Traits:
    """Return what is known of the function or method that a node calls."""
    return (
        _FUNCTIONS.get(called(node), _UNKNOWN)
        if node.op in ("call_function", "call_method")
        else _UNKNOWN
    )


def is_per_cell(node: fx.Node, module: nn.Module | None) -> bool:
    """Return True if eval mode makes each cell of a node's value from that cell alone.

    `module` is the one that it calls, if any. A norm by the statistics of the batch sees all cells.
    """
    traits = function_traits(node) if module is None else module_traits(module)
    by_batch = called(node) == "batch_norm" or not getattr(module, "track_running_stats", True)
    return (traits.per_cell or traits.passes) and not by_batch


def known_result(module: nn.Module, x: Tensor) -> Tensor | None:
    """Return a module's output on a weightless tensor without a run; None where it must run.

    Running all of them would take half of a recording's time.
    """
    traits = module_traits(module)
    if traits.per_cell or traits.passes:
        return x if getattr(module, "inplace", False) else x.clone()
    if (
        type(module) is nn.LayerNorm
        and tuple(x.shape[-len(module.normalized_shape) :]) == module.normalized_shape
    ):
        return x.clone()
    if type(module) is nn.Linear and x.shape[-1] == module.in_features:
        return x.new_empty((*x.shape[:-1], module.out_features))
    if type(module) is nn.AdaptiveAvgPool2d and module.output_size in (1, (1, 1)):
        return x.new_empty((*x.shape[:-2], 1, 1))
    return None


_SUMS = {"add", "__add__", "mul", "__mul__"}


def known_sum(name: str, args: Any, kwargs: dict[str, Any]) -> Tensor | None:
    """Return the sum or product of plain weightless tensors: torch is slow to tell its shape."""
    if (
        name not in _SUMS
        or len(args) != 2
        or kwargs
        or not all(isinstance(a, Tensor) for a in args)
    ):
        return None
    a, b = args
    if a.dtype != b.dtype or a.dim() != b.dim() or not (a.is_contiguous() and b.is_contiguous()):
        return None
    sides = list(zip(a.shape, b.shape, strict=True))
    return (
        a.new_empty([max(side) for side in sides])
        if all(n == m or min(n, m) == 1 for n, m in sides)
        else None
    )


def is_leaf(module: nn.Module) -> bool:
    """Return True if a module is one operator: known, or torch's or timm's with no space inside."""
    kind = type(module)
    # which may keep its gradients to itself
    if kind in MODULES or kind in _MODULES or kind is ParametrizationList:
        return True
    # a subclass that computes the same
    if kind.forward in _OWN_FORWARDS and not any(module.children()):
        return True
    if kind.__module__.startswith("torch.nn.modules"):
        return not isinstance(
            module,
            (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict),
        )
    return kind.__module__ in _WITHOUT_SPACE


_OWN_FORWARDS = {nn.Linear.forward, nn.LayerNorm.forward, nn.GroupNorm.forward}
# modules of these files treat every cell alike, or drop some in training: what they do inside says
# nothing of the grid
_WITHOUT_SPACE = {
    *(
        f"timm.layers.{name}"
        for name in (
            "norm",
            "norm_act",
            "drop",
            "activations",
            "activations_me",
            "grn",
            "layer_scale",
            "linear",
        )
    ),
    "torchvision.ops.stochastic_depth",
}
