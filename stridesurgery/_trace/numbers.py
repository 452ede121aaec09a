"""Numbers of small tensors (strides, anchors) that forward code reads while it is recorded."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.fx.node import map_aggregate
from torch.overrides import TorchFunctionMode

from stridesurgery._node import tensors_among
from stridesurgery._trace.meta_copy import SMALL, numbers_of


def with_numbers(func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
    """Call a function on weightless tensors, and on their numbers where all of them are known.

    A function that needs numbers, such as `item`, gets those that are known.
    """
    tensors = tensors_among((args, kwargs))
    known = [numbers_of(t) for t in tensors]
    if all(value is None for value in known):
        return func(*args, **kwargs)
    versions = [t._version for t in tensors]
    given, named = (map_aggregate(a, _numbers) for a in (args, kwargs))
    try:
        result = func(*args, **kwargs)
    except RuntimeError as problem:  # it looks at the numbers
        try:
            return func(*given, **named)
        except Exception:
            raise problem from None
    if any(value is None for value in known):
        for tensor, version in zip(tensors, versions, strict=True):
            if tensor._version != version:
                vars(tensor).pop("numbers", None)
        return result
    if isinstance(result, Tensor) and result.numel() <= SMALL:
        found = func(*given, **named)
        if isinstance(found, Tensor) and found.shape == result.shape:
            vars(result)["numbers"] = found
    return result


def _numbers(value: Any) -> Any:
    number = numbers_of(value) if isinstance(value, Tensor) else None
    return value if number is None else number


class Numbers(TorchFunctionMode):
    """Give functions the numbers that are known of weightless tensors."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return with_numbers(func, args, kwargs or {})
