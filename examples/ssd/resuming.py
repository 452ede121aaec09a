"""What of a run may change between a stop and --resume, and what may not."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from examples.ssd import checkpoint
from examples.ssd.annotations import Annotations, Categories
from examples.ssd.configurations import Configuration, Recipe
from examples.ssd.errors import CheckpointError, RequestError
from examples.ssd.options import Options
from examples.ssd.processes import Processes

Facts = Mapping[str, int | float | str | None]
# --lr: the way out where the loss is no number. The others change sums by rounding, and more processes what each one's
# batch norms see; a machine that is gone must not end the run.
MAY_CHANGE = frozenset({"--lr", "--channels-last", "--compile", "--device", "processes"})


def facts(recipe: Recipe, options: Options, annotations: Annotations, everyone: Processes) -> Facts:
    """All that decides how a run goes on from its weights, by option."""
    return {
        "--epochs": recipe.epochs,
        "--batch": recipe.batch,
        "--lr": recipe.learning_rate,
        "--warmup": recipe.warmup,
        "--weight-decay": options.weight_decay,
        "--seed": options.seed,
        "--no-augment": not options.augment,
        "--amp": options.amp,
        "--ema": options.ema,
        "--freeze-norms": options.freeze_norms,
        "--sync-norms": options.sync_norms,
        "--channels-last": options.channels_last,
        "--compile": options.compile,
        "--device": everyone.device.type,
        "processes": everyone.share.world,
        "images": f"{len(annotations.records)}, digest {digest(annotations)}",
    }


def digest(annotations: Annotations) -> str:
    """Of the images in their order and of their objects, wherever the folder is."""
    told = hashlib.sha256()
    for r in annotations.records:
        told.update(repr((r.id, r.path.name, r.width, r.height, r.boxes, r.labels)).encode())
    return told.hexdigest()[:12]


def check_alike(of_processes: Sequence[Facts]) -> None:
    """Say where processes of one run were started with different options or see different images."""
    for rank, other in enumerate(of_processes):
        if other != of_processes[0]:
            raise RequestError(
                f"process {rank} is of another run than the first: {_told(of_processes[0], other)}."
            )


def differences(
    path: Path, content: Mapping[str, Any], row: Configuration, categories: Categories, run: Facts
) -> str | None:
    """What has changed since a checkpoint was written and may, for people; None: nothing.

    Raises:
        CheckpointError: it holds no run, or of another detector, or of a run that would go on otherwise.
    """
    if any(
        part not in content for part in ("average", "optimiser", "scaler", "epoch", "step", "run")
    ):
        raise CheckpointError(f"{path} has weights only; start a new run from it with --init-from.")
    if not all(type(content[k]) is int and content[k] >= 0 for k in ("epoch", "step")):
        raise CheckpointError(
            f"{path} does not say how far its run went: epoch {content['epoch']!r}."
        )
    way_out = f"resume with what it was started with, or start a new run from its weights: --init-from {path}"
    another = _another_detector(content, row, categories)
    if another:
        raise CheckpointError(f"{path} is of {another}; {way_out}.")
    then = content["run"]
    plain = isinstance(then, dict) and all(
        isinstance(v, int | float | str | None) for v in then.values()
    )
    if not plain or then.keys() != run.keys():
        raise CheckpointError(
            f"{path} does not say how its run was started; start a new one: --init-from {path}."
        )
    refused = _told({k: v for k, v in then.items() if k not in MAY_CHANGE}, run)
    if refused:
        raise CheckpointError(f"{path} is of a run with {refused}; {way_out}.")
    return _told(then, run) or None


def _another_detector(
    content: Mapping[str, Any], row: Configuration, categories: Categories
) -> str | None:
    known, before = checkpoint.categories_in(content), checkpoint.configuration_in(content)
    if known != categories:
        return f"{known.classes} classes with the background, the data has {categories.classes}, or others"
    return None if before == row else f"another detector, with {_told(asdict(before), asdict(row))}"


def _told(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What of `before` is otherwise now, with both values."""
    return ", ".join(
        f"{k} {_word(v)} (now {_word(now[k])})" for k, v in before.items() if v != now[k]
    )


def _word(value: object) -> str:
    if value is None or isinstance(value, bool):
        return "on" if value else "off"
    return str(value)
