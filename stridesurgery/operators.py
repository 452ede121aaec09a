"""What is known of operators, in one table by exact type: how to read their windows, and how to make them finer.

A subclass does not inherit its parent's entry: timm's `Conv2dSame` is an `nn.Conv2d` that pads by itself, and
treating it as its parent would be a wrong number. A module without an entry is recorded from the inside, down to
the functions it calls; `register_operator` gives it one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, NamedTuple

import operator as py
import torch
import torch.nn.functional as F
from timm.layers import AvgPool2dSame, BlurPool2d, ScaledStdConv2d, ScaledStdConv2dSame, StdConv2d
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.pool2d_same import MaxPool2dSame
from timm.layers.space_to_depth import SpaceToDepth
from timm.layers.std_conv import StdConv2dSame
from timm.models.swin_transformer import PatchMerging as SwinMerging
from timm.models.swin_transformer_v2 import PatchMerging as SwinV2Merging
from torch import fx, nn
from torchvision.models.swin_transformer import PatchMerging as VisionSwinMerging
from torchvision.models.swin_transformer import PatchMergingV2 as VisionSwinV2Merging

from stridesurgery import finer, modules
from stridesurgery.trace import Traced, shape_of
from stridesurgery.window import Window, Windows

POOLS = ("max_pool", "avg_pool", "blur_pool")


@dataclass(frozen=True)
class Operator:
    """One operator as far as the grid is concerned."""

    name: str  # as a reader of the model knows it: "Conv2d", "max_pool2d"
    kind: str  # conv, max_pool, avg_pool, blur_pool, merge, slice, resize, pad, adaptive or opaque
    windows: Windows = (Window(), Window())  # (rows, columns)
    last: int = -1  # the axis of columns in its input; rows come right before it (-2: N, H, W, C)
    scale: tuple[Fraction, Fraction] | None = None  # of a resize: output over input cells, None: to a given size
    refusal: str | None = None  # why its stride cannot be made finer

    @property
    def kernel(self) -> tuple[int, int]:
        """Extent in cells; 1 where a removed pool reads one cell."""
        return tuple(1 if w.tap else w.kernel for w in self.windows)  # type: ignore[return-value]

    @property
    def step(self) -> tuple[int, int]:
        """The stride as it runs."""
        return tuple(w.step for w in self.windows)  # type: ignore[return-value]


class ModuleRule(NamedTuple):
    """What is known of a module type."""

    read: Callable[[Any], Operator]
    refine: Callable[[Any, Operator], None] | None  # edits the module so that `read` gives the operator


class FunctionRule(NamedTuple):
    """What is known of a function, its arguments given by name."""

    parameters: tuple[str, ...]
    read: Callable[[dict[str, Any]], Operator | None]
    # the call that behaves as the operator: function, positional and keyword arguments
    refine: Callable[[dict[str, Any], Operator], tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]]


MODULES: dict[type[nn.Module], ModuleRule] = {}
FUNCTIONS: dict[Callable[..., Any], FunctionRule] = {}


def register_operator(
    kind: type[nn.Module],
    *,
    read: Callable[[Any], Operator],
    refine: Callable[[Any, Operator], None] | None = None,
) -> None:
    """Teach the library a module type, by exact type.

    Args:
        kind: the module class; its instances become single layers.
        read: gives the `Operator` of an instance, with its windows in (rows, columns) order.
        refine: edits an instance (always one in a copy) so that it behaves as the given operator, whose windows
            carry the new stride. Without it the layer is listed, and refused when its stride would have to change.

    Example:
        A convolution that normalises its weights, padded symmetrically::

            register_operator(WSConv2d, read=read_conv, refine=set_stride)
    """
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise TypeError(f"register_operator takes a module class, got {kind!r}")
    MODULES[kind] = ModuleRule(read, refine)


def pair(value: Any) -> tuple[Any, Any]:
    """A setting of a 2-D operator as (rows, columns)."""
    if isinstance(value, (tuple, list)):
        return (value[0], value[1]) if len(value) == 2 else (value[0], value[0])
    return value, value


def windows(
    kernel: Any, stride: Any = 1, padding: Any = 0, dilation: Any = 1, ceil: bool = False
) -> Windows:
    """The (rows, columns) windows of an operator with torch's settings; padding may be "same" (TensorFlow's)."""
    settings = zip(pair(kernel), pair(stride), pair(padding), pair(dilation), strict=True)
    rows, columns = (Window(k, s, p, d, ceil) for k, s, p, d in settings)
    return rows, columns


def operator_of(traced: Traced, node: fx.Node) -> Operator | None:
    """The operator that a node runs, or None where it does nothing to the grid that is known here."""
    if node.op == "call_module":
        module = traced.module(node)
        rule = MODULES.get(type(module))
        return rule.read(module) if rule else None
    if node.op == "call_function" and node.target in FUNCTIONS:
        rule_ = FUNCTIONS[node.target]
        return rule_.read(arguments(node, rule_))
    return None


def arguments(node: fx.Node, rule: FunctionRule) -> dict[str, Any]:
    """A function node's arguments by name."""
    return dict(zip(rule.parameters, node.args, strict=False)) | dict(node.kwargs)


