"""The known functions that make maps coarser, one entry each: convolutions, pools, merges."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
import torchvision  # noqa: F401  (which registers its operators)
from torch import fx

from stridesurgery._node import shape_of
from stridesurgery.ops import fine_functional
from stridesurgery.ops.registry import (
    FUNCTIONS,
    FunctionRule,
    Operator,
    pair,
    windows,
)
from stridesurgery.ops.window import Window

Call = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]


def is_number(value: Any) -> bool:
    """Return True if a value is no node of a graph, and holds none."""
    return (
        all(map(is_number, value))
        if isinstance(value, (list, tuple))
        else not isinstance(value, fx.Node)
    )


def _is_size_of(value: Any, source: Any) -> bool:
    """Return True if a kernel is the (h, w) of its map, read while the forward code runs."""
    sizes, shape = pair(value), shape_of(source)
    if (
        shape is None
        or len(shape) != 4
        or not all(isinstance(n, fx.Node) and n.target == "size" for n in sizes)
    ):
        return False
    read = [(shape_of(n.args[0]), n.args[1] % 4) for n in sizes]
    return all(
        of is not None and axis == i and of[2:] == shape[2:] for i, (of, axis) in enumerate(read, 2)
    )


def unchangeable(a: dict[str, Any], to: Operator) -> Call:
    """Refuse an operator without a finer form."""
    raise NotImplementedError(to.name)  # planning refuses these before


def _read_f_conv(a: dict[str, Any]) -> Operator | None:
    weight = shape_of(a["weight"])
    stride, padding, dilation = a.get("stride", 1), a.get("padding", 0), a.get("dilation", 1)
    if weight is None or len(weight) != 4:
        return None
    if not all(is_number(v) for v in (stride, padding, dilation)):
        return Operator(
            "conv2d",
            "opaque",
            windows(weight[2:]),
            refusal="computes its stride or padding from the input",
        )
    if padding == "same":
        padding = tuple(d * (k - 1) // 2 for k, d in zip(weight[2:], pair(dilation), strict=True))
    return Operator(
        "conv2d",
        "conv",
        windows(weight[2:], stride, 0 if padding == "valid" else padding, dilation),
    )


def _refine_f_conv(a: dict[str, Any], to: Operator) -> Call:
    return (
        fine_functional.conv2d,
        (a["input"], a["weight"], a.get("bias"), to.windows, a.get("groups", 1)),
        {},
    )


FUNCTIONS[torch.conv2d] = FunctionRule(
    ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    _read_f_conv,
    _refine_f_conv,
)


def _read_f_pool(name: str, kind: str) -> Callable[[dict[str, Any]], Operator | None]:
    def read(a: dict[str, Any]) -> Operator | None:
        kernel, stride = a["kernel_size"], a.get("stride")
        stride = kernel if stride is None or stride == [] or stride == () else stride
        padding, dilation = a.get("padding", 0), a.get("dilation", 1)
        if padding in (0, (0, 0)) and _is_size_of(kernel, a["input"]):
            return Operator(name, "adaptive")  # global pooling, whatever its stride
        if not all(is_number(v) for v in (kernel, stride, padding, dilation)):
            return Operator(
                name, "opaque", refusal="computes its kernel, stride or padding from the input"
            )
        sides = windows(kernel, stride, padding, dilation, bool(a.get("ceil_mode", False)))
        refusal = "returns indices" if a.get("return_indices") else None
        if a.get("ceil_mode") and pair(dilation) != (1, 1):
            refusal = "is dilated in ceil mode, where a window may hold no cell"
        return Operator(name, kind, sides, refusal=refusal)

    return read


def _refine_f_max_pool(a: dict[str, Any], to: Operator) -> Call:
    return fine_functional.max_pool2d, (a["input"], to.windows), {}


def _refine_f_avg_pool(a: dict[str, Any], to: Operator) -> Call:
    divisor = a.get("divisor_override")
    if divisor is not None:  # a window that takes an eliminated stride on is larger
        divisor *= math.prod(w.kernel for w in to.windows) // math.prod(pair(a["kernel_size"]))
    args = (a["input"], to.windows, a.get("count_include_pad", True), divisor)
    return fine_functional.avg_pool2d, args, {}


_max_pool = FunctionRule(
    ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices"),
    _read_f_pool("max_pool2d", "max_pool"),
    _refine_f_max_pool,
)
for _pool in (F.max_pool2d, torch.max_pool2d):
    FUNCTIONS[_pool] = _max_pool
FUNCTIONS[F.avg_pool2d] = FunctionRule(
    (
        "input",
        "kernel_size",
        "stride",
        "padding",
        "ceil_mode",
        "count_include_pad",
        "divisor_override",
    ),
    _read_f_pool("avg_pool2d", "avg_pool"),
    _refine_f_avg_pool,
)


def _read_fine(kind: str, name: str, last: int = -1) -> Callable[[dict[str, Any]], Operator]:
    def read(a: dict[str, Any]) -> Operator:
        rows, columns = a["windows"]
        return Operator(name, kind, (Window(*rows), Window(*columns)), a.get("last", last))

    return read


def _refine_fine(function: Callable[..., Any]) -> Callable[[dict[str, Any], Operator], Call]:
    return lambda a, to: (
        function,
        (a["input"],),
        {k: v for k, v in a.items() if k != "input"} | {"windows": to.windows},
    )


for _fine, _parameters, _kind, _last in (
    (fine_functional.conv2d, ("input", "weight", "bias", "windows", "groups"), "conv", -1),
    (fine_functional.max_pool2d, ("input", "windows"), "max_pool", -1),
    (
        fine_functional.avg_pool2d,
        ("input", "windows", "count_include_pad", "divisor_override"),
        "avg_pool",
        -1,
    ),
    (fine_functional.blur_pool2d, ("input", "blur", "windows", "mode"), "blur_pool", -1),
    (fine_functional.merge_patches, ("input", "windows"), "merge", -2),
    (fine_functional.space_to_depth, ("input", "windows", "channels_first"), "merge", -1),
    (fine_functional.strided_slice, ("input", "windows", "last"), "slice", -1),
):
    FUNCTIONS[_fine] = FunctionRule(
        _parameters, _read_fine(_kind, _fine.__name__, _last), _refine_fine(_fine)
    )


def _read_sample(a: dict[str, Any]) -> Operator:
    return Operator(
        "sample", "slice", windows(1, a["by"]), a.get("last", -1), refusal="is a path of its own"
    )


FUNCTIONS[fine_functional.sample] = FunctionRule(
    ("input", "by", "last"), _read_sample, unchangeable
)


def _read_unshuffle(a: dict[str, Any]) -> Operator:
    return Operator(
        "pixel_unshuffle", "merge", windows(a["downscale_factor"], a["downscale_factor"])
    )


FUNCTIONS[F.pixel_unshuffle] = FunctionRule(
    ("input", "downscale_factor"),
    _read_unshuffle,
    lambda a, to: (fine_functional.space_to_depth, (a["input"], to.windows, True), {}),
)
