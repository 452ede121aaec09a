"""Whether an operated model keeps its promises: weights, grid, exactness at every eliminated layer, output."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from stridesurgery.errors import GridError, ModelError, RequestError, SurgeryError, TraceError
from stridesurgery.feature_info import FeatureInfo
from stridesurgery.graph import RewrittenModel
from stridesurgery.layers import Site
from stridesurgery.operate import rehearse
from stridesurgery.operators import POOLS, Operator
from stridesurgery.plan import Change, plan
from stridesurgery.record import record
from stridesurgery.report import Pair, analyse
from stridesurgery.skeleton import without_weights
from stridesurgery.surgery import Surgery
from stridesurgery.trace import shape_of
from stridesurgery.window import Window


@dataclass(frozen=True)
class SiteCheck:
    """One changed operator, run before and after on the same random map."""

    name: str
    what: str  # what was found, in words
    error: float | None  # largest relative difference of the sampled output; None where nothing is to compare


@dataclass(frozen=True)
class Verification:
    """What `verify` checked; it raises where something is off, so this is a list of what holds."""

    surgery: Surgery
    input_size: Pair
    tensors: int  #: weights and buffers found equal
    values: int  #: maps and other values whose shape is on the grid
    exact: bool  #: every map after a transition is exactly k times larger, not only up to a border
    sites: tuple[SiteCheck, ...]  #: of each changed operator its `name`, `what` was found, and the `error`

    def __str__(self) -> str:
        h, w = self.input_size
        maps = "exactly k times larger" if self.exact else "k times larger up to a border"
        lines = [
            f"{self.surgery.name} verified at {h}x{w}",
            f"  weights  {self.tensors} tensors equal, same keys",
            f"  grid     {self.values} values checked, maps {maps}",
            *(f"  site     {site.name}: {site.what}" for site in self.sites),
        ]
        return "\n".join(lines)


def verify(original: nn.Module, operated: nn.Module, input_size: int | Pair | None = None) -> Verification:
    """Check an operated model against its original; neither is changed.

    Weights: the same state_dict keys and values. Grid: every value of the graph, by shape, nothing is run.
    Exactness: every changed operator is run on a small random map, and its output sampled `[::k, ::k]` compared
    with the original operator's. Output: the same structure and rank.

    Args:
        original: the model that was operated.
        operated: what `eliminate` returned for it, or a copy with the recipe attached as `.surgery`.
        input_size: pixels, one number or (h, w); by default the size at which the surgery was planned.

    Returns:
        What was checked; `print` shows it.

    Raises:
        SurgeryError: naming the first thing that is off.
    """
    if not isinstance(original, nn.Module) or not isinstance(operated, nn.Module):
        raise ModelError(f"verify takes two modules, got {type(original).__name__} and {type(operated).__name__}")
    surgery = getattr(operated, "surgery", None)
    if not isinstance(surgery, Surgery):
        raise RequestError("the second model has no .surgery: it was not made by stridesurgery.eliminate")
    if isinstance(getattr(operated, "feature_info", None), FeatureInfo):
        raise RequestError("verify takes what `eliminate` returned; compare maps with those of `features(original)`")
    if surgery.after is not None and getattr(original, "surgery", None) != surgery.after:
        between = surgery.after.apply(original)
        verify(original, between, input_size)
        original = between
    tensors = _check_weights(original, operated)
    if any(p.is_meta for p in original.parameters()):
        raise ModelError("verify compares numbers, and the model's weights are on the meta device")
    analysis = analyse(original, input_size or surgery.input_size)
    planned = plan(analysis, surgery)
    _check_untouched(original, operated, {str(c.site.node.target) for c in planned.changes})
    grid = rehearse(analysis, planned, without_weights(operated).eval())
    _check_train_mode(operated, analysis.traced.size)
    checks = tuple(_check_site(change, original, operated) for change in planned.changes)
    return Verification(surgery, analysis.traced.size, tensors, grid.nodes, grid.exact, checks)


def _check_untouched(original: nn.Module, operated: nn.Module, changed: set[str]) -> None:
    """Modules that the plan does not change must be of the same type with the same settings."""
    others = dict(operated.named_modules())
    for path, module in original.named_modules():
        if not path or path in changed:
            continue
        other = others.get(path)
        if other is None or type(other) is not type(module) or module.extra_repr() != other.extra_repr():
            raise SurgeryError(f"module {path} is not the original's: {module} became {other}")


def _check_train_mode(operated: nn.Module, size: Pair) -> None:
    try:
        record(without_weights(operated), size, training=True)
    except TraceError as problem:
        raise GridError(f"the operated model does not run in train mode: {problem}") from problem


def _check_weights(original: nn.Module, operated: nn.Module) -> int:
    before, after = original.state_dict(), operated.state_dict()
    if before.keys() != after.keys():
        odd = sorted(set(before) ^ set(after))
        raise SurgeryError(f"the state_dicts have different keys: {', '.join(odd[:5])}")
    for key, value in before.items():
        if not isinstance(value, Tensor):
            continue
        if value.dtype != after[key].dtype or not torch.equal(value.cpu(), after[key].cpu()):
            raise SurgeryError(f"weight {key} is not the original's")
    return len(before)


def _check_site(change: Change, original: nn.Module, operated: nn.Module) -> SiteCheck:
    site, to = change.site, change.operator
    if to.kind == "resize":
        return SiteCheck(site.name, f"scales by {_by(to.scale)} instead of {_by(site.operator.scale)}", None)
    x = _small_map(site, original)
    with torch.no_grad():
        before, after = _run(site.node, original, x), _run(_operated_node(site, operated), operated, x)
    taps = [w.tap and not old.tap for w, old in zip(to.windows, site.operator.windows, strict=True)]
    if to.kind in POOLS and any(taps):
        return _check_removed(site, to, x, after)
    if any(new.stride > old.stride for new, old in zip(to.windows, site.operator.windows, strict=True)):
        return _check_restored(change, x, before, _run(_operated_node(site, operated), operated, _enlarged(change, x)))
    rows, columns = (w.finer // old.finer for w, old in zip(to.windows, site.operator.windows, strict=True))
    index: list[Any] = [slice(None)] * 4
    index[4 + to.last - 1], index[4 + to.last] = slice(None, None, rows), slice(None, None, columns)
    sampled = after[tuple(index)]
    if sampled.shape != before.shape:
        raise GridError(
            f"{site.name}: the sampled output is {tuple(sampled.shape)}, the original's {tuple(before.shape)}"
        )
    error = _difference(sampled, before)
    if not error <= _tolerance(x):
        raise SurgeryError(f"{site.name}: the sampled output differs from the original's by {error:.2g} (relative)")
    return SiteCheck(
        site.name, f"[::{rows}, ::{columns}] equals the original, largest relative difference {error:.1g}", error
    )


def _factors(change: Change) -> list[int]:
    """By how much a layer's stride has grown, (rows, columns)."""
    pairs = zip(change.operator.windows, change.site.operator.windows, strict=True)
    return [new.stride // old.stride for new, old in pairs]


def _enlarged(change: Change, x: Tensor) -> Tensor:
    """The map with every cell repeated as often as a restoring pool's window has grown."""
    if change.operator.kind == "conv":
        return x
    down, right = _factors(change)
    return x.repeat_interleave(down, 2).repeat_interleave(right, 3)


def _check_restored(change: Change, x: Tensor, before: Tensor, after: Tensor) -> SiteCheck:
    """A pool pools the larger map as it pooled the smaller; a convolution leaves out cells of what it made."""
    name, (down, right) = change.site.name, _factors(change)
    wanted = before[..., ::down, ::right] if change.operator.kind == "conv" else before
    if wanted.shape != after.shape:
        raise GridError(f"{name}: the output is {tuple(after.shape)}, and {tuple(wanted.shape)} was expected")
    error = _difference(after, wanted)
    if not error <= _tolerance(x):
        raise SurgeryError(f"{name}: the output differs from the original's by {error:.2g} (relative)")
    what = (
        f"[::{down}, ::{right}] of the original" if change.operator.kind == "conv" else "the original on larger cells"
    )
    return SiteCheck(name, f"takes the stride on: equals {what}, largest relative difference {error:.1g}", error)


def _difference(after: Tensor, before: Tensor) -> float:
    return ((after - before).abs().max() / before.abs().max().clamp(min=1e-12)).item()


def _tolerance(x: Tensor) -> float:
    return 1e-5 if x.dtype in (torch.float32, torch.float64) else 2e-2


def _check_removed(site: Site, to: Operator, x: Tensor, after: Tensor) -> SiteCheck:
    """A removed pool keeps one cell of every window: along tapped axes its output is a crop of its input."""
    if all(w.tap for w in to.windows):
        rows, columns = (_tapped(w, x.shape[i - 2]) for i, w in enumerate(to.windows))
        if not torch.equal(after, x[..., rows, :][..., columns]):
            raise SurgeryError(f"{site.name}: a removed pool must pass its map through")
        return SiteCheck(site.name, "removed: the map passes through (its values are not the pool's)", None)
    return SiteCheck(site.name, "removed along one axis, pools along the other (shapes checked)", None)


def _tapped(window: Window, size: int) -> Tensor:
    cells = torch.arange(window.finer_cells(size))
    return (cells * window.step + window.centre - window.left(size)).clamp(0, size - 1)


def _small_map(site: Site, model: nn.Module) -> Tensor:
    """A random map for a site: its channels, its size modulo the stride, few cells, the model's number format."""
    shape = list(shape_of(_source(site.node)) or ())
    shape[0] = 1
    for axis, window in zip((site.operator.last - 1, site.operator.last), site.operator.windows, strict=True):
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
    """Run one node's operator of a model on x, hooks apart."""
    if node.op == "call_module":
        return model.get_submodule(str(node.target)).forward(x)
    source, generator = _source(node), torch.Generator().manual_seed(1)

    def value(argument: fx.Node) -> Any:
        if argument is source:
            return x
        if argument.op == "get_attr":
            path, _, name = str(argument.target).rpartition(".")
            return getattr(model.get_submodule(path), name)
        return torch.randn(shape_of(argument) or (), generator=generator).to(x.device, x.dtype)  # a computed weight

    args: Any = fx.node.map_arg(node.args, value)
    kwargs: Any = fx.node.map_arg(node.kwargs, value)
    return node.target(*args, **kwargs)  # type: ignore[operator]


def _operated_node(site: Site, operated: nn.Module) -> fx.Node:
    """The node that runs a site in the operated model: its own, where it has a graph."""
    if site.node.op == "call_module" or not isinstance(operated, RewrittenModel):
        return site.node
    return next(n for n in operated.graphs[False].nodes if n.meta.get("key") == site.node.meta["key"])


def _by(sides: Any) -> str:
    return "x".join(f"{float(s):g}" for s in sides or ())
