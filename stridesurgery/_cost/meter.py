"""Compute and memory of every call of a recorded network, for one weightless image."""

import random
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from stridesurgery._cost.memory import Memory, peak, taken
from stridesurgery._node import Key, Shape, info
from stridesurgery._trace import Numbers

FUSED = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


@dataclass(frozen=True)
class NodeCost:
    """Compute and memory of one call."""

    macs: int  # multiply-accumulates
    pieces: tuple[int, ...]  # bytes of each piece of memory that it allocates
    kept: tuple[int, ...]  # indices of the pieces that outlive the call
    peak: int  # bytes: maximum of its own memory that it holds at once
    # operators without a count: how many calls
    uncounted: Mapping[str, int] = field(default_factory=dict)

    @property
    def made(self) -> int:
        """Bytes of all the memory that it allocates."""
        return sum(self.pieces)


class Inference:
    """Count the memory and compute of a weightless run, and the operators that have no count.

    Fused attention is one operator, as on CPUs and GPUs. On weightless tensors torch would run it
    in parts.
    """

    def __init__(self, model: nn.Module) -> None:
        self.memory, self.uncounted = Memory(model), Uncounted()
        self._counter = FlopCounterMode(display=False, custom_mapping={FUSED: _attention_flops})

    @property
    def macs(self) -> int:
        """Multiply-accumulates so far."""
        return self._counter.get_total_flops() // 2

    @contextmanager
    def followed(self) -> Iterator[None]:
        """Follow the code that runs in this block."""
        state = random.getstate()  # a forward pass may draw random numbers
        try:
            with (
                torch.no_grad(),
                torch.device("meta"),
                _FusedAttention(),
                Numbers(),
                self.uncounted,
                self.memory,
                self._counter,
            ):
                yield
        finally:
            random.setstate(state)


class Meter(fx.Interpreter):
    """Run a recorded graph on one weightless image and meter every node.

    A call is not run again on values of the same shapes: its result and its cost are known.
    """

    def __init__(self, model: nn.Module, graph: fx.Graph) -> None:
        super().__init__(model, graph=graph)
        self._run = Inference(model)
        self._known: dict[Any, tuple[Any, NodeCost]] = {}
        self._changed: Mapping[Key, Any] = {}
        self._spent: dict[Key, NodeCost] = {}

    def on(self, graph: fx.Graph) -> "Meter":
        """Return a meter of another graph over the same modules, which shares the known results."""
        other = Meter(self.module, graph)
        other._run, other._known = self._run, self._known
        return other

    def meter(self, image: Tensor, changed: Mapping[Key, Any] | None = None) -> dict[Key, NodeCost]:
        """Run a weightless image (1, C, h, w) and count the cost of every node, in running order.

        `changed` gives callables that run in place of nodes. Each takes the node's own arguments.
        Callables that do the same must compare equal.
        """
        self._changed, self._spent = changed or {}, {}
        self._run.memory.note([image])
        with self._run.followed():
            self.run(image)
        return self._spent

    def run_node(self, n: fx.Node) -> Any:
        """Run one node, unless it has been run before, and note its cost."""
        if n.op in ("placeholder", "output"):
            return super().run_node(n)
        key = info(n).key
        changed = self._changed.get(key)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        case = (key, n.target, changed, _signature(args), _signature(kwargs))
        if case not in self._known:
            run = changed or (lambda *a, **k: getattr(self, n.op)(n.target, a, k))
            self._known[case] = self._metered(run, args, kwargs)
        value, self._spent[key] = self._known[case]
        return value

    def _metered(self, run: Any, args: Any, kwargs: Any) -> tuple[Any, NodeCost]:
        events, calls = self._run.memory.events, self._run.uncounted.calls
        macs, start, before = self._run.macs, len(events), calls.copy()
        value = run(*args, **kwargs)
        own = [(piece, size) for piece, size in events[start:] if piece >= start]
        return value, NodeCost(self._run.macs - macs, *taken(own), peak(own), calls - before)


def _signature(value: Any) -> Any:
    """Return a hashable key of an argument. Arguments with equal keys cost the same."""
    if isinstance(value, Tensor):
        return (tuple(value.shape), value.stride(), value.dtype)
    if isinstance(value, (tuple, list)):
        return (type(value), *map(_signature, value))
    if isinstance(value, dict):
        return tuple((name, _signature(item)) for name, item in value.items())
    if isinstance(value, slice):
        return (slice, value.start, value.stop, value.step)
    return value


class Uncounted(TorchDispatchMode):
    """Note the operators that `torch.utils.flop_counter` has no count for.

    Operators that only move values are left out.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        operator = func._overloadpacket
        if operator not in flop_registry and operator is not FUSED and not func.is_view:
            name = operator.__name__
            if "empty" not in name and name not in _MOVES:
                self.calls[name] += 1
        return func(*args, **(kwargs or {}))


_MOVES = """
    _unsafe_view clone copy_ _to_copy zeros zeros_like ones ones_like full arange fill_
    zero_ cat stack
""".split()


class _FusedAttention(TorchFunctionMode):
    """Run attention as one operator, as it runs on real (not weightless) tensors."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            return _attention(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _attention_flops(query: Shape, key: Shape, value: Shape, *args: Any, **kwargs: Any) -> int:
    """Count the operations of the two matrix products: queries with keys, and weights with values.

    torch 2.6 has no count for this operator.
    """
    images, heads, queries, width = query
    return 2 * images * heads * queries * key[2] * (width + value[3])


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    shaped = (
        query.dim() == key.dim() == value.dim() == 4
        and query.shape[:2] == key.shape[:2] == value.shape[:2]
    )
    masked = attn_mask is not None and attn_mask.dim() not in (2, 4)
    if not shaped or masked or query.shape[-1] != value.shape[-1] or dropout_p or enable_gqa:
        more = {"enable_gqa": True} if enable_gqa else {}
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, **more
        )
    return FUSED(query, key, value, 0.0, is_causal, attn_mask=attn_mask, scale=scale)[0]
