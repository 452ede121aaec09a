"""Run every changed operator, before and after the surgery, on the same small random map."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from stridesurgery._analysis import SpatialOp
from stridesurgery._hw import hw_text
from stridesurgery._node import info, shape_of
from stridesurgery._rewrite import Change
from stridesurgery._trace import RewrittenModel, copied_model
from stridesurgery.errors import GridError, SurgeryError
from stridesurgery.ops import POOLS, Operator, Window


@dataclass(frozen=True)
class SiteCheck:
    """The result for one changed operator, run before and after on the same random map."""

    name: str
    what: str  # the finding, in words
    error: float | None  # largest relative difference of the sampled output; None if not compared


def check_site(change: Change, original: nn.Module, operated: nn.Module) -> SiteCheck:
    """Compare one changed operator of the operated model with the original's operator.

    Raises:
        GridError: the output, sampled on the old grid, differs in shape from the original's.
        SurgeryError: the output, sampled on the old grid, differs in value from the original's.
    """
    site, to = change.site, change.operator
    node = _operated_node(site, operated)
    if node is None:
        return SiteCheck(site.name, "runs for none of the maps", None)
    if to.kind == "resize":
        return SiteCheck(
            site.name,
            f"scales by {hw_text(to.scale or ())} instead of {hw_text(site.operator.scale or ())}",
            None,
        )
    x = _small_map(site, original)
    spread = _ratios(change, "dilation")
    repeated = (
        x.repeat_interleave(spread[0], 2).repeat_interleave(spread[1], 3) if max(spread) > 1 else x
    )
    with torch.no_grad():
        before, after = _run(site.node, original, x), _run(node, operated, repeated)
    taps = [w.tap and not old.tap for w, old in zip(to.windows, site.operator.windows, strict=True)]
    if to.kind in POOLS and any(taps):
        return _check_removed(site, to, x, after)
    if any(new.step > old.step for new, old in zip(to.windows, site.operator.windows, strict=True)):
        return _check_restored(change, x, before, _run(node, operated, _enlarged(change, x)))
    # a window that pads as TensorFlow does has no finer stride when it is dilated
    rows, columns = map(max, _ratios(change, "finer"), spread)
    index: list[Any] = [slice(None)] * 4
    index[4 + to.last - 1], index[4 + to.last] = slice(None, None, rows), slice(None, None, columns)
    sampled = after[tuple(index)]
    if sampled.shape != before.shape:
        raise GridError(
            f"{site.name}: the sampled output is {tuple(sampled.shape)}, the original's "
            f"{tuple(before.shape)}"
        )
    error = difference(sampled, before)
    if not error <= _tolerance(x):
        raise SurgeryError(
            f"{site.name}: the sampled output differs from the original's by {error:.2g} (relative)"
        )
    return SiteCheck(
        site.name,
        f"[::{rows}, ::{columns}] equals the original, largest relative difference {error:.1g}",
        error,
    )


def _ratios(change: Change, what: str) -> list[int]:
    """Return the factors by which a setting of a layer's windows has grown, (rows, columns)."""
    pairs = zip(change.operator.windows, change.site.operator.windows, strict=True)
    return [getattr(new, what) // getattr(old, what) for new, old in pairs]


def _enlarged(change: Change, x: Tensor) -> Tensor:
    """Repeat every cell of a map as often as a restoring pool's window has grown.

    For a convolution the map is returned unchanged.
    """
    if change.operator.kind == "conv":
        return x
    down, right = _ratios(change, "step")
    return x.repeat_interleave(down, 2).repeat_interleave(right, 3)


def _check_restored(change: Change, x: Tensor, before: Tensor, after: Tensor) -> SiteCheck:
    """Check an operator that takes on an eliminated stride.

    A pool pools the larger map as it pooled the smaller one. A convolution leaves out cells of
    its former output.
    """
    name, (down, right) = change.site.name, _ratios(change, "step")
    wanted = before[..., ::down, ::right] if change.operator.kind == "conv" else before
    if wanted.shape != after.shape:
        raise GridError(
            f"{name}: the output is {tuple(after.shape)}, and {tuple(wanted.shape)} was expected"
        )
    error = difference(after, wanted)
    if not error <= _tolerance(x):
        raise SurgeryError(
            f"{name}: the output differs from the original's by {error:.2g} (relative)"
        )
    what = (
        f"[::{down}, ::{right}] of the original"
        if change.operator.kind == "conv"
        else "the original on larger cells"
    )
    return SiteCheck(
        name, f"takes the stride on: equals {what}, largest relative difference {error:.1g}", error
    )


def difference(after: Tensor, before: Tensor) -> float:
    """Return the largest difference, relative to the largest value of `before`."""
    after, before = after.double(), before.double()  # 1e-12 is 0 in float16
    return ((after - before).abs().max() / before.abs().max().clamp(min=1e-12)).item()


def _tolerance(x: Tensor) -> float:
    return 1e-5 if x.dtype in (torch.float32, torch.float64) else 2e-2


def _check_removed(site: SpatialOp, to: Operator, x: Tensor, after: Tensor) -> SiteCheck:
    """Check a removed pool, which keeps one cell of every window.

    Along tapped axes its output is a crop of its input.
    """
    if all(w.tap for w in to.windows):
        rows, columns = (_tapped(w, x.shape[i - 2]) for i, w in enumerate(to.windows))
        if not torch.equal(after, x[..., rows, :][..., columns]):
            raise SurgeryError(f"{site.name}: a removed pool must pass its map through")
        return SiteCheck(
            site.name, "removed: the map passes through (its values are not the pool's)", None
        )
    return SiteCheck(
        site.name, "removed along one axis, pools along the other (shapes checked)", None
    )


def _tapped(window: Window, size: int) -> Tensor:
    cells = torch.arange(window.finer_cells(size))
    return (cells * window.step + window.centre - window.left(size)).clamp(0, size - 1)


def _small_map(site: SpatialOp, model: nn.Module) -> Tensor:
    """Return a small random map for a spatial operator.

    It has few cells and the model's number format. Its channels, and its size modulo the stride,
    are those of the operator's input.
    """
    shape = list(shape_of(_source(site.node)) or ())
    shape[0] = 1
    for axis, window in zip(
        (site.operator.last - 1, site.operator.last), site.operator.windows, strict=True
    ):
        least = 4 * window.span + 4 * window.stride
        excess = shape[axis] - least
        if excess > 0:
            shape[axis] -= excess // window.stride * window.stride
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator).to(like.device, like.dtype)


