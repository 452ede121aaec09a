"""An independent witness: every aten operator that shrinks a map while a model runs, seen below the library's tracer.

It knows nothing of stridesurgery's operator table or graph. A `TorchDispatchMode` sees what reaches
the backend: convolutions and pools with their real strides, strided slices, resizes, `im2col`, and
reshapes that fold cells into channels. Each is attributed to the module that was running, so that
it can be compared with the layers by name.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

BATCH = 37  # a length that no window, head or channel count has
_REARRANGING = ("view", "_unsafe_view", "_reshape_alias", "permute", "transpose", "clone", "unbind")
_MIXING = (
    "mm",
    "bmm",
    "addmm",
    "baddbmm",
    "_scaled_dot_product",
    "scaled_dot",
    "linear",
    "cat",
    "stack",
    "_softmax",
)


@dataclass
class Event:
    """One operator that shrank a map."""

    operator: str
    path: str  # of the module that was running
    before: tuple[int, ...]
    after: tuple[int, ...]
    axes: set[int] = field(default_factory=set)  # along which a slice or an unfold has a step

    def __str__(self) -> str:
        return f"{self.operator} in {self.path or 'the model'} ({_by(self.before)} to {_by(self.after)})"


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape[1:]))


class Witness(TorchDispatchMode):
    """Records the operators that shrink what is computed from the image; `events` holds them in running order."""

    def __init__(self, image: Tensor) -> None:
        super().__init__()
        self.events: list[Event] = []
        self.kept: set[str] = set()  # modules that gave back the grid they were given, at some call
        self.changed: set[str] = set()
        self._scope: list[str] = []
        self._alive: list[Tensor] = [image]  # ids stay unique only while their tensors live
        self._map: dict[int, tuple[int, ...]] = {
            id(image): tuple(image.shape)
        }  # the last 4-D shape on the way
        self._sliced: dict[int, Event] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        sources = [
            t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor) and id(t) in self._map
        ]
        if not sources:  # of parameters only: tables, filters, standardised weights
            return result
        name = func.overloadpacket.__name__
        # beside a class token the map is meant; of queries, keys and values the queries, which come
        # first
        source = max(sources, key=Tensor.numel) if name == "cat" else sources[0]
        for output in tree_leaves(result):
            if isinstance(output, Tensor):
                self._see(name, source, output, args, kwargs or {})
        return result

    def _see(
        self, name: str, source: Tensor, output: Tensor, args: Any, kwargs: dict[str, Any]
    ) -> None:
        before, after = tuple(source.shape), tuple(output.shape)
        if name in ("slice", "unfold"):
            self._slice(name, source, output, args, kwargs)
        elif output.dtype.is_floating_point and self._shrinks(name, source, before, after, args):
            last = before if len(before) == 4 else self._map[id(source)]
            self.events.append(Event(name, self._path, last, after))
        self._alive.append(output)
        is_map = output.dim() == 4 and after[0] == BATCH
        self._map[id(output)] = after if is_map else self._map[id(source)]

    def _shrinks(self, name: str, source: Tensor, before: Any, after: Any, args: Any) -> bool:
        if name == "convolution":
            return args[0] is source and not args[6] and max(args[3]) > 1
        if name in ("max_pool2d_with_indices", "avg_pool2d"):
            stride = args[2] if len(args) > 2 and args[2] else args[1]
            return max(stride) > 1 and not (after[2:] == (1, 1) and min(args[1]) >= min(before[2:]))
        if name == "im2col":
            return max(args[4]) > 1
        if name.startswith(_MIXING) or len(after) != 4 or after[0] != BATCH:
            return False
        last = self._map[id(source)]
        if name in _REARRANGING and math.prod(last) != math.prod(after):
            return (
                False  # not that map's cells laid over channels: another one made of it meanwhile
            )
        return _is_coarser(last, after)

    def _slice(
        self, name: str, source: Tensor, output: Tensor, args: Any, kwargs: dict[str, Any]
    ) -> None:
        """x[:, ::2, ::2] arrives as two operators: one event with two axes."""
        step = (args[4] if len(args) > 4 else kwargs.get("step", 1)) if name == "slice" else args[3]
        event = self._sliced.get(id(source))
        if step > 1:
            if event is None or event.operator != name:
                event = Event(name, self._path, tuple(source.shape), tuple(output.shape))
                self.events.append(event)
            event.axes.add((args[1] if len(args) > 1 else 0) % source.dim())
            event.after = tuple(output.shape)
        if event is not None:
            self._sliced[id(output)] = event

    @property
    def _path(self) -> str:
        return self._scope[-1] if self._scope else ""

    @contextmanager
    def following(self, model: nn.Module) -> Iterator[None]:
        """Know which module of `model` is running."""
        paths = {id(module): path for path, module in model.named_modules()}

        def enter(module: nn.Module, _: Any) -> None:
            self._scope.append(paths.get(id(module), ""))

        def leave(module: nn.Module, given: Any, result: Any) -> None:
            path = self._scope.pop()
            shapes = [tuple(t.shape) for t in (*given[:1], result) if isinstance(t, Tensor)]
            (self.kept if len(shapes) == 2 and _same_grid(*shapes) else self.changed).add(path)

        hooks = (
            register_module_forward_pre_hook(enter),
            register_module_forward_hook(leave, always_call=True),
        )
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def keeper(self, path: str) -> str | None:
        """The innermost module around `path` that gives back the grid it was given."""
        while path:
            if path in self.kept - self.changed:
                return path
            path = path.rpartition(".")[0]
        return None


def _same_grid(before: tuple[int, ...], after: tuple[int, ...]) -> bool:
    """Whether two values have as many cells: equal shapes but for the channels."""
    if len(before) != len(after) or before[0] != after[0]:
        return False
    return before[:-1] == after[:-1] or (len(before) == 4 and before[2:] == after[2:])


def _is_coarser(before: tuple[int, ...], after: tuple[int, ...]) -> bool:
    """Whether both spatial axes shrink alike, by 1.5 or more, in (N, C, H, W) or (N, H, W, C); not to one cell."""
    for rows in (2, 1):
        cells = after[rows : rows + 2]
        down, right = (b / max(a, 1) for b, a in zip(before[rows:], cells, strict=False))
        if (
            min(cells) > 1
            and min(down, right) >= 1.5
            and max(down, right) <= 1.25 * min(down, right)
        ):
            return True
    return False


def watch(meta_model: nn.Module, size: tuple[int, int], channels: int) -> Witness:
    """Run a weightless model on a meta image of `size` and record what shrinks."""
    image = torch.empty(BATCH, channels, *size, device="meta")
    witness = Witness(image)
    with torch.no_grad(), torch.device("meta"), witness.following(meta_model), witness:
        meta_model.eval()(image)
    return witness
