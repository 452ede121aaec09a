"""The values of a run, and the nodes that stand for them in the graph that is written."""

import operator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from stridesurgery._node import info, origins, tensors_among
from stridesurgery._trace.symbolic_ints import SymbolicInt, SymbolicNumber, plain, with_origin
from stridesurgery.errors import TraceError
from stridesurgery.ops import Watch


class Values:
    """A graph that is being written, and the node of every value."""

    def __init__(self, model: nn.Module, watch: Watch | None) -> None:
        super().__init__()
        self.model, self.watch = model, watch
        self.graph = fx.Graph()
        self.scope: list[tuple[str, nn.Module]] = []
        self.missed: dict[str, None] = {}  # actions that the graph lacks, in words
        self._image: fx.Node
        self._paused = 0
        self.open = True  # see `Emitter`
        self.hashed: dict[int, SymbolicNumber] = {}
        self.meets_unknown = (
            False  # a tensor that may come from a cache that another recording filled
        )
        self.compares = False  # the forward code compares a size
        self._grad_off = False  # the forward code is inside a no_grad block
        self.without_grad: set[fx.Node] = set()
        self._autocasts = _autocasts()
        self._nodes: dict[int, fx.Node] = {}
        self._alive: list[Any] = []  # ids stay unique only while their objects live
        self._device: fx.Node | None = None
        self._sizes: dict[tuple[fx.Node, int], SymbolicInt] = {}
        self._names: dict[int, str] = {}  # of parameters and buffers
        self._shared_memory: dict[int, int] = {}

    def note_comparison(self) -> None:
        """Note that the forward code compares a size."""
        if not self._paused:
            self.compares = True

    def emit(self, op: str, target: Any, args: Any, kwargs: dict[str, Any]) -> fx.Node:
        """Append a node whose arguments are given as the values that the model computes."""
        mixes = () if self.watch is None else self.watch.take()  # before the arguments become nodes
        args = tuple(self._argument(a) for a in args)
        kwargs = {name: self._argument(a) for name, a in kwargs.items()}
        if _autocasts() != self._autocasts:
            place = self.scope[-1][0] if self.scope else ""
            self.missed[f"{place or 'the forward code'} sets torch.autocast"] = None
        node = self.graph.create_node(op, target, args, kwargs)
        if self._grad_off:
            self.without_grad.add(node)
        info(node).set(
            shape=None, path=self.scope[-1][0] if self.scope else "", writes=(), mixes=mixes
        )
        return node

    def _versions(self, *values: Any) -> list[tuple[Tensor, int]]:
        """Return the tensors among arguments, and how often each was written into."""
        return [(tensor, tensor._version) for tensor in tensors_among(values)]

    def _written(self, versions: list[tuple[Tensor, int]]) -> tuple[int, ...]:
        """Return the memory that was written into since `versions` was taken."""
        return tuple(
            dict.fromkeys(self._memory(t) for t, version in versions if t._version != version)
        )

    def _memory(self, tensor: Tensor) -> int:
        """Return a label of a tensor's memory.

        An identity is recorded as a new tensor, which shares the label of its input.
        """
        label = tensor.untyped_storage()._cdata
        while label in self._shared_memory:
            label = self._shared_memory[label]
        return label

    def _size(self, tensor: Tensor, dim: int | None = None) -> Any:
        node = self._nodes.get(id(tensor))
        if node is None:  # a parameter's size is a constant
            return tensor.size() if dim is None else tensor.size(dim)
        sizes = [self._axis(node, i, length) for i, length in enumerate(tensor.size())]
        return torch.Size(sizes) if dim is None else sizes[dim]

    def _axis(self, node: fx.Node, i: int, length: int) -> SymbolicInt:
        if (node, i) not in self._sizes:
            made = partial(self.emit, "call_method", "size", (node, i), {})
            self._sizes[node, i] = with_origin(length, self, made)
        return self._sizes[node, i]

    def _tag(self, value: Any, node: fx.Node) -> Any:
        """Note that `node` computes `value`."""
        if isinstance(value, Tensor):
            self._paused += 1
            info(node).shape = tuple(value.shape)
            info(node).memory = self._memory(value)
            self._paused -= 1
            self._nodes[id(value)] = node
            self._alive.append(value)
            return value
        if isinstance(value, (tuple, list, dict)):
            info(node).parts = len(value)
        if isinstance(value, (tuple, list)):
            items = []
            for i, item in enumerate(value):
                part = self.emit("call_function", operator.getitem, (), {})
                part.args = (node, i)
                items.append(self._tag(item, part))
            if hasattr(value, "_fields"):
                return type(value)(*items)
            return type(value)(items) if type(value) in (tuple, list) else value
        if isinstance(value, dict):
            for key, item in value.items():
                part = self.emit("call_function", operator.getitem, (), {})
                part.args = (node, key)
                self._tag(item, part)
            return value
        return with_origin(value, self, node)

    def _argument(self, value: Any) -> Any:
        """Convert a value to an argument of a node."""
        if isinstance(value, Tensor):
            return self._tensor_node(value)
        if isinstance(value, SymbolicNumber):
            return value.node() if value.emitter is self else plain(value)
        if isinstance(value, torch.device) and value.type == "meta":
            return self._device_node()
        if isinstance(value, slice):
            return slice(*(self._argument(v) for v in (value.start, value.stop, value.step)))
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*(self._argument(v) for v in value))
        if isinstance(value, (tuple, list)):
            return (tuple if isinstance(value, tuple) else list)(self._argument(v) for v in value)
        if isinstance(value, dict):
            return {key: self._argument(v) for key, v in value.items()}
        return value.item() if isinstance(value, np.generic) else value

    def _contained(self, result: Any) -> Any:
        """Return a model's output with dicts of a class of their own as nodes that build them.

        The containers of a graph itself are plain.
        """
        if isinstance(result, dict):
            items = {key: self._contained(value) for key, value in result.items()}
            kind = type(result)
            return self.emit("call_function", kind, (items,), {}) if _is_built(result) else items
        if type(result) in (tuple, list):
            return type(result)(map(self._contained, result))
        return result

    def _tensor_node(self, tensor: Tensor) -> fx.Node:
        if id(tensor) not in self._nodes:
            name = self._names.get(id(tensor))
            path = (name,) if name else self._plain_attribute(tensor)
            node = self.emit("get_attr", path[0], (), {})
            for key in path[1:]:
                node = self.emit("call_function", operator.getitem, (), {})
                node.args = (node.prev, key)
            self._tag(tensor, node)
        return self._nodes[id(tensor)]

    def _plain_attribute(self, tensor: Tensor) -> tuple[Any, ...]:
        """Return an attribute's path, and the tensor's key where it is a container."""
        for path, module in self.model.named_modules():
            for name, value in vars(module).items():
                attribute = f"{path}.{name}" if path else name
                if value is tensor:
                    return (attribute,)
                if isinstance(value, (dict, list, tuple)):
                    parts = value.items() if isinstance(value, dict) else enumerate(value)
                    for key, part in parts:
                        if part is tensor:
                            return attribute, key
        self.meets_unknown = True
        place = self.scope[-1][0] if self.scope else ""
        raise TraceError(
            f"submodule {place!r} uses a tensor that is neither an input, a parameter nor an "
            "attribute of a module; register it as a buffer, and where it comes from a cache, "
            "clear that"
        )

    def _constants(self, *values: Any) -> list[str]:
        """Return the names of the parameters and buffers that a call's arguments come from.

        Values that are computed from the input are left out.
        """
        tensors = tensors_among(values)
        names = {self._names[id(t)]: None for t in tensors if id(t) in self._names}
        for tensor in tensors:
            if id(tensor) in self._nodes:
                names.update(dict.fromkeys(origins(self._nodes[id(tensor)])))
        return list(names)

    def _device_node(self) -> fx.Node:
        if self._device is None:
            with self.graph.inserting_after(self._image):
                self._device = self.graph.call_function(getattr, (self._image, "device"))
            info(self._device).set(shape=None, path="")
        return self._device


def _is_built(result: dict[str, Any]) -> bool:
    """Tell whether a dict has its own class, as transformers' outputs, that items alone make."""
    kind = type(result)
    if kind is dict or "<locals>" in kind.__qualname__:
        return False
    try:
        made = kind(dict(result))
        return list(made) == list(result) and vars(made).keys() == vars(result).keys()
    except Exception:
        return False


def _autocasts() -> tuple[bool, ...]:
    return tuple(torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda"))


def holds_value(result: Any) -> bool:
    if isinstance(result, Tensor):
        return True
    if isinstance(result, (tuple, list)):
        return any(holds_value(r) for r in result)
    return isinstance(result, int) and not isinstance(result, bool)
