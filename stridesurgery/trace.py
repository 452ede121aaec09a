"""The torch.fx graph of a model together with the shape of every value, without running a weight.

The model is copied without its weights (tensors become meta tensors), and its own `forward` runs on that copy
under a mode that records every torch function and every leaf module as an fx node. Values are real tensors and
real ints while the model runs, so control flow, asserts and `isinstance` work as they do in training; sizes are
ints that remember how they were computed, so the graph stays valid at other sizes.
"""

import operator
import random
import traceback
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from stridesurgery.errors import TraceError
from stridesurgery.sizes import Number, Size, with_origin
from stridesurgery.skeleton import input_channels, number_format

BATCH = 41  # weightless images cost nothing, and a length of 41k can only be a batch of k windows
Shape = tuple[int, ...]
Key = tuple[str, str, str, int]  # (module path, kind of node, target, how many such before): stable across recordings


@dataclass(frozen=True)
class Traced:
    """A model's graph with, in every node's meta, what is known of its value.

    `shape` (of a tensor, else None), `path` (of the module whose code runs it), `key`, `ends` (the paths of the modules
    that return it), `memory` (a label: values of one label share memory) and `writes` (the labels it writes into).
    """

    graph: fx.Graph
    model: nn.Module  # the weightless copy that ran
    size: tuple[int, int]  # input (rows, columns)
    training: bool
    compares: bool = False  # the forward code compares sizes: at another input size it may do something else

    @cached_property
    def shapes(self) -> dict[Key, Shape]:
        """The shape of every tensor that is computed (parameters apart), by the node's key."""
        values = (n for n in self.graph.nodes if n.op not in ("get_attr", "output"))
        return {n.meta["key"]: shape for n in values if (shape := shape_of(n)) is not None}

    @cached_property
    def modules(self) -> dict[str, nn.Module]:
        """The model's modules by their paths; one that has several stands under each."""
        return dict(self.model.named_modules(remove_duplicate=False))

    def module(self, node: fx.Node) -> nn.Module:
        """The leaf module that a call_module node runs."""
        return self.modules[str(node.target)]


def shape_of(node: Any) -> Shape | None:
    """The shape of a node's tensor value, or None where it has none."""
    return node.meta.get("shape") if isinstance(node, fx.Node) else None


def trace(
    skeleton: nn.Module,
    size: tuple[int, int],
    *,
    training: bool = False,
    leaf: Callable[[nn.Module], bool],
    batch: int = BATCH,
) -> Traced:
    """Record a weightless model on a (batch, C, h, w) input.

    Args:
        skeleton: what `without_weights` gave; any module whose forward takes one image batch.
        size: (h, w) of the input in pixels.
        training: record what the model does after `.train()` instead of `.eval()`.
        leaf: which modules stay one node; the rest is recorded from the inside.
        batch: N of the input.

    Raises:
        TraceError: the forward pass fails, with the submodule and the line where it does.
    """
    skeleton.train(training)
    failures = []
    for channels in input_channels(skeleton):
        recorder = _Recorder(skeleton, leaf)
        image = torch.empty(batch, channels, *size, device="meta", dtype=number_format(skeleton))
        try:
            graph = recorder.record(image)
            return Traced(graph, skeleton, size, training, recorder.compares)
        except Exception as problem:
            failures.append(_explain(problem, recorder, size))
            failures[-1].__cause__ = problem
    raise failures[0]


def _explain(problem: Exception, recorder: "_Recorder", size: tuple[int, int]) -> TraceError:
    model = recorder.model
    frames = [f for f in traceback.extract_tb(problem.__traceback__) if "/torch/" not in f.filename]
    own = [f for f in frames if "/stridesurgery/" not in f.filename]
    line = f" ({own[-1].filename.rsplit('/', 1)[-1]}:{own[-1].lineno}: {own[-1].line})" if own else ""
    path, kind = recorder.innermost or ("", type(model).__name__)
    text = " ".join(str(problem).split())
    place = f"submodule {path!r} ({kind})" if path else kind
    small = ("kernel size can't be greater", "output size is too small", "padding size should be less", "too small")
    if any(words in text.lower() for words in small):
        return TraceError(
            f"an input of {size[0]}x{size[1]} pixels is too small for {place}{line}: {text}; give a larger input_size"
        )
    fixed = f"; the size is fixed by {', '.join(recorder.fixed)}" if recorder.fixed else ""
    return TraceError(
        f"{type(model).__name__} cannot be traced at {size[0]}x{size[1]} pixels: {place}{line} "
        f"raised {type(problem).__name__}: {text}{fixed}",
        fixed=tuple(recorder.fixed),
    )