# ---- convolutions ---------------------------------------------------------------------------------------------


def read_conv(conv: nn.Conv2d) -> Operator:
    """The operator of an `nn.Conv2d` or of a subclass that pads and strides as it does."""
    name = type(conv).__name__
    if isinstance(conv, modules._Windowed):
        return Operator(name.removeprefix("Fine"), "conv", conv.windows)
    padding: Any = conv.padding
    if padding == "same":  # torch allows it at stride 1 only
        padding = tuple(d * (k - 1) // 2 for k, d in zip(conv.kernel_size, conv.dilation, strict=True))
    padding = 0 if padding == "valid" else padding
    return Operator(name, "conv", windows(conv.kernel_size, conv.stride, padding, conv.dilation))


def read_same_conv(conv: nn.Conv2d) -> Operator:
    """The operator of timm's convolutions that compute TensorFlow's "same" padding from the size."""
    if getattr(conv, "same_pad", True):
        return Operator(type(conv).__name__, "conv", windows(conv.kernel_size, conv.stride, "same", conv.dilation))
    return read_conv(conv)


def set_stride(conv: nn.Conv2d, to: Operator) -> None:
    """Give a symmetrically padded convolution or pool its new stride.

    Raises:
        NotImplementedError: the new stride needs asymmetric padding.
    """
    if not all(w.is_symmetric() for w in to.windows if w.finer > 1):
        raise NotImplementedError("needs asymmetric padding")
    conv.stride = to.step


def refine_conv(fine: type[nn.Module]) -> Callable[[nn.Conv2d, Operator], None]:
    """Edits a convolution: its stride where that is enough, else its class to `fine`."""

    def refine(conv: nn.Conv2d, to: Operator) -> None:
        if not isinstance(conv, modules._Windowed) and all(w.is_symmetric() for w in to.windows if w.finer > 1):
            if "same" not in (to.windows[0].padding, to.windows[1].padding):
                conv.stride = to.step
                return
        conv.__class__ = fine
        conv.windows = to.windows
        conv.pad_mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
        conv.stride, conv.padding = to.step, (0, 0)
        conv._reversed_padding_repeated_twice = [0, 0, 0, 0]
        if hasattr(conv, "same_pad"):
            conv.same_pad = False

    return refine


for plain, fine, read in (
    (nn.Conv2d, modules.FineConv2d, read_conv),
    (StdConv2d, modules.FineStdConv2d, read_conv),
    (ScaledStdConv2d, modules.FineScaledStdConv2d, read_conv),
    (Conv2dSame, modules.FineConv2dSame, read_same_conv),
    (StdConv2dSame, modules.FineStdConv2dSame, read_same_conv),
    (ScaledStdConv2dSame, modules.FineScaledStdConv2dSame, read_same_conv),
):
    register_operator(plain, read=read, refine=refine_conv(fine))
    register_operator(fine, read=read_conv, refine=refine_conv(fine))


# ---- pools ----------------------------------------------------------------------------------------------------


def _read_pool(kind: str, same: bool = False) -> Callable[[Any], Operator]:
    def read(pool: Any) -> Operator:
        if isinstance(pool, modules._Windowed):
            return Operator(type(pool).__name__.removeprefix("Fine"), kind, pool.windows)
        padding = "same" if same else pool.padding
        refusal = "returns indices" if getattr(pool, "return_indices", False) else None
        sides = windows(pool.kernel_size, pool.stride, padding, getattr(pool, "dilation", 1), pool.ceil_mode)
        return Operator(type(pool).__name__, kind, sides, refusal=refusal)

    return read


def _refine_pool(fine: type[nn.Module]) -> Callable[[Any, Operator], None]:
    def refine(pool: Any, to: Operator) -> None:
        plain = not isinstance(pool, modules._Windowed)
        if plain and all(w.is_symmetric() for w in to.windows if w.finer > 1):
            pool.stride = to.step
            return
        pool.__class__ = fine
        pool.windows = to.windows

    return refine


for pool, fine, kind, same in (
    (nn.MaxPool2d, modules.FineMaxPool2d, "max_pool", False),
    (MaxPool2dSame, modules.FineMaxPool2d, "max_pool", True),
    (modules.FineMaxPool2d, modules.FineMaxPool2d, "max_pool", False),
    (nn.AvgPool2d, modules.FineAvgPool2d, "avg_pool", False),
    (AvgPool2dSame, modules.FineAvgPool2d, "avg_pool", True),
    (modules.FineAvgPool2d, modules.FineAvgPool2d, "avg_pool", False),
):
    register_operator(pool, read=_read_pool(kind, same), refine=_refine_pool(fine))


def _read_blur(pool: Any) -> Operator:
    if isinstance(pool, modules._Windowed):
        return Operator("BlurPool2d", "blur_pool", pool.windows)
    left, _, top, _ = pool.padding
    return Operator("BlurPool2d", "blur_pool", windows(pool.filt_size, pool.stride, (top, left)))


def _refine_blur(pool: Any, to: Operator) -> None:
    pool.__class__ = modules.FineBlurPool2d
    pool.windows = to.windows


register_operator(BlurPool2d, read=_read_blur, refine=_refine_blur)
register_operator(modules.FineBlurPool2d, read=_read_blur, refine=_refine_blur)


# ---- space to channels ----------------------------------------------------------------------------------------


def _read_merge(block: Callable[[Any], int], last: int, padding: Any) -> Callable[[Any], Operator]:
    def read(module: Any) -> Operator:
        name = type(module).__name__.removeprefix("Fine")
        if isinstance(module, modules._Windowed):
            return Operator(name, "merge", module.windows, last)
        return Operator(name, "merge", windows(block(module), block(module), padding), last)

    return read


def _refine_merge(fine: type[nn.Module]) -> Callable[[Any, Operator], None]:
    def refine(module: Any, to: Operator) -> None:
        module.__class__ = fine
        module.windows = to.windows

    return refine


for merge, fine, block, last, padding in (
    (SwinMerging, modules.FineSwinMerging, lambda m: 2, -2, "same"),
    (SwinV2Merging, modules.FineSwinV2Merging, lambda m: 2, -2, "same"),
    (VisionSwinMerging, modules.FineVisionSwinMerging, lambda m: 2, -2, "same"),
    (VisionSwinV2Merging, modules.FineVisionSwinV2Merging, lambda m: 2, -2, "same"),
    (SpaceToDepth, modules.FineSpaceToDepth, lambda m: m.bs, -1, 0),
    (nn.PixelUnshuffle, modules.FinePixelUnshuffle, lambda m: m.downscale_factor, -1, 0),
):
    for kind_ in (merge, fine):
        register_operator(kind_, read=_read_merge(block, last, padding), refine=_refine_merge(fine))


# ---- resizing, padding, adaptive pools, and what is only recognised -------------------------------------------


def _scale(factor: Any) -> tuple[Fraction, Fraction] | None:
    if factor is None:
        return None
    rows, columns = pair(factor)
    return Fraction(rows).limit_denominator(64), Fraction(columns).limit_denominator(64)


def _read_upsample(module: nn.Upsample) -> Operator:
    return Operator(type(module).__name__, "resize", scale=_scale(module.scale_factor if module.size is None else None))


def _refine_upsample(module: nn.Upsample, to: Operator) -> None:
    assert to.scale is not None
    module.scale_factor = tuple(float(s) for s in to.scale)


for upsample in (nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d):
    register_operator(upsample, read=_read_upsample, refine=_refine_upsample)

register_operator(
    nn.PixelShuffle,
    read=lambda m: Operator("PixelShuffle", "resize", scale=_scale(m.upscale_factor), refusal="spreads channels over space"),
)
register_operator(
    nn.ConvTranspose2d,
    read=lambda m: Operator(
        "ConvTranspose2d",
        "resize",
        windows(m.kernel_size, 1, m.padding, m.dilation),
        scale=tuple(Fraction(s) for s in m.stride),  # type: ignore[arg-type]
        refusal="is a learned upsampling, whose stride has no finer form",
    ),
)


def _read_pad(module: Any) -> Operator:
    left, _, top, _ = module.padding
    return Operator(type(module).__name__, "pad", windows(1, 1, (top, left)))


for padder in (nn.ZeroPad2d, nn.ConstantPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d, nn.CircularPad2d):
    register_operator(padder, read=_read_pad)
for adaptive in (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d):
    register_operator(adaptive, read=lambda m: Operator(type(m).__name__, "adaptive"))
for unknown in (nn.LPPool2d, nn.FractionalMaxPool2d, nn.MaxUnpool2d):
    register_operator(
        unknown, read=lambda m: Operator(type(m).__name__, "opaque", refusal="is not understood")
    )


# ---- functions ------------------------------------------------------------------------------------------------

Call = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]


