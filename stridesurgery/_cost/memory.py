"""Counts the memory of a weightless run: each allocation from its making to its end."""

import weakref
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

MemoryEvent = tuple[int, int]  # (number of the piece, bytes): bytes taken, or given back where negative


class Memory(TorchDispatchMode):
    """Follows the memory of every value that operators make, as Python holds and lets go of it.

    Views make none; what the model's modules hold themselves is not counted. What a kernel takes and gives back within
    its own call (reordered weights, columns of an image) is invisible here.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.events: list[MemoryEvent] = []
        held = tree_leaves([vars(module) for module in model.modules()])  # plain attributes too
        self._own = {value.untyped_storage()._cdata for value in held if isinstance(value, Tensor)}
        self._alive: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.note(tree_leaves(result))
        return result

    def note(self, values: Iterable[Any]) -> None:
        """Follow the memory of values from now on."""
        for value in values:
            if isinstance(value, Tensor):
                storage = value.untyped_storage()
                label = storage._cdata
                if label not in self._own and label not in self._alive:
                    piece, size = len(self.events), storage.nbytes()
                    self._alive[label] = weakref.ref(storage, partial(self._free, label, piece, size))
                    self.events.append((piece, size))

    def _free(self, label: int, piece: int, size: int, _: Any) -> None:
        del self._alive[label]
        self.events.append((piece, -size))


def taken(events: Sequence[MemoryEvent]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Bytes of every piece, in the order in which they are taken, and which of them are not given back."""
    gone = {piece for piece, size in events if size < 0}
    pieces = [(piece, size) for piece, size in events if size > 0]
    return tuple(size for _, size in pieces), tuple(i for i, (piece, _) in enumerate(pieces) if piece not in gone)


def peak(events: Sequence[MemoryEvent]) -> int:
    """Return the most bytes that are held at once."""
    held = most = 0
    for _, size in events:
        held += size
        most = max(most, held)
    return most
