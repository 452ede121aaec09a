"""Runs copies of models on small inputs, and compares what they give."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stridesurgery._trace import copied_model, tensors_returned
from stridesurgery._verify.operators import difference
from stridesurgery.errors import SurgeryError


@dataclass(frozen=True)
class OutputCheck:
    """The result for one tensor that the models return."""

    name: str  #: such as `output['maps'][0]`
    what: str  #: the finding, in words
    error: float | None  #: largest relative difference; None if nothing was compared


@dataclass(frozen=True)
class Run:
    value: Any
    changed: list[str]  # names of the buffers that the run has changed
    buffers: dict[str, Tensor]


def run(model: nn.Module, image: Tensor, seed: int = 0, training: bool = False) -> Run:
    """Run a copy of a model in eval mode, or in train mode with gradients."""
    copy = copied_model(model, apart=True).train(training)
    buffers = {name: value.clone() for name, value in copy.named_buffers()}
    with torch.set_grad_enabled(training), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        value = copy(image.clone())
    after = dict(copy.named_buffers())
    changed = [
        name for name, old in buffers.items() if name in after and not _same(old, after[name])
    ]
    return Run(value, changed, after)


def run_operated(model: nn.Module, image: Tensor, when: str = "", training: bool = False) -> Run:
    """Run a copy of an operated model, as `run` does.

    Raises:
        SurgeryError: the model raises an exception; `when` says in which kind of run.
    """
    try:
        return run(model, image, training=training)
    except SurgeryError:
        raise
    except Exception as problem:
        place = f"{when} the" if when else "the"
        raise SurgeryError(f"{place} operated model raises {first_line(problem)}") from problem


def check_buffers(after: Run, before: Run) -> None:
    """Check that an operated model changes no buffer in eval mode that the original keeps.

    Raises:
        SurgeryError: a buffer has changed.
    """
    moved = [name for name in after.changed if name not in before.changed]
    if moved:
        raise SurgeryError(f"running the operated model in eval mode changes its buffer {moved[0]}")


def _same(a: Tensor, b: Tensor) -> bool:
    return relative_error(a, b) == 0.0


def relative_error(found: Tensor, wanted: Tensor) -> float | None:
    """Return the largest relative difference, or None if the shapes differ."""
    if found.shape != wanted.shape:
        return None
    if not found.numel():
        return 0.0
    if not found.is_floating_point():
        return 0.0 if torch.equal(found, wanted) else float("inf")
    if not torch.equal(found.isnan(), wanted.isnan()):
        return float("inf")
    return difference(found.nan_to_num(), wanted.nan_to_num())


def tolerance(value: Tensor, alike: float = 1e-5) -> float:
    return alike if value.dtype in (torch.float32, torch.float64) else 5e-2


def is_repeatable(model: nn.Module, image: Tensor) -> bool:
    runs = [tensors_returned(run(model, image, seed).value) for seed in (0, 1)]
    return all(relative_error(value, runs[1][name]) == 0.0 for name, value in runs[0].items())


def first_difference(fine: nn.Module, operated: nn.Module, image: Tensor) -> str:
    """Name the first module whose output differs, among those that both models run."""
    wanted, found = (_calls(model, image) for model in (fine, operated))
    for key, values in wanted.items():
        pairs = zip(values, found.get(key, values), strict=False)
        if any(differs(value, other) for value, other in pairs):
            return f"; the first module whose output differs is {key[0] or 'the model itself'}"
    return ""


def differs(value: Tensor, other: Tensor) -> bool:
    error = relative_error(value, other)
    return error is None or not error <= tolerance(value)


def _calls(model: nn.Module, image: Tensor) -> dict[tuple[str, int], list[Tensor]]:
    """Return the tensors that every module returns, in the order in which the modules end."""
    copy, found = copied_model(model, apart=True).eval(), dict[tuple[str, int], list[Tensor]]()

    def note(path: str) -> Any:
        def hook(module: nn.Module, args: Any, result: Any) -> None:
            count = sum(key[0] == path for key in found)
            found[path, count] = [t.clone() for t in tensors_returned(result).values()]

        return hook

    for path, module in copy.named_modules():
        module.register_forward_hook(note(path))
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        copy(image.clone())
    return found


def first_line(problem: Exception) -> str:
    return f"{type(problem).__name__}: {str(problem).partition(chr(10))[0]}"
