"""Compare outputs, modes and records of an operated model with those of the original."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from stridesurgery._rewrite import Plan
from stridesurgery._trace import tensors_returned
from stridesurgery._verify.claims import check_claims, check_intermediates
from stridesurgery._verify.runs import (
    OutputCheck,
    Run,
    check_buffers,
    differs,
    first_difference,
    first_line,
    is_repeatable,
    relative_error,
    run,
    run_operated,
    tolerance,
)
from stridesurgery.errors import GridError, SurgeryError


def check_outputs(
    original: nn.Module, fine: nn.Module, operated: nn.Module, image: Tensor, planned: Plan
) -> tuple[OutputCheck, ...]:
    """Run all three models in eval mode on the same images and compare all that they return.

    Args:
        original: the model before the surgery.
        fine: the model that `eliminate` returns for it.
        operated: the model to check.
        image: (N, C, h, w), with more than one image.
        planned: the plan of the surgery on the original.

    Raises:
        SurgeryError: an output differs; the message names it and the first module whose own
            output differs.
        GridError: an output is off the grid.
    """
    try:
        before = run(original, image)
    except Exception as problem:  # until now it was only recorded, without numbers
        return (
            OutputCheck(
                "output", f"not compared: the original itself raises {first_line(problem)}", None
            ),
        )
    made = run(fine, image)
    after = run_operated(operated, image)
    _check_structure(made.value, after.value, "what eliminate gives")
    _check_structure(before.value, after.value, "the original")
    check_buffers(after, before)
    checks = list(_compare(before.value, made.value, after.value, image, planned, fine, operated))
    checks += [
        OutputCheck(f"buffer {name}", "the original changes it in eval mode, too", None)
        for name in after.changed
    ]
    checks += check_claims(operated, after.value, image)
    checks += _check_one_image(original, fine, operated, image[:1], planned)
    checks += _check_training(fine, operated, image)
    return (*checks, *check_intermediates(original, fine, operated, image, planned))


def _check_structure(wanted: Any, found: Any, whose: str, name: str = "output") -> None:
    """Compare the types, numbers and names of the returned values.

    A graph returns mappings of any class as dicts, so all mappings count as one type.
    """
    kinds = [dict if isinstance(v, Mapping) else type(v) for v in (wanted, found)]
    if kinds[0] is not kinds[1]:
        raise SurgeryError(f"{name} is a {kinds[1].__name__}, and a {kinds[0].__name__} in {whose}")
    if isinstance(wanted, Mapping):
        if list(wanted) != list(found):
            raise SurgeryError(f"{name} has the keys {list(found)}, and {list(wanted)} in {whose}")
        pairs = {f"{name}[{key!r}]": (part, found[key]) for key, part in wanted.items()}
    elif isinstance(wanted, (list, tuple)):
        if len(wanted) != len(found):
            raise SurgeryError(f"{name} has {len(found)} parts, and {len(wanted)} in {whose}")
        pairs = {f"{name}[{i}]": pair for i, pair in enumerate(zip(wanted, found, strict=True))}
    elif isinstance(wanted, (int, float, str)):
        if wanted != found and whose != "the original":  # sizes may differ from the original's
            raise SurgeryError(f"{name} is {found!r}, and {wanted!r} in {whose}")
        return
    else:
        places = [list(tensors_returned(v, name)) for v in (wanted, found)]
        if places[0] != places[1]:
            raise SurgeryError(
                f"{name} holds tensors at {places[1]}, and at {places[0]} in {whose}"
            )
        return
    for place, (part, other) in pairs.items():
        _check_structure(part, other, whose, place)


def _compare(
    before: Any,
    made: Any,
    after: Any,
    image: Tensor,
    planned: Plan,
    fine: nn.Module,
    operated: nn.Module,
) -> Iterator[OutputCheck]:
    """Compare every returned tensor with that of `eliminate`'s model.

    It is also compared with the original's tensor, as far as the surgery allows.
    """
    old, new = tensors_returned(before), tensors_returned(made)
    for name, value in tensors_returned(after).items():
        error = relative_error(value, new[name])
        if value.dtype != new[name].dtype:
            raise SurgeryError(
                f"{name} is {value.dtype}, and {new[name].dtype} in what eliminate gives"
            )
        if error is None:
            raise GridError(
                f"{name} is {tuple(value.shape)}, and {tuple(new[name].shape)} in what eliminate "
                f"gives{first_difference(fine, operated, image)}"
            )
        if not error <= tolerance(value):
            if not is_repeatable(fine, image):
                yield OutputCheck(
                    name, "not compared: the model draws random numbers in eval mode", None
                )
                continue
            where = first_difference(fine, operated, image)
            raise SurgeryError(
                f"{name} differs from what eliminate gives by {error:.2g} (relative){where}"
            )
        yield _beside_original(name, old[name], value, error, planned)


def _beside_original(
    name: str, old: Tensor, value: Tensor, error: float, planned: Plan
) -> OutputCheck:
    """Compare a returned tensor with the original's.

    The shape is always compared, the values only if the surgery keeps the features.
    """
    if value.dim() != old.dim():
        raise GridError(f"{name} is {tuple(value.shape)}, and the original's is {tuple(old.shape)}")
    what = f"equals what eliminate gives, largest relative difference {error:.1g}"
    if not planned.surgery.dilate:
        return OutputCheck(
            name,
            f"{tuple(value.shape)} {what}; of the original's values only the grid is compared",
            error,
        )
    steps = [-(-n // was) if was else 1 for n, was in zip(value.shape, old.shape, strict=True)]
    at = f"[{', '.join(f'::{k}' for k in steps)}]" if max(steps, default=1) > 1 else ""
    gap = relative_error(value[tuple(slice(None, None, k) for k in steps)], old)
    if gap is None or not gap <= tolerance(value, 1e-4):
        raise SurgeryError(f"{name}{at} is not the original's: difference {gap} (relative)")
    return OutputCheck(
        name,
        f"{at} equals the original's, largest relative difference {gap:.1g}".strip(),
        max(error, gap),
    )


def _compare_again(
    fine: nn.Module, operated: nn.Module, image: Tensor, when: str, training: bool = False
) -> tuple[Run, Run] | OutputCheck:
    """Run both in another way and compare all that they return, and their buffers.

    Returns:
        Both runs, or the reason why they cannot be compared.
    """
    try:
        made = run(fine, image, training=training)
    except Exception as problem:
        return OutputCheck(when, f"not compared: that raises {first_line(problem)}", None)
    found = run_operated(operated, image, when, training)
    _check_structure(made.value, found.value, f"what eliminate gives {when}")
    wanted, values = ({**tensors_returned(r.value), **r.buffers} for r in (made, found))
    odd = [
        name for name, value in wanted.items() if name not in values or differs(values[name], value)
    ]
    if not odd:
        return made, found
    again = run(fine, image, training=training)
    same = all(
        not differs(value, wanted[name]) for name, value in tensors_returned(again.value).items()
    )
    if same and is_repeatable(fine, image):
        raise SurgeryError(f"{when} {odd[0]} differs from what eliminate gives")
    return OutputCheck(when, "not compared: the model draws random numbers", None)


def _check_one_image(
    original: nn.Module, fine: nn.Module, operated: nn.Module, image: Tensor, planned: Plan
) -> Iterator[OutputCheck]:
    """Compare the answers for one image alone, with the original's too if features are kept."""
    runs = _compare_again(fine, operated, image, "for one image alone")
    if isinstance(runs, OutputCheck):
        yield runs
    elif planned.surgery.dilate:
        old = tensors_returned(run(original, image).value)
        for name, value in tensors_returned(runs[1].value).items():
            _beside_original(f"for one image alone {name}", old[name], value, 0.0, planned)


def _check_training(fine: nn.Module, operated: nn.Module, image: Tensor) -> Iterator[OutputCheck]:
    """Compare outputs and buffers in train mode, and check that gradients reach the weights."""
    runs = _compare_again(fine, operated, image, "in train mode", training=True)
    if isinstance(runs, OutputCheck):
        yield runs
        return
    wanted, values = (tensors_returned(r.value) for r in runs)
    learn = [
        {name for name, p in model.named_parameters() if p.requires_grad}
        for model in (fine, operated)
    ]
    cut = [
        name
        for name, value in wanted.items()
        if value.requires_grad and not values[name].requires_grad
    ]
    if learn[0] == learn[1] and cut:
        raise SurgeryError(f"{cut[0]} is detached: no gradient of it reaches the weights")
