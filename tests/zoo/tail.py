"""The law behind the numbers: an operated network is the tail of the original, applied to a finer map.

Take what the operated network's eliminated layers give on an image, put it in the place of what the
same layers of the *original* give on a k times larger image, and let the original run on from
there: its last map and its logits must be the operated network's. The original computes everything
that depends on the size of its maps (windows, masks, tables, padding) for the larger maps by
itself, so whatever the operated network still computes for the old size shows as a difference, also
where all shapes agree.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from stridesurgery._analysis import SpatialOp, analyse
from stridesurgery._node import info
from stridesurgery._rewrite import Plan, plan
from stridesurgery._trace import RewrittenModel, copy_to_meta
from stridesurgery._trace.record import trace
from stridesurgery.ops import is_leaf

Act = Callable[[Any, Tensor], Tensor | None]  # (place, output) -> another output, or None
Result = tuple[Tensor, Tensor]  # logits, last map


def tail_errors(
    original: nn.Module, operated: nn.Module, image: Tensor, larger: nn.Module | None = None
) -> Result:
    """Largest differences of (logits, last map) from the original's tail, over how much two images' results differ.

    image: (2, C, h, w). `larger` is the original built for the enlarged size, where it does not
    take other sizes.

    Raises:
        LookupError: no input size gives the original's layers the maps of the operated network.
    """
    planned = plan(analyse(original, tuple(image.shape[-2:])), operated.surgery)
    low = planned.transitions[-1].before
    crossing = [
        c.site
        for c in planned.changes
        if all(r <= b for r, b in zip(c.site.before.reduction, low, strict=True))
        and any(r > b for r, b in zip(c.site.after.reduction, low, strict=True))
    ]
    in_code = any(site.node.op != "call_module" for site in crossing)
    run = _run_graph if in_code else _run_modules
    places = [info(site.node).key if in_code else str(site.node.target) for site in crossing]
    fine: dict[Any, list[Tensor]] = {place: [] for place in places}

    def keep(place: Any, y: Tensor) -> None:
        if place in fine:
            fine[place].append(y.clone())  # an activation in place would change it

    found = run(operated, image, keep)
    wanted = _tail(larger or original, run, fine, image, planned, crossing[0])
    return tuple(map(_error, found, wanted))  # type: ignore[return-value]


class _NeedsSize(Exception):
    """The substituted map has (rows, columns) more cells than the one that it replaces."""

    def __init__(self, cells: tuple[int, int]) -> None:
        self.cells = cells  # not in args, which fx.Interpreter rewrites


def _tail(
    model: nn.Module,
    run: Any,
    fine: dict[Any, list[Tensor]],
    image: Tensor,
    planned: Plan,
    first: SpatialOp,
) -> Result:
    """The original on a larger image, with its layers' outputs replaced by the finer maps."""
    size, last = list(image.shape[-2:]), first.operator.last
    for cut in planned.transitions:
        size = [int(s * k) for s, k in zip(size, cut.by, strict=True)]
    for _ in range(4):
        queues = {place: list(maps) for place, maps in fine.items()}

        def substitute(place: Any, y: Tensor, queues: Any = queues) -> Tensor | None:
            given = queues[place].pop(0) if place in queues else None
            if given is not None and given.shape != y.shape:
                raise _NeedsSize(
                    (given.shape[last - 1] - y.shape[last - 1], given.shape[last] - y.shape[last])
                )
            return None if given is None else given.clone()

        try:
            return run(
                model,
                torch.randn(*image.shape[:2], *size, generator=torch.Generator().manual_seed(4)),
                substitute,
            )
        except _NeedsSize as short:
            size = [
                s + cells * int(r)
                for s, cells, r in zip(size, short.cells, first.after.reduction, strict=True)
            ]
    raise LookupError("no input size gives the original's layers these maps")


def _run_modules(model: nn.Module, image: Tensor, act: Act) -> Result:
    """Run a model, showing `act` the output of every module by path."""
    last = [image]

    def listen(path: str) -> Callable[..., Tensor | None]:
        def hook(module: nn.Module, given: Any, result: Any) -> Tensor | None:
            if not isinstance(result, Tensor):
                return None
            other = act(path, result)
            last[0] = _later(last[0], result if other is None else other)
            return other

        return hook

    handles = [module.register_forward_hook(listen(path)) for path, module in model.named_modules()]
    try:
        with torch.no_grad():
            return logits_of(model(image)), last[0]
    finally:
        for handle in handles:
            handle.remove()


def _run_graph(model: nn.Module, image: Tensor, act: Act) -> Result:
    """The same where strides are written in the forward code: node by node, by the node's key."""
    last = [image]

    class Run(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if isinstance(value, Tensor) and n.op not in ("placeholder", "get_attr", "output"):
                other = act(info(n).key, value)
                value = value if other is None else other
                last[0] = _later(last[0], value)
            return value

    if isinstance(model, RewrittenModel):
        graph = model.graph
    else:
        graph = trace(copy_to_meta(model), tuple(image.shape[-2:]), leaf=is_leaf).graph
    with torch.no_grad():
        return logits_of(Run(model, graph=graph).run(image)), last[0]


def _later(before: Tensor, now: Tensor) -> Tensor:
    """The last value that has cells: a map, windows of one, or tokens."""
    return (
        now
        if now.dim() >= 3
        and now.shape[0] == before.shape[0]
        and now[0].numel() > max(now.shape[1:])
        else before
    )


def logits_of(result: Any) -> Tensor:
    """The first tensor of what a model returns."""
    if isinstance(result, Tensor):
        return result
    return next(
        t
        for t in (result.values() if isinstance(result, dict) else result)
        if isinstance(t, Tensor)
    )


def _error(found: Tensor, wanted: Tensor) -> float:
    if found.shape != wanted.shape:
        return float("inf")
    return (
        (found - wanted).abs().max() / (wanted[0] - wanted[1]).abs().max().clamp(min=1e-30)
    ).item()
