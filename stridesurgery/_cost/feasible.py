"""List the surgeries that a model allows."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain, combinations

from stridesurgery._analysis import Analysis
from stridesurgery._rewrite import Plan, operate, plan
from stridesurgery.errors import RequestError, SurgeryError
from stridesurgery.surgery import AXES, Axis, Surgery


def feasible_plans(
    analysis: Analysis, kinds: Sequence[Surgery]
) -> tuple[tuple[Plan, ...], tuple[str, ...]]:
    """Return a plan for every set of transitions that can be eliminated, and why others cannot.

    Each transition is tried alone on the weightless model. Those that can change alone are then
    tried together. Only if this is refused, each of their larger sets is tried too. A set is also
    tried if one of its transitions cannot change alone because it shares a module with another.

    Args:
        analysis: analysis of a weightless model.
        kinds: surgeries without layers, which give the options.
    """
    plans: list[Plan] = []
    refused: list[str] = []
    for kind in kinds:
        for stride in _strides(analysis, kind.axis):
            whole = replace(kind, stride=stride)
            alone = _one_by_one(analysis, whole, refused)
            jointly = [
                layer
                for layer in _layers(analysis)
                if layer not in alone and _shares(analysis, layer)
            ]
            surgeries = [_of(whole, layers) for layers in _sets(sorted([*alone, *jointly]))]
            safe = len(alone) < 2 or _refusal(analysis, _of(whole, alone)) is None
            together = [
                s for s in surgeries if _is_safe(s, alone, safe) or _refusal(analysis, s) is None
            ]
            plans += [plan(analysis, surgery) for surgery in together]
    return tuple(plans), tuple(dict.fromkeys(refused))


def _sets(layers: Sequence[int]) -> Iterator[tuple[int, ...]]:
    return chain.from_iterable(combinations(layers, n) for n in range(1, len(layers) + 1))


def _is_safe(surgery: Surgery, alone: Sequence[int], together: bool) -> bool:
    """Return True if a set is known to be possible.

    All its transitions must be able to change alone. It must also be a single transition, or all
    transitions that can change alone must be able to change together.
    """
    return set(surgery.L) <= set(alone) and (together or surgery.S == 1)


def _shares(analysis: Analysis, layer: int) -> bool:
    """Return True if a module of the layer's transition is also called at another transition."""
    own = {
        analysis.spatial_ops[n].node.target
        for i in analysis.transitions_of(layer)
        for n in analysis.transitions[i].spatial_ops
    }
    befores = [
        s.before.reduction
        for s in analysis.spatial_ops
        if s.node.op == "call_module" and s.node.target in own
    ]
    return len(set(befores)) > 1


def _one_by_one(analysis: Analysis, kind: Surgery, refused: list[str]) -> list[int]:
    """Return one layer of each transition that can be eliminated alone.

    The reasons why others cannot are added to `refused`.
    """
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
    """Return one layer for each transition, or for each set of transitions that change together."""
    groups: dict[tuple[int, ...], int] = {}
    numbers = range(len(analysis.layers))
    for level in range(len(analysis.transitions)):
        members = [i for i in numbers if level in analysis.transitions_of(i)]
        if members:
            layer = min(members, key=lambda i: (len(analysis.transitions_of(i)), i))
            groups.setdefault(analysis.transitions_of(layer), layer)
    return list(groups.values())


def _strides(analysis: Analysis, axis: Axis) -> Iterator[int]:
    """Return the strides that can remain somewhere in the network."""
    factors = [
        f
        for level in analysis.transitions
        for f, wanted in zip(level.factor, AXES[axis], strict=True)
        if wanted
    ]
    largest = max(factors, default=1)
    yield from (s for s in range(1, int(largest)) if any(f > s and f % s == 0 for f in factors))


def _of(kind: Surgery, layers: Sequence[int]) -> Surgery:
    return replace(kind, S=len(layers), L=tuple(layers))


def _refusal(analysis: Analysis, surgery: Surgery) -> str | None:
    """Return the reason why `eliminate` would refuse a surgery, or None if it would not."""
    try:
        operate(analysis.recording.model, surgery, analysis=analysis)
    except SurgeryError as problem:
        return str(problem)
    return None
