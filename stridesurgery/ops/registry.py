"""The table of operators: how the windows of each are read, and how it is made finer.

`modules` and `functions` fill the table.

A subclass does not inherit its parent's entry: timm's `Conv2dSame` is an `nn.Conv2d` that pads by
itself, and treating it as its parent would be a wrong number. A module without an entry is recorded
from the inside, down to the functions it calls; `register_operator` gives it one.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from fractions import Fraction
from operator import index
from typing import Any, NamedTuple, SupportsIndex

from torch import fx, nn

from stridesurgery.errors import OperatorError
from stridesurgery.ops.window import Window, Windows

POOLS = ("max_pool", "avg_pool", "blur_pool")
SAMPLERS = ("conv", *POOLS, "merge", "slice")  # whose windows say how many cells they make
KINDS = (*SAMPLERS, "resize", "pad", "unknown_pad", "adaptive", "global", "opaque")


@dataclass(frozen=True)
class Operator:
    """One operator as far as the grid is concerned."""

    name: str  #: as a reader of the model knows it, such as "Conv2d"
    #: conv, max_pool, avg_pool, blur_pool, merge, slice, resize, pad, adaptive, global or opaque
    kind: str
    windows: Windows = (Window(), Window())  #: (rows, columns)
    last: int = (
        -1
    )  #: the axis of columns in its input; rows come right before it (-2 in N, H, W, C)
    scale: tuple[Fraction, Fraction] | None = (
        None  #: of a resize, output over input cells; None to a given size
    )
    refusal: str | None = None  #: why its stride cannot be made finer
    transposed: bool = False  #: a resize by a transposed convolution with these windows

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise OperatorError(
                f"Operator {self.name}: kind {self.kind!r} is none of {_few(KINDS)}"
            )
        sides = isinstance(self.windows, tuple) and [type(w) is Window for w in self.windows]
        if sides != [True, True]:
            raise OperatorError(
                f"Operator {self.name}: windows is a Window of rows and one of columns, got "
                f"{self.windows!r}"
            )

    @property
    def kernel(self) -> tuple[int, int]:
        """Extent in cells; 1 where a removed pool reads one cell."""
        return tuple(1 if w.tap else w.kernel for w in self.windows)  # type: ignore[return-value]

    @property
    def step(self) -> tuple[int, int]:
        """The stride as it runs."""
        return tuple(w.step for w in self.windows)  # type: ignore[return-value]


class ModuleRule(NamedTuple):
    """The entry of a module type."""

    read: Callable[[Any], Operator]
    # edits the module so that `read` gives the operator
    refine: Callable[[Any, Operator], None] | None


class FunctionRule(NamedTuple):
    """The entry of a function, whose arguments are given by name."""

    parameters: tuple[str, ...]
    read: Callable[[dict[str, Any]], Operator | None]
    # the call that behaves as the operator: function, positional and keyword arguments
    refine: Callable[
        [dict[str, Any], Operator], tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]
    ]


MODULES: dict[type[nn.Module], ModuleRule] = {}
FUNCTIONS: dict[Callable[..., Any], FunctionRule] = {}


def register_operator(
    kind: type[nn.Module],
    *,
    read: Callable[[Any], Operator],
    refine: Callable[[Any, Operator], None] | None = None,
) -> None:
    """Teach the library a module type, by exact type.

    What `read` says is held against the recorded shapes whenever a model is inspected.

    Args:
        kind: the module class; its instances become single layers.
        read: gives the `Operator` of an instance, with its windows in (rows, columns) order.
        refine: edits an instance (always one in a copy) so that it behaves as the given operator,
            whose windows carry the new stride; raises NotImplementedError where it cannot. Without
            it the layer is listed, and refused when its stride would have to change.

    Example:
        A convolution that normalises its weights, padded symmetrically:

        >>> from torch import nn
        >>> import stridesurgery as ss
        >>> class Standardised(nn.Conv2d):
        ...     def forward(self, x):
        ...         weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        ...         return self._conv_forward(x, weight, self.bias)
        >>> ss.register_operator(Standardised, read=ss.ops.read_conv, refine=ss.ops.set_stride)
        >>> ss.eliminate(nn.Sequential(Standardised(3, 8, 3, 2, 1)), S=1, input_size=32)[0].stride
        (1, 1)
    """
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise TypeError(f"register_operator takes a module class, got {kind!r}")
    if not callable(read) or not (refine is None or callable(refine)):
        raise TypeError(f"`read` and `refine` of {kind.__name__} are functions")
    MODULES[kind] = ModuleRule(read, refine)


def read_module(module: nn.Module) -> Operator | None:
    """Return the operator of a module, or None if its type has no entry.

    Raises:
        OperatorError: the entry is wrong.
    """
    rule = MODULES.get(type(module))
    if rule is None:
        return None
    entry = f"the entry of {type(module).__name__} in register_operator"
    try:
        operator = rule.read(module)
    except Exception as problem:
        raise OperatorError(f"{entry}: `read` fails: {problem}") from problem
    if not isinstance(operator, Operator):
        raise OperatorError(f"{entry}: `read` gives a {type(operator).__name__}, not an Operator")
    for window in operator.windows:
        odd = [n for n, value in zip(window._fields, window, strict=True) if not _is_fit(n, value)]
        if odd:
            raise OperatorError(f"{entry}: `read` gives {window!r}, whose {_few(odd)} cannot be")
    return operator


def _is_fit(name: str, value: Any) -> bool:
    """Tell whether a field of a window can have a value."""
    if name in ("ceil", "tap"):
        return isinstance(value, bool)
    if name == "padding" and value == "same":
        return True
    whole = isinstance(value, SupportsIndex) and not isinstance(value, bool)
    return whole and (name == "padding" or index(value) > 0)


def _few(names: Iterable[str]) -> str:
    return ", ".join(names)


def pair(value: Any) -> tuple[Any, Any]:
    """Return a setting of a 2-D operator as (rows, columns)."""
    if isinstance(value, (tuple, list)):
        return (value[0], value[1]) if len(value) == 2 else (value[0], value[0])
    return value, value


def windows(
    kernel: Any, stride: Any = 1, padding: Any = 0, dilation: Any = 1, ceil: bool = False
) -> Windows:
    """Return the (h, w) windows of an operator with torch's settings, "same" padding included."""
    settings = zip(pair(kernel), pair(stride), pair(padding), pair(dilation), strict=True)
    rows, columns = (Window(k, s, p, d, ceil) for k, s, p, d in settings)
    return rows, columns


