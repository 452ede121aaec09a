"""Tables of positions: how a module whose grid becomes finer gets its tables for the new cells.

A table keeps its key and its values. It is resampled each time it is read, so that training changes
the table itself, and checkpoints of the original and of the operated model fit each other.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from stridesurgery._hw import HW
from stridesurgery.ops.position_tables import Table, lengths, resample_table


class Cells(NamedTuple):
    """The cells of a map, (rows, columns), and what becomes of them."""

    old: HW[int]  #: before the surgery; (0, 0) where the map has no grid
    new: HW[int]  #: after it
    by: HW[int]  #: k: how many times finer; `new` is k times `old` up to a border

    def follow(self, value: Any) -> Any:
        """Return what a side, or (rows, columns), of this grid or a part of it becomes."""
        if not isinstance(value, (tuple, list)):
            return self._side(value, 0) if self.by[0] == self.by[1] else self._unequal(value)
        return type(value)(self._side(v, axis) for axis, v in enumerate(value))

    def set(self, module: Any, *names: str) -> None:
        """Let attributes that hold sides of this grid follow it; None or missing ones stay."""
        for name in names:
            if getattr(module, name, None) is not None:
                setattr(module, name, self.follow(getattr(module, name)))

    def _side(self, value: int, axis: int) -> int:
        return self.new[axis] if value == self.old[axis] else value * self.by[axis]

    def _unequal(self, value: int) -> int:
        raise NotImplementedError("knows one side of its grid, and both become finer unlike")


class Growth(NamedTuple):
    """The maps that enter and leave a module."""

    before: Cells
    after: Cells


Growths = Callable[[str], Growth]
Follow = Callable[[Any, Growths], None]
POSITIONS: dict[str, Follow] = {}  # by the full name of the module class


def register_positions(kind: type[nn.Module] | str, follow: Follow) -> None:
    """Teach `positions="resample"` a module type and its subclasses.

    Args:
        kind: the class, or its full name ("package.module.Class"), which need not be installed.
        follow: called with a module in a copy of the model and a function that gives the `Growth`
            of one of its submodules ("" is the module itself). It sets the attributes from which
            the forward code knows its grid, and names the tables with `resample`.

    Example:
        >>> from torch import nn
        >>> import stridesurgery as ss
        >>> class Tokens(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.patches = nn.Conv2d(3, 8, 16, 16)
        ...         self.table = nn.Parameter(torch.randn(1, 14 * 14, 8))
        ...     def forward(self, x):
        ...         return self.patches(x).flatten(2).transpose(1, 2) + self.table
        >>> def follow(module, growth):
        ...     ss.ops.resample(module, "table", growth("patches").after, axis=1)
        >>> ss.ops.register_positions(Tokens, follow)
        >>> fine = ss.eliminate(Tokens(), "S1L0", stride=8, positions="resample")
        >>> fine(torch.rand(1, 3, 224, 224)).shape, fine.state_dict()["table"].shape
        (torch.Size([1, 784, 8]), torch.Size([1, 196, 8]))
    """
    if not isinstance(kind, str) and not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise TypeError(f"register_positions takes a module class or its name, got {kind!r}")
    POSITIONS[kind if isinstance(kind, str) else _full_name(kind)] = follow


def register_all(entries: dict[str, Follow]) -> None:
    """Register entries under class names, several of them divided by spaces."""
    for names, follow in entries.items():
        for name in names.split():
            register_positions(name, follow)


def follow_of(module: nn.Module) -> Follow | None:
    """Return how a module follows a finer grid, None where nothing is known of it."""
    names = (_full_name(kind) for kind in type(module).__mro__)
    return next((POSITIONS[name] for name in names if name in POSITIONS), None)


def own_class(kind: type[nn.Module]) -> type[nn.Module]:
    """Return the class that a module had before any of its tables was resampled."""
    return next(k for k in kind.__mro__ if "_resampled_names" not in vars(k))


def _full_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def resample(
    module: nn.Module,
    name: str,
    cells: Cells,
    *,
    axis: int,
    grid: HW[int] | None = None,
    along: int | None = None,
    prefix: int = 0,
    suffix: int = 0,
    offsets: bool = False,
) -> None:
    """Let a module read one of its tables as resampled for finer cells.

    Finer cell j looks where j / k of the old cells lies, so that the resampled table `[::k]` is the
    table. Between old cells it is bicubic; beyond the last one it is continued evenly.

    Args:
        module: holds the table as a parameter or buffer; it gets a subclass of its class.
        name: of the parameter or buffer; its values and its key in the state_dict stay.
        cells: the map whose cells the table describes.
        axis: the first axis of the cells; they lie along one axis if its length says so.
        grid: cells of the table, (h, w), where they are a part of the map; by default its own.
        along: 0 or 1 where the table describes rows alone or columns alone.
        prefix: entries before the cells along a flat axis, which stay as they are.
        suffix: entries after the cells along a flat axis, which stay as they are.
        offsets: the entries stand for differences of positions; `grid` is still that of positions.
    """
    old = cells.old if grid is None else grid
    new, by, chosen = cells.follow(old), cells.by, range(2) if along is None else (along,)
    old, new, by = (tuple(int(sides[i]) for i in chosen) for sides in (old, new, by))  # type: ignore[assignment]
    table = vars(module).get("position_tables", {}).get(name)
    if table is not None:  # resampled before: its values are still those of the first grid
        by = tuple(m * n for m, n in zip(table.by, by, strict=True))
        table = replace(table, finer=new, by=by)
    else:
        raw: Any = nn.Module.__getattr__(module, name)
        shape = raw.shape
        flat = len(old) > 1 and tuple(shape[axis : axis + len(old)]) != lengths(old, offsets)
        sides = (math.prod(lengths(old, offsets)),) if flat else lengths(old, offsets)
        room = tuple(n - flat * (prefix + suffix) for n in shape[axis : axis + len(sides)])
        if prefix < 0 or room != sides:
            raise NotImplementedError(f"has a table {name} of another size than its grid")
        table = Table(old, new, by, axis, flat, prefix, suffix, offsets, False)
    _read_instead(module, name, table)


def set_buffer(module: Any, name: str, value: Callable[[], Tensor]) -> None:
    """Put another buffer in the place of one that is made for the old grid.

    Args:
        module: holds the buffer.
        name: of the buffer.
        value: gives the new one; called on the device of the old one.
    """
    old = getattr(module, name)
    with torch.device(old.device):
        new = value().to(old.device, old.dtype)
    module.register_buffer(name, new, persistent=name not in module._non_persistent_buffers_set)


def follow_grid(module: nn.Module, follow: Follow, growth: Growths) -> None:
    """Let a module follow its grid, and keep the buffers of the old grid under their names.

    A new buffer is called "<name>_finer" and read in the place of the old one: the state_dict is
    as it was, and the old grid still has its own (`dual_path`).
    """
    before = [(part, dict(part._buffers)) for part in module.modules()]
    follow(module, growth)
    for part, buffers in before:
        for name, old in buffers.items():
            new = part._buffers[name]
            if new is not old and old is not None and not name.endswith("_finer"):
                part._buffers[name] = old
                part.register_buffer(f"{name}_finer", new, persistent=False)
                _read_instead(part, name, f"{name}_finer")


def _read_instead(module: nn.Module, name: str, what: "Table | str") -> None:
    tables: dict[str, Table | str] = vars(module).get("position_tables", {}) | {name: what}
    module.position_tables = tables  # type: ignore[assignment]
    names = tuple(n for n, t in tables.items() if isinstance(t, str) or max(t.by) > 1)
    if names:
        module.__class__ = _resampling(own_class(type(module)), names)


_CLASSES: dict[tuple[type, tuple[str, ...]], type[nn.Module]] = {}


def _resampling(kind: type[nn.Module], names: tuple[str, ...]) -> type[nn.Module]:
    """Return a subclass of a module class that reads its tables resampled."""
    if (kind, names) not in _CLASSES:

        def reduce(self: nn.Module, protocol: int) -> Any:
            return _shell, (kind, names), object.__reduce_ex__(self, 2)[2]  # type: ignore[index]

        members: dict[str, Any] = {name: _reading(name) for name in names}
        members |= {"_resampled_names": names, "__reduce_ex__": reduce, "__doc__": kind.__doc__}
        members |= {"__module__": kind.__module__, "__qualname__": kind.__qualname__}
        _CLASSES[kind, names] = type(kind.__name__, (kind,), members)
    return _CLASSES[kind, names]


def _shell(kind: type[nn.Module], names: tuple[str, ...]) -> nn.Module:
    """Return an instance without attributes; a copy or a pickle fills it."""
    return object.__new__(_resampling(kind, names))


def _reading(name: str) -> property:
    given = f"_given_{name}"  # what DataParallel and FSDP set as a plain attribute

    def read(self: nn.Module) -> Tensor:
        spec: Any = self.position_tables[name]  # type: ignore[index]
        # torch.fx traces through the method of nn.Module itself
        get: Any = nn.Module.__getattr__
        if isinstance(spec, str):
            return get(self, spec)
        table = vars(self)[given] if given in vars(self) else get(self, name)
        return resample_table(table, **vars(spec))

    def keep(self: nn.Module, value: Tensor) -> None:
        vars(self)[given] = value

    return property(read, keep)
