"""The operator modules of torch, timm and torchvision that are known, one entry each."""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from timm.layers import AvgPool2dSame, BlurPool2d, ScaledStdConv2d, ScaledStdConv2dSame, StdConv2d
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.pool2d_same import MaxPool2dSame
from timm.layers.space_to_depth import SpaceToDepth
from timm.layers.std_conv import StdConv2dSame
from timm.models.swin_transformer import PatchMerging as SwinMerging
from timm.models.swin_transformer_v2 import PatchMerging as SwinV2Merging
from timm.models.swin_transformer_v2_cr import PatchMerging as SwinV2CrMerging
from torch import nn
from torchvision.models.swin_transformer import PatchMerging as VisionSwinMerging
from torchvision.models.swin_transformer import PatchMergingV2 as VisionSwinV2Merging
from torchvision.ops import DeformConv2d

from stridesurgery.ops import fine_modules
from stridesurgery.ops.registry import (
    Operator,
    blocks_as_tokens,
    deformed,
    pair,
    register_operator,
    scales,
    windows,
)

# ---- convolutions
# -------------------------------------------------------------------------------------------------


def read_conv(conv: nn.Conv2d) -> Operator:
    """Return the operator of an `nn.Conv2d` or of a subclass that pads and strides as it does."""
    name = type(conv).__name__
    if isinstance(conv, fine_modules.Windowed):
        return Operator(name.removeprefix("Fine"), "conv", conv.windows)
    padding: Any = conv.padding
    if padding == "same":  # torch allows it at stride 1 only
        padding = tuple(
            d * (k - 1) // 2 for k, d in zip(conv.kernel_size, conv.dilation, strict=True)
        )
    padding = 0 if padding == "valid" else padding
    return Operator(name, "conv", windows(conv.kernel_size, conv.stride, padding, conv.dilation))


def read_same_conv(conv: nn.Conv2d) -> Operator:
    """Return the operator of timm's convolutions with TensorFlow's "same" padding."""
    if getattr(conv, "same_pad", True):
        return Operator(
            type(conv).__name__,
            "conv",
            windows(conv.kernel_size, conv.stride, "same", conv.dilation),
        )
    return read_conv(conv)


def set_stride(conv: nn.Conv2d, to: Operator) -> None:
    """Give a symmetrically padded convolution or pool its new stride.

    Raises:
        NotImplementedError: the new stride needs asymmetric padding.
    """
    if not all(w.is_symmetric() for w in to.windows if w.finer > 1):
        raise NotImplementedError("needs asymmetric padding")
    conv.stride = to.step


def _dilate(conv: Any, to: Operator) -> None:
    """Spread the window of a convolution; "same" padding follows by itself."""
    dilation = tuple(w.dilation for w in to.windows)
    if pair(conv.dilation) != dilation:
        conv.dilation = dilation
        if "same" not in [w.padding for w in to.windows]:
            conv.padding = tuple(w.padding for w in to.windows)


def refine_conv(fine: type[nn.Module]) -> Callable[[Any, Operator], None]:
    """Edits a convolution: its stride where that is enough, else its class to `fine`."""

    def refine(conv: Any, to: Operator) -> None:
        _dilate(conv, to)
        if all(w.finer == 1 for w in to.windows) and conv.stride == to.step:
            return
        if not isinstance(conv, fine_modules.Windowed) and all(
            w.is_symmetric() for w in to.windows if w.finer > 1
        ):
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


_CONVOLUTIONS: dict[type[nn.Module], tuple[type[nn.Module], Callable[[Any], Operator]]] = {
    nn.Conv2d: (fine_modules.FineConv2d, read_conv),
    StdConv2d: (fine_modules.FineStdConv2d, read_conv),
    ScaledStdConv2d: (fine_modules.FineScaledStdConv2d, read_conv),
    Conv2dSame: (fine_modules.FineConv2dSame, read_same_conv),
    StdConv2dSame: (fine_modules.FineStdConv2dSame, read_same_conv),
    ScaledStdConv2dSame: (fine_modules.FineScaledStdConv2dSame, read_same_conv),
}
for _plain, (_fine_conv, _read) in _CONVOLUTIONS.items():
    register_operator(_plain, read=_read, refine=refine_conv(_fine_conv))
    register_operator(_fine_conv, read=read_conv, refine=refine_conv(_fine_conv))


