"""Plans which operators of a model a surgery changes, and into what. Nothing is edited here."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from torch import nn

from stridesurgery._analysis import Analysis, GridInfo, SpatialOp, beyond
from stridesurgery._hw import HW, hw_text
from stridesurgery._node import info
from stridesurgery._rewrite.atrous import reading_whole_maps
from stridesurgery._rewrite.request import layer_number, listed
from stridesurgery._trace import Recording
from stridesurgery.errors import OperatorError, RequestError
from stridesurgery.ops import Operator, coarsened, dilated, refined
from stridesurgery.surgery import AXES, Surgery


@dataclass(frozen=True)
class Change:
    """One operator of the model and what it becomes."""

    site: SpatialOp
    operator: Operator


@dataclass(frozen=True)
class PlannedTransition:
    """One step of the chain of reductions that is eliminated, or takes eliminated strides on."""

    before: HW[Fraction]  # maps up to this reduction keep their grid
    # k: all later maps grow by this, (rows, columns); below 1 where strides are restored
    by: HW[Fraction]


@dataclass(frozen=True)
class Plan:
    """The changes that a surgery makes to one model."""

    surgery: Surgery
    transitions: tuple[PlannedTransition, ...]
    changes: tuple[Change, ...]
    atrous: bool = False  # dilated by dilated convolutions, not by phases
    samples: bool = False  # what reads whole maps is given the original's cells, in a graph

    @property
    def phases(self) -> bool:
        """Return True if finer maps run as phases in the batch."""
        return self.surgery.dilate and not self.atrous

    def is_beyond(self, place: GridInfo) -> bool:
        """Return True if a value comes after the first planned transition."""
        return beyond(place.reduction, self.transitions[0].before)

    def reduction(self, old: HW[Fraction]) -> HW[Fraction]:
        """f: the reduction that maps of an old reduction have afterwards."""
        rows, columns = old
        for transition in self.transitions:
            if not (old[0] <= transition.before[0] and old[1] <= transition.before[1]):
                rows, columns = rows / transition.by[0], columns / transition.by[1]
        return rows, columns


@dataclass(frozen=True)
class Draft:
    """An operated model without weights, and what it computes."""

    model: nn.Module
    # by whether it trains; of an edited module that of eval mode alone
    recordings: dict[bool, Recording]


def plan(analysis: Analysis, surgery: Surgery) -> Plan:
    """Plan which operators of a model a surgery changes, and into what.

    Raises:
        RequestError: a layer that does not exist or has no stride, a remaining stride that does not
            fit.
        OperatorError: an operator that would have to change and is not understood.
    """
    groups = {analysis.transitions_of(layer_number(analysis, layer)) for layer in surgery.L}
    if surgery.S != len(groups) or not groups:
        raise RequestError(
            f"S is {surgery.S} but L = {listed(surgery.L)} names {len(groups)} transition(s)"
        )
    chosen = sorted({t for layer in surgery.L for t in analysis.transitions_of(layer)})
    transitions = tuple(_planned(analysis, t, surgery) for t in chosen)
    if surgery.restore_at is not None:
        transitions = (*transitions, _restoring(analysis, surgery, chosen, transitions))
    planned = Plan(surgery, transitions, ())
    if surgery.dilate:
        planned = _with_means(analysis, planned)
    try:
        return replace(planned, changes=changes_of(analysis.spatial_ops, planned))
    except OperatorError as problem:
        raise OperatorError(f"{problem}. {_possible(analysis, planned)}") from problem


def _possible(analysis: Analysis, planned: Plan) -> str:
    """Name a layer of each transition whose operators can all change."""
    found = []
    for i in range(len(analysis.transitions)):
        try:
            alone = (_planned(analysis, i, planned.surgery),)
            changes_of(analysis.spatial_ops, replace(planned, transitions=alone))
        except (OperatorError, RequestError):
            continue
        layers = range(len(analysis.layers))
        found.append(next(n for n in layers if i in analysis.transitions_of(n)))
    if found:
        return f"Layers that can be named: {listed(found)}"
    return "No transition can go: operate on a part of the model, such as its encoder"


def _with_means(analysis: Analysis, planned: Plan) -> Plan:
    """Return a plan that dilates by dilated convolutions where both modes can, else by phases."""
    modes = (analysis, analysis.training)
    reading = [reading_whole_maps(mode, planned.is_beyond) for mode in modes]
    known = [{info(site.node).key for site in mode.spatial_ops} for mode in modes]
    if None in reading or known[0] != known[1]:  # heads for training alone
        return planned
    dilated_plan = replace(planned, atrous=True, samples=any(reading))
    changes = {c.site.node: c.operator for c in changes_of(analysis.spatial_ops, dilated_plan)}
    becomes: dict[str, Operator] = {}
    for site in analysis.spatial_ops:  # a module that is called on several grids has one dilation
        operator = changes.get(site.node, site.operator)
        if site.node.op == "call_module":
            if becomes.setdefault(str(site.node.target), operator) != operator:
                return planned
    return dilated_plan


def changes_of(spatial_ops: Sequence[SpatialOp], plan: Plan) -> tuple[Change, ...]:
    """Return a plan's changes to spatial operators; train mode may run more of them."""
    changes = (_change(site, plan) for site in spatial_ops)
    return tuple(c for c in changes if c is not None)


