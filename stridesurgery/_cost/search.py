"""Search for surgeries that give the wanted maps within a bound on cost."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn

from stridesurgery._analysis import Analysis, Part, analyse, part_of
from stridesurgery._cost.feasible import feasible_plans
from stridesurgery._cost.forecast import CostEstimate, Forecast, estimates
from stridesurgery._cost.latency import in_turn, inference
from stridesurgery._cost.search_result import Budget, Candidate, Search, is_positive
from stridesurgery._features import Tap, TapName, find_taps
from stridesurgery._hw import HW, hw_numbers
from stridesurgery._rewrite import Plan, eliminate
from stridesurgery._tables import METRICS, in_sight
from stridesurgery._trace import copy_to_meta, one_image
from stridesurgery.errors import RequestError
from stridesurgery.surgery import AXES, Axis, Options, Positions, Surgery

ROUNDS = 7  # of timing, if seconds are bounded


def search(
    model: nn.Module,
    budget: float | Budget,
    *,
    taps: Sequence[TapName] | TapName | None = None,
    reduction: float | Sequence[float] | None = None,
    input_size: int | HW[int] | None = None,
    axes: Axis | Sequence[Axis] = "hw",
    dilate: bool = False,
    positions: Positions = Options.positions,
    at: str | None = None,
) -> Search:
    """Find the surgeries of a model that give the wanted maps within a budget.

    Every set of transitions is tried, with every stride that can remain. Costs equal `cost` of the
    network that `eliminate` builds. They are added up from the calls of the network, each metered
    once without being run. Only if the forward code compares sizes (Swin, MobileViT) is each
    network built. This takes minutes instead of seconds.

    A surgery is beaten by another one that is at least as good in all objectives and better in one.
    The objectives are the reductions at the taps, compute, memory if it is bounded, the position of
    the first eliminated transition (earlier is better, as for the best surgeries of the paper), and
    keeping the pretrained features (`dilate`).

    Args:
        model: a torchvision or timm model, or any module whose forward takes an image batch
            (N, C, H, W).
        budget: the upper bounds, or a number: the compute allowed, as a multiple of the untouched
            model's.
        taps: the maps that should become finer, as for `features`; None: the last of all maps.
        reduction: the most input pixels per cell at the taps, one number or one for each tap; None:
            any.
        input_size: pixels, one number or (h, w); by default what the model was made for, else 224.
        axes: "hw", "h", "w", or several of them.
        dilate: also try surgeries that keep the pretrained features.
        positions: what becomes of tables of positions, as for `eliminate`.
        at: the submodule to search, as for `eliminate`; a detector's is known.

    Returns:
        The surgeries within the budget, and the front: those that no other one beats. The order is
        by the reduction at the last tap, the finest last. Among equals the earliest elimination
        comes first. Each transition is tried alone, and all together, in the same way as by
        `eliminate`. Those that it refuses are listed. If `seconds` is bounded, the networks of the
        front are built and timed.

    Raises:
        RequestError: a budget, tap, axis or reduction does not fit.
        ModelError: the model is not a plain module: wrapped, compiled, scripted.
        TraceError: the forward pass cannot be recorded at this size.

    Example:
        >>> import timm, stridesurgery as ss
        >>> found = ss.search(timm.create_model("resnet18"), 3, taps="layer4", input_size=64)
        >>> [(candidate.name, candidate.reductions) for candidate in found]
        [('S1L11', ((16, 16),)), ('S1L16', ((16, 16),))]
    """
    part = part_of(model, at, input_size)
    if part.at:
        found = search(
            part.module,
            budget,
            taps=taps,
            reduction=reduction,
            input_size=part.size,
            axes=axes,
            dilate=dilate,
            positions=positions,
        )
        return replace(
            found,
            candidates=tuple(_outside(c, part) for c in found.candidates),
            front=tuple(_outside(c, part) for c in found.front),
            closest=found.closest and _outside(found.closest, part),
        )
    bounds = budget if isinstance(budget, Budget) else None
    analysis = analyse(copy_to_meta(model), input_size)
    tapped = find_taps(analysis, taps) if taps is not None else find_taps(analysis, None)[-1:]
    wanted = _wanted(reduction, len(tapped))
    forecast = Forecast(analysis)
    if bounds is None and not forecast.original.macs:
        raise RequestError(
            "the model has no multiply-accumulates to take a multiple of: give a Budget of bytes"
        )
    bounds = bounds or Budget(macs=_times(budget) * forecast.original.macs)
    if bounds.peak_bytes is not None and forecast.original.peak_bytes is None:
        raise RequestError(
            "peak_bytes cannot be told for this model without building each surgery; leave it out"
        )
    blank = Surgery(0, (), input_size=analysis.recording.size, positions=positions)
    kinds = [
        replace(blank, axis=axis, dilate=kept)
        for kept in ((False, True) if dilate else (False,))
        for axis in _axes(axes)
    ]
    plans, refused = feasible_plans(analysis, kinds)
    counted = in_sight(estimates(forecast, plans), len(plans), "surgeries")
    everything = [_candidate(p, e, tapped, analysis) for p, e in counted]
    within = sorted(
        (c for c in everything if _fits(c, bounds) and _fine_enough(c, wanted)), key=_order
    )
    front = _unbeaten(within, bounds)
    if bounds.seconds is not None:
        front = _timed(model, front, bounds.seconds, one_image(analysis.recording).shape)
    original = _candidate(Plan(blank, (), ()), forecast.original, tapped, analysis)
    name = type(model).__name__
    return Search(
        name,
        analysis.recording.size,
        tuple(t.name for t in tapped),
        original,
        tuple(within),
        front,
        refused,
        None if front else min(everything, key=lambda c: _distance(c, wanted), default=None),
    )


def _outside(candidate: Candidate, part: Part) -> Candidate:
    return replace(candidate, surgery=part.outside(candidate.surgery))


def _times(budget: Any) -> float:
    if not is_positive(budget):
        raise RequestError(
            "budget is a Budget, or how many times the model's compute may be spent, got "
            f"{budget!r}"
        )
    return float(budget)


def _wanted(reduction: Any, taps: int) -> tuple[float, ...]:
    """Return the most input pixels per cell at each tap."""
    many = list(reduction) if isinstance(reduction, Sequence) else [reduction] * taps
    if len(many) != taps:
        raise RequestError(f"reduction names {len(many)} maps, but there are {taps} taps")
    if not all(r is None or is_positive(r) for r in many):
        raise RequestError(
            f"a reduction is a positive number of pixels per cell, got {reduction!r}"
        )
    return tuple(math.inf if r is None else r for r in many)


def _axes(axes: Axis | Sequence[Axis]) -> tuple[Axis, ...]:
    alone = isinstance(axes, str) or not isinstance(axes, Sequence)
    many: tuple[Any, ...] = (axes,) if alone else tuple(axes)
    if not many or any(not isinstance(axis, str) or axis not in AXES for axis in many):
        raise RequestError(f"axes are 'hw', 'h' and 'w', got {axes!r}")
    return tuple(dict.fromkeys(many))


def _candidate(
    plan: Plan, spent: CostEstimate, taps: Sequence[Tap], analysis: Analysis
) -> Candidate:
    reductions = tuple(hw_numbers(plan.reduction(tap.place.reassembled.reduction)) for tap in taps)
    eliminated = [t for layer in plan.surgery.L for t in analysis.transitions_of(layer)]
    first = min(eliminated, default=len(analysis.transitions))
    return Candidate(
        plan.surgery, reductions, spent.macs, spent.activation_bytes, spent.peak_bytes, first
    )


def _fits(candidate: Candidate, bounds: Budget) -> bool:
    pairs = ((metric.of(candidate), metric.of(bounds)) for metric in METRICS)
    return all(bound is None or (value is not None and value <= bound) for value, bound in pairs)


def _fine_enough(candidate: Candidate, wanted: Sequence[float]) -> bool:
    return all(max(sides) <= most for sides, most in zip(candidate.reductions, wanted, strict=True))


def _distance(candidate: Candidate, wanted: Sequence[float]) -> tuple[float, int]:
    """Return how far a surgery is from the wanted reductions, and its compute."""
    sides = zip(candidate.reductions, wanted, strict=True)
    return sum(max(max(reduction) / most, 1) for reduction, most in sides), candidate.macs


def _order(candidate: Candidate) -> Any:
    """Return the sort key: the finest map last, among equals the earliest elimination first."""
    finest = tuple(-rows * columns for rows, columns in reversed(candidate.reductions[-1:]))
    return finest, candidate.first, candidate.surgery.L, candidate.macs


def _unbeaten(candidates: Sequence[Candidate], bounds: Budget) -> tuple[Candidate, ...]:
    """Return the candidates that no other one beats.

    One beats another if it is at least as good in all objectives and better in one.
    """
    if not candidates:
        return ()
    merits = np.array([_merits(candidate, bounds) for candidate in candidates], dtype=float)
    beaten = [bool(((merits <= own).all(1) & (merits < own).any(1)).any()) for own in merits]
    return tuple(c for c, is_beaten in zip(candidates, beaten, strict=True) if not is_beaten)


def _merits(candidate: Candidate, bounds: Budget) -> tuple[float, ...]:
    """Objectives to minimise."""
    sides = [side for reduction in candidate.reductions for side in reduction]
    bounded = [metric.of(candidate) or 0 for metric in METRICS[1:] if metric.of(bounds) is not None]
    return (*sides, candidate.macs, *bounded, candidate.first, not candidate.surgery.dilate)


def _timed(
    model: nn.Module, front: Sequence[Candidate], most: float, image: Sequence[int]
) -> tuple[Candidate, ...]:
    """Return the candidates that run within `most` seconds, with their measured latency."""
    timings = (in_turn([inference(eliminate(model, c.surgery), image)], ROUNDS)[0] for c in front)
    timed = (replace(c, latency=timing) for c, timing in zip(front, timings, strict=True))
    return tuple(c for c in timed if c.latency is not None and c.latency.median <= most)
