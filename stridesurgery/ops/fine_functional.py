"""Operators at a fraction of their stride, as functions; for padding that is not symmetric.

Every function takes (rows, columns) windows (`stridesurgery.ops.window`) and pads so that its
output sampled at `[::k]` is the original operator's output. They appear by these names in rewritten
graphs.
"""

import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch.overrides import handle_torch_function, has_torch_function_unary

from stridesurgery.ops.window import Window, Windows

Function = TypeVar("Function", bound=Callable[..., Any])


def one_node(function: Function) -> Function:
    """Let tracers record a call as one operator instead of its insides."""

    def call(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if has_torch_function_unary(x):
            return handle_torch_function(call, (x,), x, *args, **kwargs)
        return function(x, *args, **kwargs)

    call.__name__, call.__qualname__ = function.__name__, function.__qualname__
    call.__module__, call.__doc__ = function.__module__, function.__doc__
    return call  # type: ignore[return-value]


def pad(
    x: Tensor, windows: Windows, *, mode: str = "constant", value: float = 0.0, last: int = -1
) -> Tensor:
    """Pad (or crop) the axes (last - 1, last) of x as the windows need it; mode as in `F.pad`."""
    if isinstance(x, fx.Proxy):  # of torch.fx's own tracer, which cannot follow sizes
        options = {"mode": mode, "value": value, "last": last}
        return x.tracer.create_proxy("call_function", pad, (x, windows), options)  # type: ignore[return-value]
    (top, bottom), (left, right) = (w.pads(x.shape[last - 1 + i]) for i, w in enumerate(windows))
    skip = (0,) * (2 * (-1 - last))
    pads = (*skip, left, right, top, bottom)
    if mode == "constant":
        return F.pad(x, pads, value=value) if any(p != 0 for p in pads) else x
    if any(p > 0 for p in pads):
        x = F.pad(x, tuple(max(p, 0) for p in pads), mode=mode)
    return F.pad(x, tuple(min(p, 0) for p in pads)) if any(p < 0 for p in pads) else x


def _kernel(windows: Windows) -> tuple[int, int]:
    return tuple(1 if w.tap else w.kernel for w in windows)  # type: ignore[return-value]


def _step(windows: Windows) -> tuple[int, int]:
    return tuple(w.step for w in windows)  # type: ignore[return-value]


def _dilation(windows: Windows) -> tuple[int, int]:
    return tuple(w.dilation for w in windows)  # type: ignore[return-value]


@one_node
def conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, windows: Windows, groups: int = 1
) -> Tensor:
    """Convolve x (N, C, H, W) at the windows' remaining stride, zero-padded by the padding rule."""
    return F.conv2d(pad(x, windows), weight, bias, _step(windows), 0, _dilation(windows), groups)


@one_node
def max_pool2d(x: Tensor, windows: Windows) -> Tensor:
    """Max-pool x (N, C, H, W) at the windows' remaining stride; tapped axes are not pooled."""
    # A window that reaches beyond the border also holds the border cell, so repeating that cell
    # changes no maximum and leaves no window empty. Dilated windows can miss it; torch's bounds
    # keep those from being empty.
    rows, columns = (w if w.dilation == 1 else Window() for w in windows)
    padded = pad(x, (rows, columns), mode="replicate")
    if (rows, columns) != windows:
        rows, columns = (w if w.dilation > 1 else Window() for w in windows)
        padded = pad(padded, (rows, columns), value=-float("inf"))
    if _kernel(windows) == (1, 1) == _step(windows):
        return padded.clone()  # a pool gives new memory, which what follows may overwrite
    x = padded
    return F.max_pool2d(x, _kernel(windows), _step(windows), 0, _dilation(windows))


