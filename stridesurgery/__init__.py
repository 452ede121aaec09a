"""Change the strides of a pretrained backbone and keep every weight."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from stridesurgery._public import *  # noqa: F403
    from stridesurgery._public import __all__ as __all__
else:  # imported at first use: `stridesurgery --help` needs no torch

    def __getattr__(name: str) -> Any:
        if name in ("ops", "plot"):
            return import_module(f"{__name__}.{name}")
        public = import_module("stridesurgery._public")
        if name == "__all__" or name in public.__all__:
            return getattr(public, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return __getattr__("__all__")