def _source(node: fx.Node) -> fx.Node:
    return next(a for a in (*node.args, *node.kwargs.values()) if isinstance(a, fx.Node))


def _run(node: fx.Node, model: nn.Module, x: Tensor) -> Tensor:
    """Run the operator of one node of a model on x.

    A module is run as a copy, with its hooks.
    """
    if node.op == "call_module":
        return copied_model(model.get_submodule(str(node.target)), apart=True)(x)
    source, generator = _source(node), torch.Generator().manual_seed(1)

    def value(argument: fx.Node) -> Any:
        if argument is source:
            return x
        if argument.op == "get_attr":
            path, _, name = str(argument.target).rpartition(".")
            return getattr(model.get_submodule(path), name)
        if argument.op == "call_method" and argument.target == "size":
            of, axis = argument.args
            return (x.shape if of is source else shape_of(of) or ())[axis]  # type: ignore[index]
        if shape_of(argument) is None and argument.op == "call_function":  # computed from sizes
            return argument.target(*fx.node.map_arg(argument.args, value))  # type: ignore[operator]
        # a computed weight
        return torch.randn(shape_of(argument) or (), generator=generator).to(x.device, x.dtype)

    args: Any = fx.node.map_arg(node.args, value)
    kwargs: Any = fx.node.map_arg(node.kwargs, value)
    return node.target(*args, **kwargs)  # type: ignore[operator]


def _operated_node(site: SpatialOp, operated: nn.Module) -> fx.Node | None:
    """Return the node that runs a spatial operator in the operated model.

    If the operated model has a graph, it is a node of that graph, or None if the graph does not
    contain it any more.
    """
    if not isinstance(operated, RewrittenModel):
        return site.node
    return next(
        (n for n in operated.graphs[False].nodes if info(n).key == info(site.node).key), None
    )
