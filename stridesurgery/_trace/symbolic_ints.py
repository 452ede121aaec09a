"""Numbers that remember their computation, so that a graph recomputes them at other sizes.

They are real ints and floats: `range(h)`, `h == 7`, `isinstance(h, int)` and torch's own argument
parser accept them as such. Arithmetic on them is recorded only when a torch function uses the
result.
"""

import math
import operator
from collections.abc import Callable
from typing import Any, Protocol

from torch import fx


class Emitter(Protocol):
    """A writer of graph nodes."""

    open: bool  # False after its recording: its numbers, which caches may hold, are then plain
    hashed: dict[int, Any]  # by id, the numbers that were part of a key, of a cache perhaps

    def note_comparison(self) -> None:
        """Note that the forward code compares a number.

        At another input size the code may then do something else.
        """

    def emit(self, op: str, target: Any, args: Any, kwargs: dict[str, Any]) -> fx.Node:
        """Append a node."""


class SymbolicNumber:
    """Base of `SymbolicInt` and `SymbolicFloat`: their origin, and arithmetic that keeps it."""

    emitter: Emitter
    made: fx.Node | Callable[[], fx.Node]  # the node, or a function that emits it at its first use

    def node(self) -> fx.Node:
        """Return the node that computes this number, which is emitted at its first use."""
        if not isinstance(self.made, fx.Node):
            self.made = self.made()
        return self.made

    def _derive(self, function: Callable[..., Any], *args: Any) -> Any:
        if not all(isinstance(a, (int, float)) for a in args):
            return NotImplemented
        value = function(*(plain(a) for a in args))
        emitters = (a.emitter for a in args if isinstance(a, SymbolicNumber))
        writer = next((e for e in emitters if e.open), None)
        if writer is None:
            return value
        return with_origin(value, writer, lambda: writer.emit("call_function", function, args, {}))

    def _compare(self, function: Callable[..., bool], *others: Any) -> bool:
        if self.emitter.open:
            self.emitter.note_comparison()
        return function(plain(self), *map(plain, others))

    def __bool__(self) -> bool:
        return self._compare(bool)

    def __hash__(self) -> int:
        self.emitter.hashed[id(self)] = self
        return hash(plain(self))


class SymbolicInt(SymbolicNumber, int):
    """A length or a count."""


class SymbolicFloat(SymbolicNumber, float):
    """A quotient of sizes, such as `H / 2` on its way to `math.ceil`."""


def plain(number: Any) -> Any:
    """Return the number without its origin."""
    if isinstance(number, SymbolicInt):
        return int.__int__(number)
    return float.__float__(number) if isinstance(number, SymbolicFloat) else number


def with_origin(value: Any, emitter: Emitter, made: fx.Node | Callable[[], fx.Node]) -> Any:
    """Return an int or float with its origin; return anything else as it is."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return value
    number = SymbolicInt(value) if isinstance(value, int) else SymbolicFloat(value)
    number.emitter, number.made = emitter, made
    return number


def _remembering(function: Callable[..., Any], reflected: bool = False) -> Callable[..., Any]:
    def compute(*args: Any) -> Any:
        return args[0]._derive(function, *(reversed(args) if reflected else args))

    return compute


def _comparing(function: Callable[..., bool]) -> Callable[..., bool]:
    return lambda number, other: number._compare(function, other)


for _name in ("lt", "le", "gt", "ge", "eq", "ne"):
    setattr(SymbolicNumber, f"__{_name}__", _comparing(getattr(operator, _name)))
for _name in ("add", "sub", "mul", "floordiv", "truediv", "mod", "pow"):
    setattr(SymbolicNumber, f"__{_name}__", _remembering(getattr(operator, _name)))
    setattr(SymbolicNumber, f"__r{_name}__", _remembering(getattr(operator, _name), reflected=True))
for _name, _function in (
    ("neg", operator.neg),
    ("ceil", math.ceil),
    ("floor", math.floor),
    ("round", round),
):
    setattr(SymbolicNumber, f"__{_name}__", _remembering(_function))
