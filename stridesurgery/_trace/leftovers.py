"""Take back what a recording leaves behind: attributes of modules, and entries of caches."""

import functools
import gc
import weakref
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import Tensor, nn

from stridesurgery._trace.symbolic_ints import SymbolicNumber

_CONTAINERS = frozenset({dict, OrderedDict, defaultdict, list, set, deque})
_CACHE = type(functools.lru_cache(lambda: None))


def state_of(model: nn.Module) -> Callable[[], None]:
    """Return a function that gives the modules back the attributes that they have now.

    Containers among the attributes are given back what they hold.
    """
    held: dict[int, tuple[Any, Any]] = {}

    def hold(value: Any) -> None:
        if type(value) in _CONTAINERS and id(value) not in held:
            held[id(value)] = value, value.copy()
            for part in value.values() if isinstance(value, dict) else value:
                hold(part)

    def give_back() -> None:
        for value, before in held.values():
            value.clear()
            (value.extend if isinstance(value, (list, deque)) else value.update)(before)

    for module in model.modules():
        hold(vars(module))
    return give_back


def clear_caches(is_held: Callable[[], bool]) -> None:
    """Clear every `functools.lru_cache` that holds a tensor, or a number of a recording.

    All objects of the process are searched for them, which takes tens of milliseconds, if those
    found before hold nothing, or `is_held` tells that others do.
    """
    if not _cleared(list(_FOUND)) or is_held():
        _cleared([found for found in gc.get_objects() if type(found) is _CACHE])


_FOUND: weakref.WeakSet[Any] = weakref.WeakSet()


def _cleared(caches: Iterable[Any]) -> bool:
    filled = []
    for cache in caches:
        held = _flat(gc.get_referents(cache))
        if any(isinstance(value, (Tensor, SymbolicNumber)) for value in held):
            filled.append(cache)
            cache.cache_clear()
    _FOUND.update(filled)
    return bool(filled)


def _flat(values: Iterable[Any]) -> Iterator[Any]:
    """Return the values in (nested) tuples, lists and dicts, and the keys of these."""
    for value in values:
        if isinstance(value, dict):
            yield from _flat([*value.keys(), *value.values()])
        elif isinstance(value, (tuple, list)):
            yield from _flat(value)
        else:
            yield value