def _is_number(value: Any) -> bool:
    return not isinstance(value, fx.Node) and (not isinstance(value, Sequence) or all(_is_number(v) for v in value))


def _read_f_conv(a: dict[str, Any]) -> Operator | None:
    weight = shape_of(a["weight"])
    stride, padding, dilation = a.get("stride", 1), a.get("padding", 0), a.get("dilation", 1)
    if weight is None or len(weight) != 4:
        return None
    if not all(_is_number(v) for v in (stride, padding, dilation)):
        return Operator("conv2d", "opaque", windows(weight[2:]), refusal="computes its stride or padding from the input")
    if padding == "same":
        padding = tuple(d * (k - 1) // 2 for k, d in zip(weight[2:], pair(dilation), strict=True))
    return Operator("conv2d", "conv", windows(weight[2:], stride, 0 if padding == "valid" else padding, dilation))


def _refine_f_conv(a: dict[str, Any], to: Operator) -> Call:
    return finer.conv2d, (a["input"], a["weight"], a.get("bias"), to.windows, a.get("groups", 1)), {}


FUNCTIONS[torch.conv2d] = FunctionRule(
    ("input", "weight", "bias", "stride", "padding", "dilation", "groups"), _read_f_conv, _refine_f_conv
)


def _read_f_pool(name: str, kind: str) -> Callable[[dict[str, Any]], Operator | None]:
    def read(a: dict[str, Any]) -> Operator | None:
        kernel, stride = a["kernel_size"], a.get("stride")
        stride = kernel if stride is None or stride == [] or stride == () else stride
        padding, dilation = a.get("padding", 0), a.get("dilation", 1)
        if not all(_is_number(v) for v in (kernel, stride, padding, dilation)):
            return Operator(name, "opaque", refusal="computes its kernel, stride or padding from the input")
        sides = windows(kernel, stride, padding, dilation, bool(a.get("ceil_mode", False)))
        return Operator(name, kind, sides, refusal="returns indices" if a.get("return_indices") else None)

    return read


def _refine_f_max_pool(a: dict[str, Any], to: Operator) -> Call:
    return finer.max_pool2d, (a["input"], to.windows), {}


def _refine_f_avg_pool(a: dict[str, Any], to: Operator) -> Call:
    args = (a["input"], to.windows, a.get("count_include_pad", True), a.get("divisor_override"))
    return finer.avg_pool2d, args, {}


_max_pool = FunctionRule(
    ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices"),
    _read_f_pool("max_pool2d", "max_pool"),
    _refine_f_max_pool,
)
for function in (F.max_pool2d, torch.max_pool2d):
    FUNCTIONS[function] = _max_pool
FUNCTIONS[F.avg_pool2d] = FunctionRule(
    ("input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),
    _read_f_pool("avg_pool2d", "avg_pool"),
    _refine_f_avg_pool,
)


def _read_fine(kind: str, name: str, last: int = -1) -> Callable[[dict[str, Any]], Operator]:
    def read(a: dict[str, Any]) -> Operator:
        rows, columns = a["windows"]
        return Operator(name, kind, (Window(*rows), Window(*columns)), a.get("last", last))

    return read


def _refine_fine(function: Callable[..., Any]) -> Callable[[dict[str, Any], Operator], Call]:
    return lambda a, to: (function, (a["input"],), {k: v for k, v in a.items() if k != "input"} | {"windows": to.windows})


for function, parameters, kind, last in (
    (finer.conv2d, ("input", "weight", "bias", "windows", "groups"), "conv", -1),
    (finer.max_pool2d, ("input", "windows"), "max_pool", -1),
    (finer.avg_pool2d, ("input", "windows", "count_include_pad", "divisor_override"), "avg_pool", -1),
    (finer.blur_pool2d, ("input", "blur", "windows", "mode"), "blur_pool", -1),
    (finer.merge_patches, ("input", "windows"), "merge", -2),
    (finer.space_to_depth, ("input", "windows", "channels_first"), "merge", -1),
    (finer.strided_slice, ("input", "windows", "last"), "slice", -1),
):
    FUNCTIONS[function] = FunctionRule(parameters, _read_fine(kind, function.__name__, last), _refine_fine(function))


def _read_unshuffle(a: dict[str, Any]) -> Operator:
    return Operator("pixel_unshuffle", "merge", windows(a["downscale_factor"], a["downscale_factor"]))


FUNCTIONS[F.pixel_unshuffle] = FunctionRule(
    ("input", "downscale_factor"),
    _read_unshuffle,
    lambda a, to: (finer.space_to_depth, (a["input"], to.windows, True), {}),
)


def _read_interpolate(a: dict[str, Any]) -> Operator | None:
    shape = shape_of(a["input"])
    if shape is None or len(shape) != 4:
        return None
    factor = a.get("scale_factor")
    known = a.get("size") is None and _is_number(factor)
    return Operator("interpolate", "resize", scale=_scale(factor) if known else None)


def _refine_interpolate(a: dict[str, Any], to: Operator) -> Call:
    assert to.scale is not None
    settings = {k: v for k, v in a.items() if k != "input"} | {"scale_factor": tuple(float(s) for s in to.scale)}
    return F.interpolate, (a["input"],), settings


FUNCTIONS[F.interpolate] = FunctionRule(
    ("input", "size", "scale_factor", "mode", "align_corners", "recompute_scale_factor", "antialias"),
    _read_interpolate,
    _refine_interpolate,
)


def _read_f_pad(a: dict[str, Any]) -> Operator | None:
    shape, pads = shape_of(a["input"]), a["pad"]
    if shape is None or len(shape) != 4 or len(pads) not in (4, 6):
        return None
    last = -1 if len(pads) == 4 else -2
    left, top = pads[-4], pads[-2]
    if len(pads) == 6 and (pads[0], pads[1]) != (0, 0):
        return None
    # a padding computed from the size is on the right in every known model; what is not a number shifts nothing known
    known = _is_number(left) and _is_number(top)
    return Operator("pad", "pad" if known else "unknown_pad", windows(1, 1, (top, left)) if known else windows(1), last)


FUNCTIONS[F.pad] = FunctionRule(("input", "pad"), _read_f_pad, lambda a, to: (F.pad, tuple(a.values()), {}))


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
    if len(shape) != 4 or not changed or not all(_is_number(v) for s in slices for v in (s.start, s.step)):
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
    refusal = "ends before the map does" if any(s.stop is not None for s in (rows, columns)) else None
    return Operator("slice", kind, sides, last, refusal=refusal)  # type: ignore[arg-type]


FUNCTIONS[py.getitem] = FunctionRule(
    ("input", "index"), _read_getitem, lambda a, to: (finer.strided_slice, (a["input"], to.windows, to.last), {})
)


def is_leaf(module: nn.Module) -> bool:
    """Whether a module is one operator: known here, or torch's or timm's own without space inside."""
    kind = type(module)
    if kind in MODULES:
        return True
    if kind.__module__.startswith("torch.nn.modules"):
        return not isinstance(module, (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict))
    return kind.__module__ in _POINTWISE


# modules that treat every cell alike (or drop some in training): what they do inside says nothing of the grid
_POINTWISE = {
    *(f"timm.layers.{name}" for name in ("norm", "norm_act", "drop", "activations", "activations_me", "grn", "layer_scale")),
    "torchvision.ops.stochastic_depth",
}


def refined(operator: Operator, finer_by: tuple[int, int], remove: bool) -> Operator:
    """The operator with its stride divided by (rows, columns); a pool whose stride goes to 1 is removed if asked."""
    sides = []
    for window, k in zip(operator.windows, finer_by, strict=True):
        tap = remove and k > 1 and operator.kind in POOLS and window.step == k
        sides.append(window.at(k, tap))
    return replace(operator, windows=(sides[0], sides[1]))
