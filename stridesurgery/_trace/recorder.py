"""Run a weightless model and record what it computes, for `trace`."""

import inspect
import random
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from sys import getrefcount
from typing import Any

import torch
from torch import Tensor, fx, nn

from stridesurgery._node import info, tensors_among
from stridesurgery._trace.function_calls import FunctionCalls
from stridesurgery._trace.hooks import Hooks
from stridesurgery._trace.leftovers import clear_caches, state_of
from stridesurgery._trace.recording import give_keys, lost_no_grad, tensors_returned
from stridesurgery.errors import TraceError
from stridesurgery.ops import Watch, beyond_numbers, known_result, module_traits

_VIEWS = (nn.Flatten, nn.Unflatten)


class Recorder(FunctionCalls):
    """Run a weightless model and record every torch function and leaf module as an fx node."""

    def __init__(
        self, model: nn.Module, leaf: Callable[[nn.Module], bool], watch: Watch | None = None
    ) -> None:
        super().__init__(model, watch)
        self.innermost: tuple[str, str] | None = None  # module that raised the first exception
        self._give_back = state_of(model)
        self._hooks: dict[nn.Module, Hooks] = {}
        self.adds_to_answer = False  # True if a hook of the model itself replaces its output
        # what the hooks of leaves compute; it is computed again when the leaf runs
        self._repeated: list[tuple[str, fx.Node]] = []
        for path, module in model.named_modules():
            for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
                self._names.setdefault(id(tensor), f"{path}.{name}" if path else name)
            wrapper = self._leaf_forward if path and leaf(module) else self._inner_forward
            # forward is replaced on the instances of our copy; nothing global is patched
            vars(module)["forward"] = wrapper(path, module, module.forward)
            if module._forward_hooks or module._forward_pre_hooks:
                # the hooks of the model itself run when the result is called
                self._hooks[module] = Hooks(module)

    def record(self, image: Tensor) -> fx.Graph:
        """Run the model on a weightless (N, C, H, W) image and return its graph.

        The model's own `forward` is restored in any case.
        """
        learned = [p for p in self.model.parameters() if p.requires_grad]
        for parameter in learned:
            parameter.requires_grad_(False)
        state = random.getstate()  # a forward pass may draw random numbers
        try:
            self._run(image)
            if self.without_grad:
                lost = lost_no_grad(
                    self.graph, self.model, self.without_grad, {id(p) for p in learned}
                )
                self.missed.update(
                    dict.fromkeys(f"{place} computes under torch.no_grad" for place in lost)
                )
        finally:
            random.setstate(state)
            for parameter in learned:
                parameter.requires_grad_()
            self.open = False
            self._give_back()
            self._alive.clear()
            self._sizes.clear()
            if self._is_held():
                clear_caches(self._is_held)
        return self.graph

    def _run(self, image: Tensor) -> None:
        node = self.graph.placeholder(_name_of_input(self.model))
        info(node).set(shape=tuple(image.shape), path="")
        self._tag(image, node)
        self._image, self._images = node, image.shape[0]
        # gradients on, with nothing to learn: so no_grad blocks of the forward code are seen
        with torch.enable_grad(), torch.device("meta"), self.watch or nullcontext(), self:
            result = self.model(image)
        # these hooks run on what the rewritten model returns
        if (hooks := self._hooks.get(self.model)) is not None:
            self._paused += 1
            self.adds_to_answer = hooks.after(self.model, (image,), {}, result) is not result
            self._paused -= 1
        if not tensors_returned(result):
            raise TraceError(f"it returns {_shortly(result)}, in which there is no tensor")
        info(self.graph.output(self._argument(self._contained(result)))).set(shape=None, path="")
        self._erase_repeated()
        give_keys(self.graph)

    def _is_held(self) -> bool:
        """Tell whether something, such as a cache, holds a value of this or another recording."""
        numbers = (getrefcount(number) > 3 for number in self.hashed.values())  # 3 of them are here
        tensors = (tensor() is not None for tensor in self._created)
        return self.meets_unknown or any(numbers) or any(tensors)

    # modules

    def _inner_forward(
        self, path: str, module: nn.Module, forward: Callable[..., Any]
    ) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            hooks = self._hooks.get(module) if path else None
            self.scope.append((path, module))
            try:
                if hooks is None:
                    return self._note_end(path, forward(*args, **kwargs))
                args, kwargs = hooks.before(module, args, kwargs)
                result = hooks.after(module, args, kwargs, forward(*args, **kwargs))
                if any(
                    getattr(hook, "failed", False)
                    for table in hooks.own.values()
                    for hook in table.values()
                ):
                    self.missed[f"a forward hook of {path} needs numbers"] = None
                return self._note_end(path, result)
            except Exception:
                self.innermost = self.innermost or (path, type(module).__name__)
                raise
            finally:
                self.scope.pop()

        return run

    def _leaf_forward(
        self, path: str, module: nn.Module, forward: Callable[..., Any]
    ) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            if self._paused:
                return forward(*args, **kwargs)
            if type(module) is nn.Identity and not isinstance(args[0], Tensor):
                return self._note_end(path, args[0])  # a container is not a value
            self._paused += 1
            hooks, given, named, beyond = (
                self._hooks.get(module),
                args,
                kwargs,
                beyond_numbers(self._images),
            )
            try:
                if hooks is not None:  # hooks are part of the leaf and run with it
                    with beyond:
                        args, kwargs = hooks.before(module, args, kwargs)
                    if args is given and kwargs is named:
                        beyond.take()  # the hooks only observe
                is_short = len(args) == 1 and self.watch is None
                result, writes = (
                    known_result(module, args[0]) if is_short else None,
                    tuple[int, ...](),
                )
                if result is None:
                    versions = self._versions(args, kwargs)
                    result = forward(*args, **kwargs)
                    writes = self._written(versions)
                same = (
                    args
                    and isinstance(args[0], Tensor)
                    and (
                        result is args[0]
                        or module_traits(module).passes
                        or isinstance(module, _VIEWS)
                    )
                )
                memory = self._memory(args[0]) if same else None
                if getattr(module, "inplace", False):
                    writes = tuple({*writes, *([memory] if memory else [])})
                elif isinstance(result, Tensor) and args and result is args[0]:
                    # identity: clone, so that later readers of the input
                    # are not attributed to this node
                    result = result.clone()
            except Exception:
                self.innermost = self.innermost or (path, type(module).__name__)
                self.fixed = self.fixed or [
                    f"{path}.{name}" for name, _ in module.named_parameters(recurse=False)
                ]
                raise
            finally:
                self._paused -= 1
            node = self.emit("call_module", path, given, named)
            info(node).writes = writes
            result = self._tag(result, node)
            if memory is not None:
                info(node).memory = memory
                if result.untyped_storage()._cdata != memory:
                    self._shared_memory[result.untyped_storage()._cdata] = memory
            if hooks is not None:
                info(node).hooked = beyond.take()
                result = self._after_leaf(
                    path, module, node, result, partial(hooks.after, module, args, kwargs)
                )
            return self._note_end(path, result)

        return run

    def _after_leaf(
        self, path: str, module: nn.Module, node: fx.Node, result: Any, hooks: Callable[[Any], Any]
    ) -> Any:
        """Run a leaf's forward hooks on its recorded result.

        The node of the leaf then stands for the result of the hooks.
        """
        before, versions = set(self.graph.nodes), self._versions(result)
        with beyond_numbers(self._images) as beyond:
            changed = hooks(result)
        if changed is result and not self._written(versions):
            return result
        info(node).hooked += beyond.take()
        for old, new in zip(tensors_among(result), tensors_among(changed), strict=False):
            if old.shape != new.shape:
                raise TraceError(
                    f"a forward hook of {path} gives {tuple(new.shape)} for the module's "
                    f"{tuple(old.shape)}; call what it does as a module of its own"
                )
        inside = [n for n in self.graph.nodes if n not in before and n is not self._device]
        self._repeated += [(path, n) for n in inside]
        if self.watch is not None:
            info(node).mixes += (
                tuple(name for n in inside for name in info(n).mixes) + self.watch.take()
            )
        return self._tag(changed, node)

    def _erase_repeated(self) -> None:
        for path, node in reversed(self._repeated):
            if node.users:
                raise TraceError(
                    f"a forward hook of {path} changes what the module returns and keeps a value "
                    "of its own; let it do one of both"
                )
            self.graph.erase_node(node)

    def _note_end(self, path: str, value: Any) -> Any:
        """Note a module's path at the nodes of the values that it returns.

        A part of several values is noted as `path[i]`.
        """
        if isinstance(value, Tensor):
            node = self._nodes.get(id(value))
            if path and node is not None:
                info(node).ends = (*info(node).ends, path)
        elif isinstance(value, (tuple, list, dict)):
            for i, part in value.items() if isinstance(value, dict) else enumerate(value):
                self._note_end(f"{path}[{i}]", part)
        return value


def _name_of_input(model: nn.Module) -> str:
    """Return the name of the first argument of a model's forward: the image's."""
    parameters = list(inspect.signature(type(model).forward).parameters.values())[1:2]
    named = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    return named[0] if named else "x"


def _shortly(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"a {type(value).__name__}"