DILATABLE = {*_CONVOLUTIONS, nn.MaxPool2d}  # types whose `refine` takes a larger dilation as well


# ---- pools
# -------------------------------------------------------------------------------------------------


def _read_pool(kind: str, same: bool = False) -> Callable[[Any], Operator]:
    def read(pool: Any) -> Operator:
        if isinstance(pool, fine_modules.Windowed):
            return Operator(type(pool).__name__.removeprefix("Fine"), kind, pool.windows)
        padding = "same" if same else pool.padding
        dilation = getattr(pool, "dilation", 1)
        refusal = "returns indices" if getattr(pool, "return_indices", False) else None
        if pool.ceil_mode and pair(dilation) != (1, 1):
            refusal = "is dilated in ceil mode, where a window may hold no cell"
        sides = windows(pool.kernel_size, pool.stride, padding, dilation, pool.ceil_mode)
        return Operator(type(pool).__name__, kind, sides, refusal=refusal)

    return read


def _refine_pool(fine: type[nn.Module], same: bool = False) -> Callable[[Any, Operator], None]:
    def refine(pool: Any, to: Operator) -> None:
        spread = tuple(w.dilation for w in to.windows) != pair(getattr(pool, "dilation", 1))
        plain = not isinstance(pool, fine_modules.Windowed) and not spread  # torch limits padding
        if plain and all(w.is_symmetric() for w in to.windows if w.finer > 1):
            pool.stride = to.step
            if pair(pool.kernel_size) != to.kernel:  # it takes an eliminated stride on
                if getattr(pool, "divisor_override", None):
                    pool.divisor_override *= math.prod(to.kernel) // math.prod(
                        pair(pool.kernel_size)
                    )
                pool.kernel_size = to.kernel
                if not same:
                    pool.padding = tuple(w.padding for w in to.windows)
            return
        pool.__class__ = fine
        pool.windows = to.windows

    return refine


for _pool, _fine_pool, _kind, _same in (
    (nn.MaxPool2d, fine_modules.FineMaxPool2d, "max_pool", False),
    (MaxPool2dSame, fine_modules.FineMaxPool2d, "max_pool", True),
    (fine_modules.FineMaxPool2d, fine_modules.FineMaxPool2d, "max_pool", False),
    (nn.AvgPool2d, fine_modules.FineAvgPool2d, "avg_pool", False),
    (AvgPool2dSame, fine_modules.FineAvgPool2d, "avg_pool", True),
    (fine_modules.FineAvgPool2d, fine_modules.FineAvgPool2d, "avg_pool", False),
):
    register_operator(_pool, read=_read_pool(_kind, _same), refine=_refine_pool(_fine_pool, _same))


def _read_blur(pool: Any) -> Operator:
    if isinstance(pool, fine_modules.Windowed):
        return Operator("BlurPool2d", "blur_pool", pool.windows)
    left, _, top, _ = pool.padding
    return Operator("BlurPool2d", "blur_pool", windows(pool.filt_size, pool.stride, (top, left)))


def _refine_blur(pool: Any, to: Operator) -> None:
    pool.__class__ = fine_modules.FineBlurPool2d
    pool.windows = to.windows


register_operator(BlurPool2d, read=_read_blur, refine=_refine_blur)
register_operator(fine_modules.FineBlurPool2d, read=_read_blur, refine=_refine_blur)


# ---- space to channels
# ----------------------------------------------------------------------------------------


def _read_merge(block: Callable[[Any], int], last: int, padding: Any) -> Callable[[Any], Operator]:
    def read(module: Any) -> Operator:
        name = type(module).__name__.removeprefix("Fine")
        if isinstance(module, fine_modules.Windowed):
            return Operator(name, "merge", module.windows, last)
        return Operator(name, "merge", windows(block(module), block(module), padding), last)

    return read


