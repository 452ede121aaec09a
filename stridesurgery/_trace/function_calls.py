"""Records the calls of torch functions and tensor methods."""

import operator
import weakref
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from stridesurgery._node import info, tensors_among
from stridesurgery._trace.meta_copy import numbers_of
from stridesurgery._trace.numbers import with_numbers
from stridesurgery._trace.values import Values, holds_value
from stridesurgery.ops import Watch, known_sum

_OPERATORS = {
    f"__{name}__": getattr(operator, name)
    for name in (
        "add sub mul truediv floordiv mod pow matmul neg eq ne lt le gt ge getitem setitem invert "
        "and_ or_ xor iadd isub imul itruediv ifloordiv imod ipow iand ior abs"
    ).split()
} | {"__and__": operator.and_, "__or__": operator.or_}


_REFLECTED = {
    f"__r{name}__": getattr(operator, name)
    for name in "add sub mul truediv floordiv mod pow matmul".split()
}


_REFLECTED["__rdiv__"] = operator.truediv
_PLAIN = {
    "dim",
    "ndimension",
    "is_floating_point",
    "is_complex",
    "stride",
    "is_contiguous",
    "element_size",
    "storage_offset",
}


class FunctionCalls(Values, TorchFunctionMode):
    """Record every torch function and tensor method as an fx node while the mode is on."""

    def __init__(self, model: nn.Module, watch: Watch | None = None) -> None:
        super().__init__(model, watch)
        self.fixed: list[str] = []  # parameters and buffers in the call that raised an exception
        self._created: list[weakref.ref[Tensor]] = []  # of no other tensor: what caches hold

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._paused:
            return func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if name == "__get__":
            return self._attribute(func.__self__.__name__, func, args)
        if name == "size":
            return self._size(*args, **kwargs)
        if name in _PLAIN or name in ("__set__", "_assert"):
            return func(*args, **kwargs)
        if name == "_set_grad_enabled":
            self._grad_off = not args[0]
            return func(*args, **kwargs)
        self._paused += 1
        versions = self._versions(args, kwargs)
        try:
            result = known_sum(name, args, kwargs) if self.watch is None else None
            if result is None:
                result = with_numbers(func, args, kwargs)
            writes = self._written(versions)
        except Exception:
            self.fixed = self.fixed or self._constants(args, kwargs)
            if not all(tensor.is_meta for tensor in tensors_among([args, kwargs])):
                self.meets_unknown = True
            raise
        finally:
            self._paused -= 1
        if name == "__setitem__":
            info(self.emit("call_function", operator.setitem, args, kwargs)).writes = writes
            return result
        if not holds_value(result):
            if any(numbers_of(t) is not None for t in tensors_among((args, kwargs))):
                place = self.scope[-1][0] if self.scope else ""
                self.missed[f"{place or 'the forward code'} reads the numbers of a buffer"] = None
            return result
        node = self._call(func, name, args, kwargs)
        info(node).writes = writes
        if isinstance(result, Tensor) and not tensors_among([args, kwargs]):
            self._created.append(weakref.ref(result))
        return self._tag(result, node)

    def _call(self, func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> fx.Node:
        if (
            getattr(torch.Tensor, name, None) is func
            or getattr(func, "__module__", "") == "torch._tensor"
        ):
            if name in _REFLECTED:
                return self.emit("call_function", _REFLECTED[name], (args[1], args[0]), {})
            if name in _OPERATORS:
                return self.emit("call_function", _OPERATORS[name], args, kwargs)
            return self.emit("call_method", name, args, kwargs)
        return self.emit("call_function", func, args, kwargs)

    def _attribute(self, name: str, getter: Any, args: Any) -> Any:
        tensor = args[0]
        if name == "shape":
            return self._size(tensor)
        self._paused += 1
        try:
            value = getter(*args)
        finally:
            self._paused -= 1
        if isinstance(value, Tensor) and name not in ("grad", "_base"):
            return self._tag(value, self.emit("call_function", getattr, (tensor, name), {}))
        return value
