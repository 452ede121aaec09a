"""The known functions that resize, pad, cut or lay out a map, one entry each."""

import operator as py
from typing import Any

import torch
import torch.nn.functional as F
import torchvision  # noqa: F401  (which registers its operators)

from stridesurgery._node import shape_of
from stridesurgery.ops import fine_functional
from stridesurgery.ops.functions import Call, is_number, unchangeable
from stridesurgery.ops.registry import (
    FUNCTIONS,
    FunctionRule,
    Operator,
    blocks_as_tokens,
    deformed,
    scales,
    windows,
)
from stridesurgery.ops.window import Window


def _read_interpolate(a: dict[str, Any]) -> Operator | None:
    shape = shape_of(a["input"])
    if shape is None or len(shape) != 4:
        return None
    factor = a.get("scale_factor")
    known = a.get("size") is None and is_number(factor)
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
    unchangeable,
)


def _read_only(kind: str, name: str, refusal: str | None = None) -> FunctionRule:
    return FunctionRule(("input",), lambda a: Operator(name, kind, refusal=refusal), unchangeable)


FUNCTIONS[F.fold] = _read_only("resize", "fold")
FUNCTIONS[F.unfold] = FunctionRule(
    ("input", "kernel_size", "dilation", "padding", "stride"),
    lambda a: blocks_as_tokens(
        "unfold", a["kernel_size"], a.get("stride", 1), a.get("padding", 0), a.get("dilation", 1)
    ),
    unchangeable,
)
_DEFORM = ("input", "weight", "offset", "mask", "bias", "stride_h", "stride_w", "pad_h", "pad_w")
FUNCTIONS[torch.ops.torchvision.deform_conv2d] = FunctionRule(
    (*_DEFORM, "dilation_h", "dilation_w"),
    lambda a: deformed(
        "deform_conv2d",
        (shape_of(a["weight"]) or (1, 1, 1, 1))[2:],
        *((a[f"{name}_h"], a[f"{name}_w"]) for name in ("stride", "pad", "dilation")),
    ),
    unchangeable,
)


def _read_adaptive(name: str) -> FunctionRule:
    def read(a: dict[str, Any]) -> Operator:
        size = a.get("output_size")
        if not is_number(size):
            return Operator(name, "opaque", refusal="pools to a size that is computed from its own")
        return Operator(
            name, "pad" if isinstance(size, (tuple, list)) and None in size else "adaptive"
        )

    return FunctionRule(("input", "output_size"), read, unchangeable)


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
    known = is_number(left) and is_number(top)
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
        or not all(is_number(v) for s in slices for v in (s.start, s.step))
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