_OPERATORS = {
    f"__{name}__": getattr(operator, name)
    for name in (
        "add sub mul truediv floordiv mod pow matmul neg eq ne lt le gt ge getitem setitem invert and_ or_ xor "
        "iadd isub imul itruediv ifloordiv imod ipow iand ior abs"
    ).split()
} | {"__and__": operator.and_, "__or__": operator.or_}
_REFLECTED = {f"__r{name}__": getattr(operator, name) for name in "add sub mul truediv floordiv mod pow matmul".split()}
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


_MAY_PASS = (nn.Identity, nn.Dropout, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.Flatten, nn.Unflatten)
_SHAPELESS = {nn.BatchNorm2d, BatchNormAct2d, nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU} | {
    nn.Hardswish,
    nn.Hardsigmoid,
    nn.Sigmoid,
    nn.Dropout,
}


def known_result(module: nn.Module, x: Tensor) -> Tensor | None:
    """A module's output where its shape is plain: running these would take half of a recording's time."""
    if type(module) in _SHAPELESS:
        return x if getattr(module, "inplace", False) else x.clone()
    if type(module) is nn.LayerNorm and tuple(x.shape[-len(module.normalized_shape) :]) == module.normalized_shape:
        return x.clone()
    if type(module) is nn.Linear and x.shape[-1] == module.in_features:
        return x.new_empty((*x.shape[:-1], module.out_features))
    if type(module) is nn.AdaptiveAvgPool2d and module.output_size in (1, (1, 1)):
        return x.new_empty((*x.shape[:-2], 1, 1))
    return None


def _known_sum(name: str, args: Any, kwargs: dict[str, Any]) -> Tensor | None:
    """What adding or multiplying plain tensors gives: without numbers torch takes long to tell their shape."""
    if name not in _SUMS or len(args) != 2 or kwargs or not all(isinstance(a, Tensor) for a in args):
        return None
    a, b = args
    if a.dtype != b.dtype or a.dim() != b.dim() or not (a.is_contiguous() and b.is_contiguous()):
        return None
    sides = list(zip(a.shape, b.shape, strict=True))
    return a.new_empty([max(side) for side in sides]) if all(n == m or min(n, m) == 1 for n, m in sides) else None


_SUMS = {"add", "__add__", "mul", "__mul__"}


