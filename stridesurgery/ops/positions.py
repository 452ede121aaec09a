"""Tables of positions: how a module whose grid becomes finer gets its tables for the new cells.

A table keeps its key and its values. It is resampled each time it is read, so that training changes
the table itself, and checkpoints of the original and of the operated model fit each other.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stridesurgery._hw import HW
from stridesurgery.ops.fine_functional import _one_node

_CUBIC = -0.75  # the constant of torch's own bicubic interpolation


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
        """Let attributes that hold sides of this grid follow it; those that are None or missing stay."""
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


@dataclass(frozen=True)
class Table:
    """Where the cells lie in a table, and how many times finer they become."""

    grid: tuple[int, ...]  #: cells along each axis of the original
    finer: tuple[int, ...]  #: cells of the finer grid
    by: tuple[int, ...]  #: how many times finer along each axis
    axis: int  #: the first axis of the cells
    flat: bool  #: True if all cells lie along that axis, row by row
    prefix: int  #: entries before the cells that stand for no cell (class tokens)
    suffix: int  #: entries after the cells that stand for none
    offsets: bool  #: True if the entries stand for differences of positions, -(n - 1) to n - 1
    half_pixel: bool  #: True for the centres that timm's `resample_abs_pos_embed` takes


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
        flat = len(old) > 1 and tuple(shape[axis : axis + len(old)]) != _lengths(old, offsets)
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


def _lengths(grid: Sequence[int], offsets: bool) -> tuple[int, ...]:
    return tuple(2 * n - 1 if offsets else n for n in grid)


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
    def resampled(self: nn.Module) -> Tensor:
        spec: Any = self.position_tables[name]  # type: ignore[index]
        # torch.fx traces through the method of nn.Module itself
        read: Any = nn.Module.__getattr__
        return (
            read(self, spec)
            if isinstance(spec, str)
            else resample_table(read(self, name), **vars(spec))
        )

    return property(resampled)


@_one_node
def resample_table(
    table: Tensor,
    grid: tuple[int, ...],
    finer: tuple[int, ...],
    by: tuple[int, ...],
    axis: int,
    flat: bool,
    prefix: int,
    suffix: int,
    offsets: bool,
    half_pixel: bool,
) -> Tensor:
    """Resample a table for finer cells; the arguments are the fields of `Table`.

    A table that a graph reads through its module has been resampled and stays as it is.
    """
    cells, wanted = table.shape[axis] - prefix - suffix, _lengths(finer, offsets)
    if wanted == tuple(table.shape[axis : axis + len(grid)]) or (
        flat and cells == math.prod(wanted)
    ):
        return table
    if not flat:
        return _resampled(table, grid, finer, by, axis, offsets, half_pixel)
    first, middle, last = table.split([prefix, cells, suffix], axis)
    middle = middle.unflatten(axis, _lengths(grid, offsets))
    middle = _resampled(middle, grid, finer, by, axis, offsets, half_pixel)
    middle = middle.flatten(axis, axis + len(grid) - 1)
    return torch.cat([first, middle, last], axis) if prefix or suffix else middle


def _resampled(
    table: Tensor,
    grid: tuple[int, ...],
    finer: tuple[int, ...],
    by: tuple[int, ...],
    axis: int,
    offsets: bool,
    half_pixel: bool,
) -> Tensor:
    if half_pixel and not offsets and len(grid) == 2:
        maps = table.movedim((axis, axis + 1), (-2, -1))
        flat = maps.reshape(1, -1, *grid).float()
        flat = F.interpolate(flat, size=list(finer), mode="bicubic", antialias=True)
        maps = flat.reshape(*maps.shape[:-2], *finer).to(table.dtype)
        return maps.movedim((-2, -1), (axis, axis + 1))
    for i, (n, m, k) in enumerate(zip(grid, finer, by, strict=True)):
        cells, zero = (range(1 - m, m), n - 1) if offsets else (range(m), 0)
        table = _sample(table, axis + i, [zero + j / k for j in cells]) if k > 1 else table
    return table


def _sample(table: Tensor, axis: int, positions: Sequence[float]) -> Tensor:
    """Sample a table along one axis by cubic convolution, with its end entries repeated."""
    at = torch.tensor(positions, dtype=torch.float64, device="cpu")
    first = at.floor()
    weights = _cubic_weights(at - first)
    shape = [-1 if i == axis % table.dim() else 1 for i in range(table.dim())]
    total: Tensor | None = None
    for tap, weight in enumerate(weights):
        index = (first.long() + tap - 1).clamp(0, table.shape[axis] - 1)
        rows = table.index_select(axis, index.to(table.device))
        term = rows * weight.to(device=table.device, dtype=table.dtype).reshape(shape)
        total = term if total is None else total + term
    assert total is not None
    return total


def _cubic_weights(t: Tensor) -> list[Tensor]:
    """Return the weights of the four neighbours at a distance t behind the second of them."""
    a = _CUBIC
    near = [((a + 2) * d - (a + 3)) * d * d + 1 for d in (t, 1 - t)]
    far = [((a * d - 5 * a) * d + 8 * a) * d - 4 * a for d in (1 + t, 2 - t)]
    return [far[0], near[0], near[1], far[1]]
