"""Checkpoints: everything a run needs to go on as if it had not stopped, written whole or not at all."""

import pickle
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import torch
from torch import Tensor

from examples.ssd.annotations import Categories
from examples.ssd.configurations import Configuration, Recipe
from examples.ssd.errors import CheckpointError, RequestError
from examples.ssd.files import write_atomically
from examples.ssd.model import SSD, build

FORMAT = 1
_PARTS = ("format", "configuration", "categories", "model")


@dataclass(frozen=True)
class Detector:
    """A trained network, what it is made of and what its labels mean."""

    ssd: SSD
    row: Configuration
    categories: Categories


def described(row: Configuration, categories: Categories) -> dict[str, Any]:
    """The part of a checkpoint that says what its weights are of."""
    return {"format": FORMAT, "configuration": asdict(row), "categories": asdict(categories)}


def save(path: Path, content: Mapping[str, Any]) -> None:
    """content: what `described` gives, `model` (a state_dict), and what else training needs."""
    with write_atomically(path) as part:
        torch.save(dict(content), part)


def load(path: Path) -> dict[str, Any]:
    """The content of a checkpoint; nothing in it is executed.

    Raises:
        CheckpointError: there is none, it is cut off, or it is of something else.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"there is no checkpoint {path}.") from None
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, BadZipFile, pickle.UnpicklingError) as problem:
        raise CheckpointError(
            f"{path} cannot be read; it is cut off or no checkpoint ({_first_line(problem)})."
        ) from problem
    if not isinstance(content, dict) or any(part not in content for part in _PARTS):
        raise CheckpointError(f"{path} is no checkpoint of these programs: it lacks one of {', '.join(_PARTS)}.")
    if content["format"] != FORMAT:
        raise CheckpointError(f"{path} has format {content['format']}; this version reads {FORMAT}.")
    return content


def _first_line(problem: BaseException) -> str:
    return str(problem).splitlines()[0][:120] if str(problem) else type(problem).__name__


def configuration_in(content: Mapping[str, Any]) -> Configuration:
    fields = dict(content["configuration"])
    try:
        return Configuration(**{**fields, "recipe": Recipe(**fields["recipe"])})
    except (TypeError, KeyError, RequestError) as problem:
        raise CheckpointError(f"the checkpoint's configuration is not understood: {problem}") from problem


def categories_in(content: Mapping[str, Any]) -> Categories:
    return Categories(tuple(content["categories"]["ids"]), tuple(content["categories"]["names"]))


def detector(path: Path, *, averaged: bool = True) -> Detector:
    """The network of a checkpoint, in eval mode; with its averaged weights if it has any.

    Raises:
        CheckpointError: it cannot be read, or its weights are not those of its configuration.
    """
    content = load(path)
    row, categories = configuration_in(content), categories_in(content)
    ssd = build(row, categories.classes)
    weights = content.get("average") if averaged else None
    restore(ssd, weights or content["model"], str(path))
    return Detector(ssd.eval(), row, categories)


def restore(ssd: SSD, weights: Mapping[str, Tensor], where: str) -> None:
    """Load all weights, or say which do not fit."""
    check_weights(ssd, weights, where)
    ssd.load_state_dict(weights)


def check_weights(ssd: SSD, weights: Mapping[str, Tensor], where: str) -> None:
    """Say which weights do not fit a network.

    Raises:
        CheckpointError: a name is missing or unknown, or a shape another.
    """
    own = ssd.state_dict()
    missing, strange = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    shapes = [k for k in own.keys() & weights.keys() if own[k].shape != weights[k].shape]
    if missing or strange or shapes:
        faults = {"missing": missing, "unknown": strange, "of another shape": sorted(shapes)}
        said = "; ".join(f"{len(keys)} {what}, such as {keys[0]}" for what, keys in faults.items() if keys)
        raise CheckpointError(f"the weights of {where} are not those of this network: {said}.")


def take_over(ssd: SSD, path: Path) -> str:
    """Start from another detector's weights where name and shape agree; says what was and was not taken."""
    content = load(path)
    weights: Mapping[str, Tensor] = content.get("average") or content["model"]
    own = ssd.state_dict()
    fitting = {k: v for k, v in weights.items() if k in own and own[k].shape == v.shape}
    if not fitting:
        raise CheckpointError(f"no weight of {path} has the name and shape of one of this network's.")
    ssd.load_state_dict(fitting, strict=False)
    left = {
        "not in this network": sorted(weights.keys() - own.keys()),
        "of another shape": sorted(k for k in weights.keys() & own.keys() - fitting.keys()),
        "new in this network, left as they were": sorted(own.keys() - weights.keys()),
    }
    lines = [f"{len(fitting)} of {len(own)} tensors taken from {path}."]
    lines += [f"  {len(keys)} {what}: {_some(keys)}" for what, keys in left.items() if keys]
    return "\n".join(lines)


def _some(keys: list[str], most: int = 6) -> str:
    return ", ".join(keys[:most]) + (", ..." if len(keys) > most else "")
