"""Copies functions such as hooks, so that they refer to a copy of what they referred to."""

import copy
import dis
import types
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from functools import partial
from typing import Any

from torch import Tensor

# types whose values are never copied
ATOMS = frozenset({type(None), bool, int, float, str, types.BuiltinFunctionType, type})


def copied_function(function: Any, memo: dict[int, Any], apart: bool) -> Any:
    """Copy a function that refers to something copied.

    If `apart`, everything that the function could change is copied as well.
    """
    if isinstance(function, partial):
        inner, given = (
            copied_function(function.func, memo, apart),
            copy.deepcopy(function.args, memo),
        )
        return type(function)(inner, *given, **copy.deepcopy(function.keywords, memo))
    if not isinstance(function, types.FunctionType) or id(function) in memo:
        return copy.deepcopy(function, memo)
    memo[id(function)] = function  # for a function that refers to itself
    codes = _codes(function.__code__)
    old = (function.__closure__ or (), function.__defaults__, function.__kwdefaults__)
    cells = tuple(_renewed_cell(cell, memo, apart) for cell in old[0])
    defaults = old[1] and tuple(_renewed(value, memo, apart) for value in old[1])
    named = old[2] and {name: _renewed(value, memo, apart) for name, value in old[2].items()}
    read = {name for code in codes for name in code.co_names if apart} & function.__globals__.keys()
    shared = {name: _renewed(function.__globals__[name], memo, apart) for name in read}
    shared = {name: new for name, new in shared.items() if new is not function.__globals__[name]}
    writes = apart and any(
        i.opname == "STORE_GLOBAL" for code in codes for i in dis.get_instructions(code)
    )
    values = [*cells, *(defaults or ()), *(named or {}).values()]
    before = [*old[0], *(old[1] or ()), *(old[2] or {}).values()]
    if (
        not shared
        and not writes
        and all(new is value for new, value in zip(values, before, strict=True))
    ):
        return function
    scope = {**function.__globals__, **shared} if shared or writes else function.__globals__
    result = types.FunctionType(function.__code__, scope, function.__name__, defaults, cells)
    result.__kwdefaults__ = named
    result.__dict__.update(vars(function))
    memo[id(function)] = result
    return result


def _codes(code: types.CodeType) -> list[types.CodeType]:
    """Return the code of a function and of the functions inside it."""
    inner = [part for part in code.co_consts if isinstance(part, types.CodeType)]
    return [code, *(found for part in inner for found in _codes(part))]


def _renewed(value: Any, memo: dict[int, Any], apart: bool) -> Any:
    """Return the value that a copied function refers to instead of `value`."""
    if id(value) in memo:
        return memo[id(value)]
    if isinstance(value, types.FunctionType):
        return copied_function(value, memo, apart)
    if isinstance(value, (types.ModuleType, *ATOMS)) or _is_of_context(value):
        return value
    return copy.deepcopy(value, memo) if apart or _refers(value, memo, set()) else value


def _is_of_context(value: Any) -> bool:
    """Tell whether a value is, or wraps, a context variable: a run may write into it."""
    parts = (value, *getattr(value, "__dict__", {}).values())
    return not isinstance(value, type) and any(isinstance(part, ContextVar) for part in parts)


def _refers(value: Any, memo: dict[int, Any], seen: set[int]) -> bool:
    """Tell whether something that is copied can be reached from a value."""
    if id(value) in memo:
        return True
    if id(value) in seen:
        return False
    seen.add(id(value))
    if isinstance(value, dict):
        parts = list(value.values())
    elif isinstance(value, (list, tuple, set, frozenset, deque)):
        parts = list(value)
    elif isinstance(value, types.MethodType):
        parts = [value.__self__]
    else:
        parts = (
            []
            if isinstance(value, (types.ModuleType, type, Tensor))
            else list(getattr(value, "__dict__", {}).values())
        )
    return any(_refers(part, memo, seen) for part in parts)


class Observer:
    """A hook of a model without weights.

    A hook that fails there needs numbers. Most such hooks only look at them, so the failure is
    noted and the model runs on.
    """

    def __init__(self, hook: Callable[..., Any], memo: dict[int, Any]) -> None:
        self.hook: Callable[..., Any] = _uncopied
        self.failed = False
        with suppress(Exception):  # the hook of an object that cannot be copied is not called
            self.hook = copied_function(hook, memo, True)

    def __call__(self, *given: Any) -> Any:
        try:
            return self.hook(*given)
        except Exception:
            self.failed = True
            return None


def _uncopied(*given: Any) -> None:
    raise TypeError("a hook that cannot be copied")


def _renewed_cell(cell: types.CellType, memo: dict[int, Any], apart: bool) -> types.CellType:
    if id(cell) in memo:
        return memo[id(cell)]
    try:
        value = cell.cell_contents
    except ValueError:  # not assigned yet
        return memo.setdefault(id(cell), types.CellType()) if apart else cell
    new = _renewed(value, memo, apart)
    return memo.setdefault(id(cell), types.CellType(new)) if apart or new is not value else cell
