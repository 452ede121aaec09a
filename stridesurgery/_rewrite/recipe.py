"""Recipe of an operated model in its state_dict: neither is used without the other unnoticed."""

import warnings
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn

from stridesurgery.surgery import Surgery

ENTRY = "surgery"  # of a state_dict's metadata, and of a file's
_READ_BY_ALL = "assign_to_params_buffers"  # what every module reads of the metadata of its weights


def attach(model: nn.Module, surgery: Surgery) -> None:
    """Attach the recipe as `.surgery`; the model's state_dict holds it from now on."""
    model.surgery = surgery  # type: ignore[assignment]
    _drop(model._state_dict_hooks, _write)
    model.register_state_dict_post_hook(_write)
    _drop(model._load_state_dict_pre_hooks, _compare)
    model._register_load_state_dict_pre_hook(partial(_compare, surgery))


def recipes_in(state: Mapping[str, Any]) -> dict[str, str]:
    """Return the recipes in a state_dict, as JSON by the path of the operated module."""
    metadata = getattr(state, "_metadata", {})
    return {path: entry[ENTRY] for path, entry in metadata.items() if ENTRY in entry}


class _Metadata(dict[str, Any]):
    """Metadata of an operated model's state_dict, which warns when another model loads it.

    Saved it is plain data: `torch.load(weights_only=True)` reads it where there is no
    stridesurgery.
    """

    expected = False  # True while an operated model loads it

    def get(self, key: str, default: Any = None) -> Any:
        if key == _READ_BY_ALL:
            if not self.expected:
                _warn(Surgery.from_json(self[ENTRY]), "has undergone none", stacklevel=6)
            self.expected = False
        return super().get(key, default)

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Metadata":
        return type(self)(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return OrderedDict, (), None, None, iter(self.items())


def _write(module: nn.Module, state: Any, prefix: str, local_metadata: dict[str, Any]) -> None:
    surgery = getattr(module, "surgery", None)
    if isinstance(surgery, Surgery) and hasattr(state, "_metadata"):
        recipe = {ENTRY: surgery.to_json()}
        state._metadata[prefix[:-1]] = _Metadata(local_metadata | recipe)


def _compare(own: Surgery, state: Any, prefix: str, local_metadata: Any, *_: Any) -> None:
    """Warn before a model loads the weights of another surgery than its own or one before it."""
    if isinstance(local_metadata, _Metadata):
        local_metadata.expected = True
    if ENTRY not in local_metadata:
        return
    given, known = Surgery.from_json(local_metadata[ENTRY]), own
    while _essence(known) != _essence(given):
        if known.after is None:
            return _warn(given, f"has undergone {own!r}", stacklevel=7)
        known = known.after


def _essence(surgery: Surgery) -> Surgery:
    """Leave out what changes no answer."""
    before = surgery.after and _essence(surgery.after)
    return replace(surgery, form="module", input_size=None, after=before)


def _warn(given: Surgery, own: str, stacklevel: int) -> None:
    warnings.warn(
        f"these weights are of a model after {given!r}; the model that loads them {own}, and will "
        "give other answers. stridesurgery.load(model, file) gives a model with its surgery",
        stacklevel=stacklevel,  # the caller of load_state_dict
    )


def _drop(hooks: dict[int, Any], ours: Any) -> None:
    """Drop the hook of an earlier surgery; torch wraps a hook in an object with `.hook`."""
    for key, hook in list(hooks.items()):
        hook = getattr(hook, "hook", hook)
        if getattr(hook, "func", hook) is ours:
            del hooks[key]