class _Recorder(TorchFunctionMode):
    """Runs a weightless model and writes down every torch function and leaf module as an fx node."""

    def __init__(self, model: nn.Module, leaf: Callable[[nn.Module], bool]) -> None:
        super().__init__()
        self.model = model
        self.graph = fx.Graph()
        self.scope: list[tuple[str, nn.Module]] = []
        self.innermost: tuple[str, str] | None = None  # where the first exception rose
        self.fixed: list[str] = []  # parameters and buffers that took part in the call that raised it
        self._paused = 0
        self.compares = False
        self._nodes: dict[int, fx.Node] = {}
        self._alive: list[Any] = []  # ids stay unique only while their objects live
        self._device: fx.Node | None = None
        self._sizes: dict[tuple[fx.Node, int], Size] = {}
        self._names: dict[int, str] = {}
        self._shared_memory: dict[int, int] = {}
        self._own_forwards: dict[nn.Module, Any] = {}
        for path, module in model.named_modules():
            for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
                self._names.setdefault(id(tensor), f"{path}.{name}" if path else name)
            wrapper = self._leaf_forward if path and leaf(module) else self._inner_forward
            # the copy is ours: its forward is shadowed on the instance, nothing global is patched
            self._own_forwards[module] = vars(module).get("forward")  # some models set one themselves
            vars(module)["forward"] = wrapper(path, module, module.forward)

    def record(self, image: Tensor) -> fx.Graph:
        state = random.getstate()  # a forward pass may draw from it
        try:
            node = self.graph.placeholder("x")
            node.meta.update(shape=tuple(image.shape), path="")
            self._tag(image, node)
            self._image = node
            with torch.no_grad(), torch.device("meta"), self:
                result = self.model(image)
            self.graph.output(self._argument(self._contained(result))).meta.update(shape=None, path="")
            _give_keys(self.graph)
        finally:
            random.setstate(state)
            for module, own in self._own_forwards.items():
                vars(module).pop("forward")
                if own is not None:
                    module.forward = own  # type: ignore[method-assign]
        return self.graph

    def emit(self, op: str, target: Any, args: Any, kwargs: dict[str, Any]) -> fx.Node:
        args = tuple(self._argument(a) for a in args)
        kwargs = {name: self._argument(a) for name, a in kwargs.items()}
        node = self.graph.create_node(op, target, args, kwargs)
        node.meta.update(shape=None, path=self.scope[-1][0] if self.scope else "", writes=())
        return node

    def note_comparison(self) -> None:
        if not self._paused:
            self.compares = True

    # modules

    def _inner_forward(self, path: str, module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            self.scope.append((path, module))
            try:
                return self._note_end(path, forward(*args, **kwargs))
            except Exception:
                self.innermost = self.innermost or (path, type(module).__name__)
                raise
            finally:
                self.scope.pop()

        return run

    def _leaf_forward(self, path: str, module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            if self._paused:
                return forward(*args, **kwargs)
            self._paused += 1
            try:
                result, writes = known_result(module, args[0]) if len(args) == 1 else None, tuple[int, ...]()
                if result is None:
                    versions = self._versions(args, kwargs)
                    result = forward(*args, **kwargs)
                    writes = self._written(versions)
                same = args and isinstance(args[0], Tensor) and (result is args[0] or isinstance(module, _MAY_PASS))
                memory = self._memory(args[0]) if same else None
                if getattr(module, "inplace", False):
                    writes = tuple({*writes, *([memory] if memory else [])})
                elif args and result is args[0]:
                    result = result.clone()  # an identity: what else reads its input reads that, not this
            except Exception:
                self.innermost = self.innermost or (path, type(module).__name__)
                self.fixed = self.fixed or [f"{path}.{name}" for name, _ in module.named_parameters(recurse=False)]
                raise
            finally:
                self._paused -= 1
            node = self.emit("call_module", path, args, kwargs)
            node.meta["writes"] = writes
            result = self._note_end(path, self._tag(result, node))
            if memory is not None:
                node.meta["memory"] = memory
                if result.untyped_storage()._cdata != memory:
                    self._shared_memory[result.untyped_storage()._cdata] = memory
            return result

        return run

    def _note_end(self, path: str, value: Any) -> Any:
        """Note at the nodes of what a module returns that it does; a part of several is `path[i]`."""
        if isinstance(value, Tensor):
            node = self._nodes.get(id(value))
            if path and node is not None:
                node.meta["ends"] = (*node.meta.get("ends", ()), path)
        elif isinstance(value, (tuple, list, dict)):
            for i, part in value.items() if isinstance(value, dict) else enumerate(value):
                self._note_end(f"{path}[{i}]", part)
        return value

    # functions

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
        self._paused += 1
        versions = self._versions(args, kwargs)
        try:
            result = _known_sum(name, args, kwargs)
            if result is None:
                result = func(*args, **kwargs)
            writes = self._written(versions)
        except Exception:
            self.fixed = self.fixed or self._constants(args, kwargs)
            raise
        finally:
            self._paused -= 1
        if name == "__setitem__":
            self.emit("call_function", operator.setitem, args, kwargs).meta["writes"] = writes
            return result
        if not _holds_value(result):
            return result
        node = self._call(func, name, args, kwargs)
        node.meta["writes"] = writes
        return self._tag(result, node)

    def _versions(self, *values: Any) -> list[tuple[Tensor, int]]:
        """The tensors among arguments, and how often each has been written into."""
        tensors: list[Tensor] = []
        fx.node.map_aggregate(values, lambda v: tensors.append(v) if isinstance(v, Tensor) else None)
        return [(tensor, tensor._version) for tensor in tensors]

    def _written(self, versions: list[tuple[Tensor, int]]) -> tuple[int, ...]:
        """The memory that was written into since."""
        return tuple(dict.fromkeys(self._memory(t) for t, version in versions if t._version != version))

    def _memory(self, tensor: Tensor) -> int:
        """A label of a tensor's memory; identities are recorded as new tensors, and share their input's."""
        label = tensor.untyped_storage()._cdata
        while label in self._shared_memory:
            label = self._shared_memory[label]
        return label

    def _call(self, func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> fx.Node:
        if getattr(torch.Tensor, name, None) is func or getattr(func, "__module__", "") == "torch._tensor":
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

    def _size(self, tensor: Tensor, dim: int | None = None) -> Any:
        node = self._nodes.get(id(tensor))
        if node is None:  # a parameter's size is a constant
            return tensor.size() if dim is None else tensor.size(dim)
        sizes = [self._axis(node, i, length) for i, length in enumerate(tensor.size())]
        return torch.Size(sizes) if dim is None else sizes[dim]

    def _axis(self, node: fx.Node, i: int, length: int) -> Size:
        if (node, i) not in self._sizes:
            made = partial(self.emit, "call_method", "size", (node, i), {})
            self._sizes[node, i] = with_origin(length, self, made)
        return self._sizes[node, i]

    # values

    def _tag(self, value: Any, node: fx.Node) -> Any:
        """Say that `value` is what `node` computes."""
        if isinstance(value, Tensor):
            self._paused += 1
            node.meta["shape"] = tuple(value.shape)
            node.meta["memory"] = self._memory(value)
            self._paused -= 1
            self._nodes[id(value)] = node
            self._alive.append(value)
            return value
        if isinstance(value, (tuple, list, dict)):
            node.meta["parts"] = len(value)
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
        """A value as an argument of a node."""
        if isinstance(value, Tensor):
            return self._tensor_node(value)
        if isinstance(value, Number):
            return value.node()
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
        return value

    def _contained(self, result: Any) -> Any:
        """What a model returns, its ordered dicts as nodes that build them: a graph's own containers are plain."""
        if isinstance(result, dict):
            items = {key: self._contained(value) for key, value in result.items()}
            return self.emit("call_function", OrderedDict, (items,), {}) if type(result) is OrderedDict else items
        if type(result) in (tuple, list):
            return type(result)(map(self._contained, result))
        return result

    def _tensor_node(self, tensor: Tensor) -> fx.Node:
        if id(tensor) not in self._nodes:
            name = self._names.get(id(tensor)) or self._plain_attribute(tensor)
            node = self.emit("get_attr", name, (), {})
            self._tag(tensor, node)
        return self._nodes[id(tensor)]

    def _plain_attribute(self, tensor: Tensor) -> str:
        for path, module in self.model.named_modules():
            for name, value in vars(module).items():
                if value is tensor:
                    return f"{path}.{name}" if path else name
        place = self.scope[-1][0] if self.scope else ""
        raise TraceError(
            f"submodule {place!r} uses a tensor that is neither an input, a parameter nor an attribute of a module; "
            "register it as a buffer"
        )

    def _constants(self, *values: Any) -> list[str]:
        """The names of the parameters and buffers that a call's arguments are made of, the input apart."""
        tensors: list[Tensor] = []
        fx.node.map_aggregate(values, lambda v: tensors.append(v) if isinstance(v, Tensor) else None)
        names = {self._names[id(t)]: None for t in tensors if id(t) in self._names}
        for tensor in tensors:
            if id(tensor) in self._nodes:
                names.update(dict.fromkeys(origins(self._nodes[id(tensor)])))
        return list(names)

    def _device_node(self) -> fx.Node:
        if self._device is None:
            with self.graph.inserting_after(self._image):
                self._device = self.graph.call_function(getattr, (self._image, "device"))
            self._device.meta.update(shape=None, path="")
        return self._device


def _give_keys(graph: fx.Graph) -> None:
    counts: dict[tuple[str, str, str], int] = defaultdict(int)
    for node in graph.nodes:
        target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        place = (str(node.meta["path"]), node.op, target)
        node.meta["key"] = (*place, counts[place])
        counts[place] += 1


def origins(node: fx.Node) -> list[str]:
    """The attributes that a value is computed from; none where the input takes part."""
    found, todo, seen = [], [node], set()
    while todo:
        current = todo.pop()
        if current in seen:
            continue
        seen.add(current)
        if current.op == "placeholder":
            return []
        if current.op == "get_attr" or (current.op == "call_module" and not current.all_input_nodes):
            found.append(str(current.target))  # a parametrized weight is what a module without inputs returns
        todo.extend(current.all_input_nodes)
    return found


def _holds_value(result: Any) -> bool:
    if isinstance(result, Tensor):
        return True
    if isinstance(result, (tuple, list)):
        return any(_holds_value(r) for r in result)
    return isinstance(result, int) and not isinstance(result, bool)


def returned(graph: fx.Graph) -> list[fx.Node]:
    """The output, and the containers that it is made of: the nodes whose arguments leave the network."""
    found = [next(n for n in reversed(graph.nodes) if n.op == "output")]
    for node in found:
        found.extend(n for n in node.all_input_nodes if n.target is OrderedDict)
    return found


def tensors_in(args: Iterable[Any]) -> list[fx.Node]:
    """The nodes whose value is or holds a tensor among (nested) arguments, in order."""
    found: list[fx.Node] = []

    def visit(value: Any) -> None:
        if isinstance(value, fx.Node) and (shape_of(value) is not None or "parts" in value.meta):
            found.append(value)

    fx.node.map_aggregate(tuple(args), visit)
    return found