def _planned(analysis: Analysis, transition: int, surgery: Surgery) -> PlannedTransition:
    level = analysis.transitions[transition]
    by = []
    for factor, wanted in zip(level.factor, AXES[surgery.axis], strict=True):
        k = factor / surgery.stride if wanted and factor > 1 else Fraction(1)
        if k.denominator != 1 or k < 1:
            raise RequestError(
                f"a stride of {surgery.stride} cannot remain at transition {transition}, whose "
                f"stride is {float(factor):g}: it must divide it. Strides that can remain: "
                f"{_divisors(factor)}"
            )
        by.append(int(k))
    if by == [1, 1]:
        raise RequestError(
            f"nothing to eliminate: at transition {transition} the stride along {surgery.axis!r} "
            f"is {hw_text(level.factor)} (rows x columns) and {surgery.stride} is to remain"
        )
    return PlannedTransition(level.before, (Fraction(by[0]), Fraction(by[1])))


def _restoring(
    analysis: Analysis,
    surgery: Surgery,
    chosen: Sequence[int],
    transitions: Sequence[PlannedTransition],
) -> PlannedTransition:
    """Return the transition that takes all eliminated strides on."""
    layer = layer_number(analysis, surgery.restore_at)  # type: ignore[arg-type]  # plan has seen that it is one
    first = min(analysis.transitions_of(layer))
    if first <= max(chosen):
        raise RequestError(
            f"restore_at={layer} ({analysis.layers[layer].name}) is not after the eliminated "
            f"layers {listed(surgery.L)}: name a strided layer of a later transition"
        )
    rows, columns = (
        math.prod(transition.by[axis] for transition in transitions) for axis in (0, 1)
    )
    return PlannedTransition(
        analysis.transitions[first].before, (1 / Fraction(rows), 1 / Fraction(columns))
    )


def _divisors(factor: Fraction) -> str:
    if factor.denominator != 1:
        return "none"
    return listed([d for d in range(1, int(factor)) if factor % d == 0])


def _change(site: SpatialOp, plan: Plan) -> Change | None:
    old, operator = (site.before.reduction, site.after.reduction), site.operator
    new = plan.reduction(old[0]), plan.reduction(old[1])
    was = [b / a for a, b in zip(*old, strict=True)]
    now = [b / a for a, b in zip(*new, strict=True)]
    if operator.kind == "adaptive" or site.before.pooled:
        return None
    if plan.atrous:
        rows, columns = (int(a / b) for a, b in zip(old[0], new[0], strict=True))
        operator = dilated(operator, (rows, columns)) or operator
    if was == now:
        return Change(site, operator) if operator != site.operator else None
    if operator.kind == "resize":
        if plan.surgery.dilate:
            return None  # runs on the original's map, as it is
        if operator.scale is None:
            return None  # resized to the size of another map, which has changed alike
        if operator.refusal or max(operator.scale) < 1:
            raise _refusal(
                site, operator.refusal or "interpolates downwards, which has no finer form"
            )
        return Change(site, replace(operator, scale=(1 / now[0], 1 / now[1])))
    if operator.refusal:
        raise _refusal(site, operator.refusal)
    if hooked := info(site.node).hooked:
        raise _refusal(
            site, f"its forward hooks do more than change each number ({', '.join(hooked)})"
        )
    by = [a / b for a, b in zip(was, now, strict=True)]
    if min(by) < 1:
        return Change(site, _coarser(site, [1 / k for k in by], now))
    if any(k.denominator != 1 or step % int(k) for k, step in zip(by, operator.step, strict=True)):
        raise _refusal(
            site, f"has stride {hw_text(operator.step)}, which cannot become {hw_text(now)}"
        )
    return Change(site, refined(operator, (int(by[0]), int(by[1])), plan.surgery.removes_pools))


def _coarser(site: SpatialOp, by: Sequence[Fraction], now: Sequence[Fraction]) -> Operator:
    if any(k.denominator != 1 for k in by):
        raise _refusal(
            site, f"has stride {hw_text(site.operator.step)}, which cannot become {hw_text(now)}"
        )
    operator = coarsened(site.operator, (int(by[0]), int(by[1])))
    if operator is None:
        raise _refusal(site, "cannot take a stride on")
    return operator


def _refusal(site: SpatialOp, why: str) -> OperatorError:
    return OperatorError(
        f"{site.name} ({site.operator.name}) would have to change with the layers you named, and "
        f"{why}. Choose another transition, or teach the operator with "
        "stridesurgery.register_operator"
    )