@one_node
def avg_pool2d(
    x: Tensor, windows: Windows, count_include_pad: bool = True, divisor_override: int | None = None
) -> Tensor:
    """Average-pool x (N, C, H, W) at the remaining stride, divided by the original's count."""
    if all(w.tap for w in windows):
        return max_pool2d(x, windows)  # nothing is pooled: the same crop
    counts = [_counts(x, w, x.shape[i - 2], count_include_pad) for i, w in enumerate(windows)]
    mean = F.avg_pool2d(pad(x, windows), _kernel(windows), _step(windows))
    cells = math.prod(_kernel(windows))  # not by divisor_override, which torch's ONNX leaves out
    if divisor_override is not None:
        return mean * (cells / divisor_override)
    return mean * (cells / (counts[0][:, None] * counts[1]))


def _counts(x: Tensor, window: Any, size: int, include_pad: bool) -> Tensor:
    """Return the number of cells that each output cell averages over along one axis."""
    # "same" padding is inside the map as far as torch can tell
    if window.tap or window.padding == "same":
        return torch.full(
            (window.finer_cells(size),),
            1 if window.tap else window.kernel,
            device=x.device,
            dtype=x.dtype,
        )
    border = int(window.padding) if include_pad else 0
    first = torch.arange(window.finer_cells(size), device=x.device) * window.step - int(
        window.padding
    )
    last = (first + window.kernel).clamp(max=size + border)
    return (last - first.clamp(min=-border)).clamp(min=1).to(x.dtype)


@one_node
def blur_pool2d(x: Tensor, blur: Tensor, windows: Windows, mode: str = "reflect") -> Tensor:
    """Blur x (N, C, H, W) with `blur` (1 or C, 1, K, K), summing to 1, at the remaining stride."""
    for axis, window in enumerate(windows):
        if window.tap:
            blur = blur.sum(axis + 2, keepdim=True)
    x = pad(x, windows, mode=mode)
    if all(w.tap for w in windows):
        return x.clone()
    channels = x.shape[1]
    return F.conv2d(
        x, blur.expand(channels, *blur.shape[1:]), stride=_step(windows), groups=channels
    )


@one_node
def merge_patches(x: Tensor, windows: Windows) -> Tensor:
    """Concatenate each cell's 2 x 2 neighbours of x (N, H, W, C) in Swin's order: (N, h, w, 4C)."""
    rows, columns = (w.finer_cells(x.shape[i + 1]) for i, w in enumerate(windows))
    x = pad(x, windows, last=-2)
    (down, right) = _step(windows)
    shifts = [
        x[:, i : i + (rows - 1) * down + 1 : down, j : j + (columns - 1) * right + 1 : right]
        for j in range(2)
        for i in range(2)
    ]
    return torch.cat(shifts, -1)


@one_node
def space_to_depth(x: Tensor, windows: Windows, channels_first: bool = False) -> Tensor:
    """Lay blocks of x (N, C, H, W) over channels, (kh, kw, C) or (C, kh, kw): N, C*kh*kw, h, w."""
    rows, columns = (w.finer_cells(x.shape[i - 2]) for i, w in enumerate(windows))
    batch, channels = x.shape[:2]
    blocks = F.unfold(pad(x, windows), _kernel(windows), stride=_step(windows))
    if not channels_first:
        blocks = blocks.reshape(batch, channels, -1, rows * columns).transpose(1, 2)
    return blocks.reshape(batch, -1, rows, columns)


@one_node
def strided_slice(x: Tensor, windows: Windows, last: int = -1) -> Tensor:
    """Take every step-th cell along axes (last - 1, last) of x, zeros beyond the end."""
    x = pad(x, windows, last=last)
    down, right = _step(windows)
    index: list[Any] = [..., slice(None, None, down), slice(None, None, right)]
    return x[tuple(index + [slice(None)] * (-1 - last))]


@one_node
def sample(x: Tensor, by: tuple[int, int], last: int = -1) -> Tensor:
    """Every by-th cell along the axes (last - 1, last) of x, in memory of its own."""
    index: list[Any] = [..., slice(None, None, by[0]), slice(None, None, by[1])]
    # what runs on x may overwrite it, and what runs on the sample must not reach into x
    return x[tuple(index + [slice(None)] * (-1 - last))].clone()
