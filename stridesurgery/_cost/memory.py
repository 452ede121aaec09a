"""Count the memory of a weightless run, from the start to the end of each allocation."""

import weakref
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

MemoryEvent = tuple[int, int]  # (number of the piece, bytes): bytes taken, or freed if negative


class Memory(TorchDispatchMode):
    """Follow the memory of every value that operators create, until Python frees it.

    Views create none. Tensors that the model's modules hold are not counted. Memory that a kernel
    allocates and frees within its own call (reordered weights, columns of an image) is not seen.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.events: list[MemoryEvent] = []
        held = tree_leaves([vars(module) for module in model.modules()])  # also plain attributes
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
                    self._alive[label] = weakref.ref(
                        storage, partial(self._free, label, piece, size)
                    )
                    self.events.append((piece, size))

    def _free(self, label: int, piece: int, size: int, _: Any) -> None:
        del self._alive[label]
        self.events.append((piece, -size))


def taken(events: Sequence[MemoryEvent]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the bytes of every piece, in order of allocation, and which are never freed."""
    gone = {piece for piece, size in events if size < 0}
    pieces = [(piece, size) for piece, size in events if size > 0]
    return tuple(size for _, size in pieces), tuple(
        i for i, (piece, _) in enumerate(pieces) if piece not in gone
    )


def peak(events: Sequence[MemoryEvent]) -> int:
    """Return the maximum bytes that are held at once."""
    held = most = 0
    for _, size in events:
        held += size
        most = max(most, held)
    return most