def _refine_merge(fine: type[nn.Module]) -> Callable[[Any, Operator], None]:
    def refine(module: Any, to: Operator) -> None:
        module.__class__ = fine
        module.windows = to.windows

    return refine


for _merge, _fine_merge, _block, _last, _padding in (
    (SwinMerging, fine_modules.FineSwinMerging, lambda m: 2, -2, "same"),
    (SwinV2CrMerging, fine_modules.FineSwinV2CrMerging, lambda m: 2, -2, "same"),
    (SwinV2Merging, fine_modules.FineSwinV2Merging, lambda m: 2, -2, "same"),
    (VisionSwinMerging, fine_modules.FineVisionSwinMerging, lambda m: 2, -2, "same"),
    (VisionSwinV2Merging, fine_modules.FineVisionSwinV2Merging, lambda m: 2, -2, "same"),
    (SpaceToDepth, fine_modules.FineSpaceToDepth, lambda m: m.bs, -1, 0),
    (nn.PixelUnshuffle, fine_modules.FinePixelUnshuffle, lambda m: m.downscale_factor, -1, 0),
):
    for _type in (_merge, _fine_merge):
        register_operator(
            _type, read=_read_merge(_block, _last, _padding), refine=_refine_merge(_fine_merge)
        )


# ---- resizing, padding, adaptive pools, and what is only recognised
# -------------------------------------------


def _read_upsample(module: nn.Upsample) -> Operator:
    return Operator(
        type(module).__name__,
        "resize",
        scale=scales(module.scale_factor if module.size is None else None),
    )


def _refine_upsample(module: nn.Upsample, to: Operator) -> None:
    assert to.scale is not None
    module.scale_factor = tuple(float(s) for s in to.scale)


for _upsample in (nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d):
    register_operator(_upsample, read=_read_upsample, refine=_refine_upsample)

register_operator(
    nn.PixelShuffle,
    read=lambda m: Operator(
        "PixelShuffle", "resize", scale=scales(m.upscale_factor), refusal="spreads channels"
    ),
)
register_operator(
    nn.ConvTranspose2d,
    read=lambda m: Operator(
        "ConvTranspose2d",
        "resize",
        windows(m.kernel_size, 1, m.padding, m.dilation),
        scale=tuple(Fraction(s) for s in m.stride),  # type: ignore[arg-type]
        refusal="is a learned upsampling, whose stride has no finer form",
        transposed=True,
    ),
)


def _read_pad(module: Any) -> Operator:
    left, _, top, _ = module.padding
    return Operator(type(module).__name__, "pad", windows(1, 1, (top, left)))


for _padder in (
    nn.ZeroPad2d,
    nn.ConstantPad2d,
    nn.ReflectionPad2d,
    nn.ReplicationPad2d,
    nn.CircularPad2d,
):
    register_operator(_padder, read=_read_pad)


def _read_adaptive(pool: Any) -> Operator:
    # None keeps that axis as it is: the map is not pooled to a fixed size
    kept = isinstance(pool.output_size, (tuple, list)) and None in pool.output_size
    return Operator(type(pool).__name__, "pad" if kept else "adaptive")


for _adaptive in (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d):
    register_operator(_adaptive, read=_read_adaptive)
register_operator(
    nn.Unfold,
    read=lambda m: blocks_as_tokens("Unfold", m.kernel_size, m.stride, m.padding, m.dilation),
)
register_operator(
    DeformConv2d,
    read=lambda m: deformed("DeformConv2d", m.kernel_size, m.stride, m.padding, m.dilation),
)
for _unknown in (nn.LPPool2d, nn.FractionalMaxPool2d, nn.MaxUnpool2d):
    register_operator(
        _unknown, read=lambda m: Operator(type(m).__name__, "opaque", refusal="is not understood")
    )
