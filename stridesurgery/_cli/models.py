"""Build models by name, with the weights of a file or the pretrained ones."""

import ast
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import stridesurgery as ss
from stridesurgery._cli.errors import CommandError

if TYPE_CHECKING:
    from torch import nn

PRETRAINED = "pretrained"


@dataclass(frozen=True)
class Source:
    """Source that a model is built from."""

    name: str  # timm:NAME, torchvision:NAME or module.path:callable
    arguments: Mapping[str, Any]  # passed to the function that builds it
    weights: str | None  # a file, PRETRAINED, or None: random, the same each time

    @property
    def untrained(self) -> "Source":
        """The same source with random weights."""
        return replace(self, weights=None)

    def build(self) -> "nn.Module":
        """Return the model in evaluation mode, operated as the file of its weights says.

        Raises:
            CommandError: there is no such model, it cannot be built, or the weights do not fit it.
        """
        import torch
        from torch import nn

        from stridesurgery._rewrite import fill, read

        make = _maker(self.name, pretrained=self.weights == PRETRAINED)
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                model = make(**self.arguments)
        except Exception as problem:
            raise CommandError(
                f"{self.name} cannot be built: {type(problem).__name__}: {problem}"
            ) from problem
        if not isinstance(model, nn.Module):
            raise CommandError(
                f"{self.name} returned a {type(model).__name__}, not a torch.nn.Module"
            )
        if self.weights is not None and self.weights != PRETRAINED:
            surgery, state = read(self.weights)
            if surgery is not None:
                model = ss.eliminate(model, surgery)
            try:
                fill(model, state, self.weights)
            except ss.RequestError as problem:
                raise CommandError(f"{problem}. See --model-arg") from problem
        return model.eval()


def _maker(name: str, pretrained: bool) -> Callable[..., Any]:
    """Return the function that builds a model."""
    import timm
    import torchvision

    library, colon, rest = name.partition(":")
    if not colon or not library or not rest:
        names = {n: f"torchvision:{n}" for n in torchvision.models.list_models()}
        names |= {n: f"timm:{n}" for n in timm.list_models()}
        hint = _closest(name, names)
        raise CommandError(
            f"{name!r} is not timm:NAME, torchvision:NAME or module.path:callable"
            + (f"; did you mean {' or '.join(names[n] for n in hint)}?" if hint else "")
        )
    if library == "timm":
        # timm itself finds hf-hub:NAME and local-dir:FOLDER
        if ":" not in rest and not timm.is_model(rest):
            raise _unknown(rest, library, timm.list_models())
        return lambda **arguments: timm.create_model(rest, pretrained=pretrained, **arguments)
    if library == "torchvision":
        if rest.lower() not in torchvision.models.list_models():
            raise _unknown(rest, library, torchvision.models.list_models())
        builder = torchvision.models.get_model_builder(rest)
        chosen: dict[str, Any] = {"weights": "DEFAULT" if pretrained else None}
        if not pretrained and "weights_backbone" in inspect.signature(builder).parameters:
            chosen["weights_backbone"] = None  # otherwise it is downloaded
        return lambda **arguments: builder(**{**chosen, **arguments})
    if pretrained:
        raise CommandError(
            f"--weights {PRETRAINED} is for timm: and torchvision: models; let {name} load its own"
        )
    return _imported(library, rest)


def _imported(module: str, attribute: str) -> Callable[..., Any]:
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # as `python -m` does
    try:
        found = attrgetter(attribute)(importlib.import_module(module))
    except Exception as problem:
        raise CommandError(f"{module}:{attribute} cannot be imported: {problem}") from problem
    if not callable(found):
        raise CommandError(
            f"{module}:{attribute} is a {type(found).__name__}, not a callable that builds a model"
        )
    return found


def _unknown(name: str, library: str, names: Iterable[str]) -> CommandError:
    close = _closest(name, names)
    hint = f"; the closest are {', '.join(close)}" if close else ""
    return CommandError(f"{library} has no model {name!r}{hint}")


def _closest(name: str, names: Iterable[str]) -> list[str]:
    """Return the name itself if it is known, else the most similar ones."""
    return [name] if name in names else get_close_matches(name, names, n=3)


def argument(text: str) -> tuple[str, Any]:
    """Read NAME=VALUE of a function's argument. VALUE is a Python literal, or else text.

    Raises:
        ValueError: the text has no "=", or NAME is not an identifier.
    """
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise ValueError(text)
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value
