"""What every call of a recorded network spends on one weightless image: compute, and memory."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from stridesurgery.memory import Memory, peak, taken
from stridesurgery.trace import Key


@dataclass(frozen=True)
class Spent:
    """What one call spends."""

    macs: int  # multiply-accumulates
    pieces: tuple[int, ...]  # bytes of each piece of memory that it takes
    kept: tuple[int, ...]  # which of them live on when it returns
    peak: int  # bytes: the most that it holds at once of what it takes
    uncounted: Mapping[str, int] = field(default_factory=dict)  # operators without a count, and their calls

    @property
    def made(self) -> int:
        """Bytes of all that it makes."""
        return sum(self.pieces)


class Meter(fx.Interpreter):
    """Runs a recorded graph on one weightless image and meters every node.

    A call that has been metered on values of the same shapes is not run again: its result and what it spent are known.
    """

    def __init__(self, model: nn.Module, graph: fx.Graph) -> None:
        super().__init__(model, graph=graph)
        self._memory, self._counter, self._uncounted = Memory(model), FlopCounterMode(display=False), _Uncounted()
        self._known: dict[Any, tuple[Any, Spent]] = {}
        self._changed: Mapping[Key, Any] = {}
        self._spent: dict[Key, Spent] = {}

    def on(self, graph: fx.Graph) -> "Meter":
        """A meter of another graph over the same modules that knows what this one knows."""
        other = Meter(self.module, graph)
        other._memory, other._counter, other._uncounted = self._memory, self._counter, self._uncounted
        other._known = self._known
        return other

    def meter(self, image: Tensor, changed: Mapping[Key, Any] | None = None) -> dict[Key, Spent]:
        """What every node spends on a weightless image (1, C, h, w), in running order.

        `changed` gives callables to run in place of nodes: each takes the node's own arguments. They must compare equal
        where they do the same.
        """
        self._changed, self._spent = changed or {}, {}
        self._memory.note([image])
        with torch.no_grad(), torch.device("meta"), self._uncounted, self._memory, self._counter:
            self.run(image)
        return self._spent

    def run_node(self, n: fx.Node) -> Any:
        """Run one node, unless that has been done, and note what it spent."""
        if n.op in ("placeholder", "output"):
            return super().run_node(n)
        key = n.meta["key"]
        changed = self._changed.get(key)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        case = (key, n.target, changed, _signature(args), _signature(kwargs))
        if case not in self._known:
            run = changed or (lambda *a, **k: getattr(self, n.op)(n.target, a, k))
            self._known[case] = self._metered(run, args, kwargs)
        value, self._spent[key] = self._known[case]
        return value

    def _metered(self, run: Any, args: Any, kwargs: Any) -> tuple[Any, Spent]:
        flops, start, calls = self._counter.get_total_flops(), len(self._memory.events), self._uncounted.calls.copy()
        value = run(*args, **kwargs)
        own = [(piece, size) for piece, size in self._memory.events[start:] if piece >= start]
        macs = (self._counter.get_total_flops() - flops) // 2
        return value, Spent(macs, *taken(own), peak(own), self._uncounted.calls - calls)


def _signature(value: Any) -> Any:
    """What tells two arguments apart as far as costs go; hashable."""
    if isinstance(value, Tensor):
        return (tuple(value.shape), value.stride(), value.dtype)
    if isinstance(value, (tuple, list)):
        return (type(value), *map(_signature, value))
    if isinstance(value, dict):
        return tuple((name, _signature(item)) for name, item in value.items())
    if isinstance(value, slice):
        return (slice, value.start, value.stop, value.step)
    return value


class _Uncounted(TorchDispatchMode):
    """Notes the operators that `torch.utils.flop_counter` has no count for, views and empty tensors apart."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._overloadpacket.__name__
        if func._overloadpacket not in flop_registry and not func.is_view and "empty" not in name:
            self.calls[name] += 1
        return func(*args, **(kwargs or {}))