def blocks_as_tokens(name: str, kernel: Any, stride: Any, padding: Any, dilation: Any) -> Operator:
    """Return the operator of an unfolding, which lays blocks of a map out as tokens."""
    sides = windows(kernel, stride, padding, dilation)
    refusal = "lays blocks out as tokens, whose finer form is not known"
    return Operator(name, "opaque", sides, refusal=refusal)


def deformed(name: str, kernel: Any, stride: Any, padding: Any, dilation: Any) -> Operator:
    """Return the operator of a deformable convolution, whose offsets another layer makes."""
    sides = windows(kernel, stride, padding, dilation)
    refusal = (
        "takes its offsets in cells of a map that would become finer"
        if max(pair(stride)) > 1
        else None
    )
    return Operator(name, "conv", sides, refusal=refusal)


def scales(factor: Any) -> tuple[Fraction, Fraction] | None:
    """Return an interpolation's factor as exact (rows, columns); None stays None."""
    if factor is None:
        return None
    rows, columns = pair(factor)
    return Fraction(rows).limit_denominator(64), Fraction(columns).limit_denominator(64)


def arguments(node: fx.Node, rule: FunctionRule) -> dict[str, Any]:
    """Return a function node's arguments by name."""
    return dict(zip(rule.parameters, node.args, strict=False)) | dict(node.kwargs)


def coarsened(operator: Operator, by: tuple[int, int]) -> Operator | None:
    """Multiply an operator's stride by (h, w), a pool's window with it; None if unknown."""
    if operator.kind not in ("conv", "max_pool", "avg_pool") or any(
        w.finer > 1 or w.tap for w in operator.windows
    ):
        return None
    pool = operator.kind != "conv"
    if pool and any(w.dilation > 1 and k > 1 for w, k in zip(operator.windows, by, strict=True)):
        return None
    rows, columns = (w.coarser(k, pool) for w, k in zip(operator.windows, by, strict=True))
    return replace(operator, windows=(rows, columns))


def dilated(operator: Operator, by: tuple[int, int]) -> Operator | None:
    """Spread an operator's window over a map (h, w) times finer; None if it has no such form."""
    sides = tuple(w.dilated(k) for w, k in zip(operator.windows, by, strict=True))
    if operator.kind not in ("conv", "max_pool") or operator.refusal or None in sides:
        return None
    return replace(operator, windows=sides)  # type: ignore[arg-type]


def refined(operator: Operator, finer_by: tuple[int, int], remove: bool) -> Operator:
    """Divide an operator's stride by (h, w); a pool left at stride 1 is removed if asked."""
    sides = []
    for window, k in zip(operator.windows, finer_by, strict=True):
        tap = remove and k > 1 and operator.kind in POOLS and window.step == k
        sides.append(window.at(k, tap))
    return replace(operator, windows=(sides[0], sides[1]))
