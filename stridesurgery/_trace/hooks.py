"""The forward hooks of a module while it is recorded."""

from collections import OrderedDict
from typing import Any

from torch import nn


class Hooks:
    """The forward hooks of a module, removed from it while it is recorded."""

    tables = ("_forward_pre_hooks", "_forward_hooks")

    def __init__(self, module: nn.Module) -> None:
        self.own = {name: vars(module)[name] for name in self.tables}
        self.with_kwargs = {
            *module._forward_pre_hooks_with_kwargs,
            *module._forward_hooks_with_kwargs,
        }
        vars(module).update({name: OrderedDict() for name in self.tables})

    def before(
        self, module: nn.Module, args: Any, kwargs: dict[str, Any]
    ) -> tuple[Any, dict[str, Any]]:
        """Return the arguments as the pre-hooks leave them."""
        for key, hook in list(self.own["_forward_pre_hooks"].items()):
            changed = hook(module, args, *([kwargs] if key in self.with_kwargs else []))
            if changed is not None and key in self.with_kwargs:
                args, kwargs = changed
            elif changed is not None:
                args = changed if isinstance(changed, tuple) else (changed,)
        return args, kwargs

    def after(self, module: nn.Module, args: Any, kwargs: dict[str, Any], result: Any) -> Any:
        """Return the result as the hooks leave it."""
        for key, hook in list(self.own["_forward_hooks"].items()):
            given = (args, kwargs, result) if key in self.with_kwargs else (args, result)
            changed = hook(module, *given)
            result = result if changed is None else changed
        return result
