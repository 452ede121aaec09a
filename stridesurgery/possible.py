"""Which surgeries a model allows."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain, combinations

from stridesurgery.errors import RequestError, SurgeryError
from stridesurgery.operate import operate
from stridesurgery.plan import Plan, plan
from stridesurgery.report import Analysis
from stridesurgery.surgery import AXES, Surgery


def possible(analysis: Analysis, kinds: Sequence[Surgery]) -> tuple[tuple[Plan, ...], tuple[str, ...]]:
    """Plans for every set of transitions that can be eliminated, and why others cannot.

    Each transition is tried by itself on the weightless model, and all of them together; only where that is refused is
    every set tried.

    Args:
        analysis: of a weightless model.
        kinds: surgeries of no layers, which say the options.
    """
    plans: list[Plan] = []
    refused: list[str] = []
    for kind in kinds:
        for stride in _strides(analysis, kind.axis):
            found = _one_by_one(analysis, replace(kind, stride=stride), refused)
            sets = list(chain.from_iterable(combinations(found, n) for n in range(1, len(found) + 1)))
            together = [_of(replace(kind, stride=stride), layers) for layers in sets]
            if len(found) > 1 and _refusal(analysis, together[-1]) is not None:
                together = [surgery for surgery in together if _refusal(analysis, surgery) is None]
            plans += [plan(analysis, surgery) for surgery in together]
    return tuple(plans), tuple(dict.fromkeys(refused))


def _one_by_one(analysis: Analysis, kind: Surgery, refused: list[str]) -> list[int]:
    """One layer of each transition that can be eliminated by itself; why others cannot is added to `refused`."""
    found = []
    for layer in _layers(analysis):
        surgery = _of(kind, (layer,))
        try:
            plan(analysis, surgery)
        except RequestError:
            continue  # there is no such stride to eliminate
        except SurgeryError as problem:
            refused.append(str(problem))
            continue
        why = _refusal(analysis, surgery)
        if why is None:
            found.append(layer)
        else:
            refused.append(why)
    return found


def _layers(analysis: Analysis) -> list[int]:
    """One layer for each transition, or each set of transitions that change together."""
    groups: dict[tuple[int, ...], int] = {}
    numbers = range(len(analysis.layers))
    for level in range(len(analysis.levels)):
        members = [i for i in numbers if level in analysis.transitions_of(i)]
        if members:
            layer = min(members, key=lambda i: (len(analysis.transitions_of(i)), i))
            groups.setdefault(analysis.transitions_of(layer), layer)
    return list(groups.values())


def _strides(analysis: Analysis, axis: str) -> Iterator[int]:
    """What can remain of a stride somewhere in the network."""
    factors = [f for level in analysis.levels for f, wanted in zip(level.factor, AXES[axis], strict=True) if wanted]
    largest = max(factors, default=1)
    yield from (s for s in range(1, int(largest)) if any(f > s and f % s == 0 for f in factors))


def _of(kind: Surgery, layers: Sequence[int]) -> Surgery:
    return replace(kind, S=len(layers), L=tuple(layers))


def _refusal(analysis: Analysis, surgery: Surgery) -> str | None:
    """Why `eliminate` would refuse a surgery; None: it would not."""
    try:
        operate(analysis.traced.model, surgery, analysis=analysis)
    except SurgeryError as problem:
        return str(problem)
    return None
