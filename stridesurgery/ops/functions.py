"""The known functions, one entry each: what forward code may call instead of a module."""

import math
import operator as py
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
    blocks_as_tokens,
    deformed,
    pair,
    scales,
    windows,
)
from stridesurgery.ops.window import Window

Call = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]


def _is_number(value: Any) -> bool:
    return (
        all(map(_is_number, value))
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


def _read_f_conv(a: dict[str, Any]) -> Operator | None:
    weight = shape_of(a["weight"])
    stride, padding, dilation = a.get("stride", 1), a.get("padding", 0), a.get("dilation", 1)
    if weight is None or len(weight) != 4:
        return None
    if not all(_is_number(v) for v in (stride, padding, dilation)):
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
        if not all(_is_number(v) for v in (kernel, stride, padding, dilation)):
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
    ("input", "by", "last"), _read_sample, lambda a, to: _unchangeable(a, to)
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


def _read_interpolate(a: dict[str, Any]) -> Operator | None:
    shape = shape_of(a["input"])
    if shape is None or len(shape) != 4:
        return None
    factor = a.get("scale_factor")
    known = a.get("size") is None and _is_number(factor)
    return Operator("interpolate", "resize", scale=scales(factor) if known else None)


def _refine_interpolate(a: dict[str, Any], to: Operator) -> Call:
    assert to.scale is not None
    settings = {k: v for k, v in a.items() if k != "input"} | {
        "scale_factor": tuple(float(s) for s in to.scale)
    }
    return F.interpolate, (a["input"],), settings


FUNCTIONS[F.interpolate] = FunctionRule(
    (
        "input",
        "size",
        "scale_factor",
        "mode",
        "align_corners",
        "recompute_scale_factor",
        "antialias",
    ),
    _read_interpolate,
    _refine_interpolate,
)


def _unchangeable(a: dict[str, Any], to: Operator) -> Call:
    raise NotImplementedError(to.name)  # planning refuses these before


def _read_transposed(a: dict[str, Any]) -> Operator:
    weight, stride = shape_of(a["weight"]) or (1, 1, 1, 1), a.get("stride", 1)
    sides = windows(weight[2:], 1, a.get("padding", 0), a.get("dilation", 1))
    refusal = "is a learned upsampling, whose stride has no finer form"
    return Operator(
        "conv_transpose2d", "resize", sides, scale=scales(stride), refusal=refusal, transposed=True
    )


FUNCTIONS[torch.conv_transpose2d] = FunctionRule(
    ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation"),
    _read_transposed,
    _unchangeable,
)


def _read_only(kind: str, name: str, refusal: str | None = None) -> FunctionRule:
    return FunctionRule(("input",), lambda a: Operator(name, kind, refusal=refusal), _unchangeable)


FUNCTIONS[F.fold] = _read_only("resize", "fold")
FUNCTIONS[F.unfold] = FunctionRule(
    ("input", "kernel_size", "dilation", "padding", "stride"),
    lambda a: blocks_as_tokens(
        "unfold", a["kernel_size"], a.get("stride", 1), a.get("padding", 0), a.get("dilation", 1)
    ),
    _unchangeable,
)
_DEFORM = ("input", "weight", "offset", "mask", "bias", "stride_h", "stride_w", "pad_h", "pad_w")
FUNCTIONS[torch.ops.torchvision.deform_conv2d] = FunctionRule(
    (*_DEFORM, "dilation_h", "dilation_w"),
    lambda a: deformed(
        "deform_conv2d",
        (shape_of(a["weight"]) or (1, 1, 1, 1))[2:],
        *((a[f"{name}_h"], a[f"{name}_w"]) for name in ("stride", "pad", "dilation")),
    ),
    _unchangeable,
)


def _read_adaptive(name: str) -> FunctionRule:
    def read(a: dict[str, Any]) -> Operator:
        size = a.get("output_size")
        if not _is_number(size):
            return Operator(name, "opaque", refusal="pools to a size that is computed from its own")
        return Operator(
            name, "pad" if isinstance(size, (tuple, list)) and None in size else "adaptive"
        )

    return FunctionRule(("input", "output_size"), read, _unchangeable)


for _adaptive in (F.adaptive_avg_pool2d, F.adaptive_max_pool2d):
    FUNCTIONS[_adaptive] = _read_adaptive(_adaptive.__name__)
for _strange in (F.lp_pool2d, F.fractional_max_pool2d):
    FUNCTIONS[_strange] = _read_only("opaque", _strange.__name__, "is not understood")


def _read_f_pad(a: dict[str, Any]) -> Operator | None:
    shape, pads = shape_of(a["input"]), a["pad"]
    if shape is None or len(shape) != 4 or len(pads) not in (4, 6):
        return None
    last = -1 if len(pads) == 4 else -2
    left, top = pads[-4], pads[-2]
    if len(pads) == 6 and (pads[0], pads[1]) != (0, 0):
        return None
    # a padding computed from the size is on the right in every known model; what is not a number
    # shifts nothing known
    known = _is_number(left) and _is_number(top)
    return Operator(
        "pad",
        "pad" if known else "unknown_pad",
        windows(1, 1, (top, left)) if known else windows(1),
        last,
    )


FUNCTIONS[F.pad] = FunctionRule(
    ("input", "pad"), _read_f_pad, lambda a, to: (F.pad, tuple(a.values()), {})
)


def _read_getitem(a: dict[str, Any]) -> Operator | None:
    shape, index = shape_of(a["input"]), a["index"]
    index = index if isinstance(index, tuple) else (index,)
    if shape is None or not any(isinstance(i, slice) for i in index):
        return None
    if any(not isinstance(i, slice) and i is not Ellipsis for i in index):
        return None
    if Ellipsis in index:
        at = index.index(Ellipsis)
        index = (*index[:at], *(slice(None),) * (len(shape) - len(index) + 1), *index[at + 1 :])
    slices = list(index) + [slice(None)] * (len(shape) - len(index))
    changed = [i for i, s in enumerate(slices) if s != slice(None)]
    if (
        len(shape) != 4
        or not changed
        or not all(_is_number(v) for s in slices for v in (s.start, s.step))
    ):
        return None
    last = next((c for c in (-1, -2) if set(changed) <= {4 + c, 3 + c}), None)
    strides = [slices[i].step or 1 for i in changed]
    if last is None or (len(changed) == 1 and changed == [4 + last] and max(strides) == 1):
        return None  # channels, or one axis only: nothing that is known to be space
    if len(changed) == 1:
        return None
    rows, columns = slices[3 + last], slices[4 + last]
    if any((s.start or 0) < 0 for s in (rows, columns)):
        return None
    sides = tuple(Window(1, s.step or 1, -(s.start or 0)) for s in (rows, columns))
    kind = "slice" if max(strides) > 1 else "pad"
    refusal = (
        "ends before the map does" if any(s.stop is not None for s in (rows, columns)) else None
    )
    return Operator("slice", kind, sides, last, refusal=refusal)  # type: ignore[arg-type]


FUNCTIONS[py.getitem] = FunctionRule(
    ("input", "index"),
    _read_getitem,
    lambda a, to: (fine_functional.strided_slice, (a["input"], to.windows, to.last), {}),
)
