"""Checkpoints: everything a run needs to go on as if it had not stopped, written whole or not at all."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from examples.ssd.annotations import Categories
from examples.ssd.configurations import Configuration, Recipe
from examples.ssd.errors import CheckpointError, RequestError
from examples.ssd.files import read_tensors, write_atomically
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
    """content: what `described` gives, `model` (a state_dict), and what else training needs.

    Raises:
        CheckpointError: the disk does not take it; what was there before is kept.
    """
    try:
        with write_atomically(path) as part:
            torch.save(dict(content), part)
    except (
        OSError,
        RuntimeError,
    ) as problem:  # torch's writer turns errors of the disk into RuntimeError
        raise CheckpointError(f"{path} could not be written ({first_line(problem)}).") from problem


def load(path: Path) -> dict[str, Any]:
    """The content of a checkpoint; nothing in it is executed.

    Raises:
        CheckpointError: there is none, it is cut off, or it is of something else.
    """
    try:
        content = read_tensors(path)
    except FileNotFoundError:
        raise CheckpointError(f"there is no checkpoint {path}.") from None
    except Exception as problem:  # damaged bytes fail wherever they lead: a dozen types of error
        raise CheckpointError(
            f"{path} cannot be read; it is cut off or no checkpoint ({first_line(problem)})."
        ) from problem
    if not isinstance(content, dict) or any(part not in content for part in _PARTS):
        raise CheckpointError(
            f"{path} is no checkpoint of these programs: it lacks one of {', '.join(_PARTS)}."
        )
    if type(content["format"]) is not int or content["format"] != FORMAT:
        raise CheckpointError(
            f"{path} has format {content['format']}; this version reads {FORMAT}."
        )
    if not is_state(content["model"]) or not is_state(content.get("average") or {}):
        raise CheckpointError(
            f"{path} is no checkpoint of these programs: its weights are not tensors by name."
        )
    return content


def first_line(problem: BaseException) -> str:
    """Of its message, for a sentence about a file."""
    return (
        str(problem).strip().splitlines()[0][:120]
        if str(problem).strip()
        else type(problem).__name__
    )


def is_state(state: object) -> bool:
    """Whether it is what `state_dict` gives: plain tensors by name."""
    return isinstance(state, Mapping) and all(
        isinstance(k, str) and _is_plain(v) for k, v in state.items()
    )


def _is_plain(value: object) -> bool:
    if not isinstance(value, Tensor) or value.layout is not torch.strided:
        return False
    return not (value.is_complex() or value.is_quantized)


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
        said = "; ".join(
            f"{len(keys)} {what}, such as {keys[0]}" for what, keys in faults.items() if keys
        )
        raise CheckpointError(f"the weights of {where} are not those of this network: {said}.")


# ---- what the weights are of


def configuration_in(content: Mapping[str, Any]) -> Configuration:
    fields = content["configuration"]
    try:
        row = Configuration(**{**fields, "recipe": Recipe(**fields["recipe"])})
    except (TypeError, KeyError, RequestError) as problem:
        raise CheckpointError(
            f"the checkpoint's configuration is not understood: {problem}"
        ) from problem
    for part in (row, row.recipe):
        for name, kind in get_type_hints(type(part)).items():
            if not _is_a(getattr(part, name), kind):
                raise CheckpointError(
                    f"the checkpoint's configuration is not understood: {name} is no {kind}."
                )
    return row


def _is_a(value: object, kind: Any) -> bool:
    """Whether a value has an annotated type, of the kinds that a configuration's fields have."""
    inner = get_args(kind)
    if get_origin(kind) is Literal:
        return value in inner
    if get_origin(kind) in (Union, UnionType):
        return any(_is_a(value, k) for k in inner)
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(_is_a(v, inner[0]) for v in value)
    return type(value) is kind or (kind is float and type(value) is int)


def categories_in(content: Mapping[str, Any]) -> Categories:
    stored = content["categories"]
    if isinstance(stored, dict) and stored.keys() == {"ids", "names"}:
        ids, names = stored["ids"], stored["names"]
        if _is_a(ids, tuple[int, ...]) and _is_a(names, tuple[str, ...]) and len(ids) == len(names):
            return Categories(ids, names)
    raise CheckpointError(
        "the checkpoint's categories are not understood: ids and names that belong together."
    )
