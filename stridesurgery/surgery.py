"""The plan: what is asked (`Surgery`), and which operators of a model it changes (`plan`). Nothing is edited here."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from typing import Any

from torch import nn

from stridesurgery.errors import OperatorError, RequestError
from stridesurgery.layers import Reduction, Site
from stridesurgery.operators import Operator, refined
from stridesurgery.report import Analysis

AXES = {"hw": (True, True), "h": (True, False), "w": (False, True)}
_NAME = re.compile(r"S(\d+)L(\d+(?:-\d+)*)")


@dataclass(frozen=True)
class Surgery:
    """Which strides to eliminate, and how: a value that is named, saved and replayed."""

    S: int  # how many transitions
    L: tuple[int, ...]  # one layer of each
    stride: int = 1  # what remains of each stride
    axis: str = "hw"  # rows ("h"), columns ("w") or both
    pool: str = "remove"  # pools: removed, or kept at stride 1 ("keep")
    form: str = "module"  # the edited model, or the rewritten graph ("graph")
    input_size: tuple[int, int] | None = None  # (h, w) pixels at which it was planned
    after: "Surgery | None" = None  # the surgery that the model had undergone before

    def __post_init__(self) -> None:
        object.__setattr__(self, "L", tuple(self.L))
        if self.input_size is not None:
            object.__setattr__(self, "input_size", tuple(self.input_size))
        if self.axis not in AXES:
            raise RequestError(f"axis is 'h', 'w' or 'hw', got {self.axis!r}")
        if self.pool not in ("remove", "keep"):
            raise RequestError(f"pool is 'remove' or 'keep', got {self.pool!r}")
        if self.form not in ("module", "graph"):
            raise RequestError(f"form is 'module' or 'graph', got {self.form!r}")
        if isinstance(self.stride, bool) or not isinstance(self.stride, int) or self.stride < 1:
            raise RequestError(f"stride, what remains of the original one, is a positive int, got {self.stride!r}")

    @property
    def name(self) -> str:
        """The paper's name, such as "S2L4-6"."""
        return f"S{self.S}L{'-'.join(map(str, self.L))}"

    @classmethod
    def parse(cls, name: str) -> "Surgery":
        """Read a name such as "S1L0" or "S2L4-6" (a dash separates layers).

        Raises:
            RequestError: malformed, or S is not the number of layers.
        """
        match = _NAME.fullmatch(name.strip()) if isinstance(name, str) else None
        if match is None:
            raise RequestError(f"{name!r} is not a surgery name; names look like S1L0 or S2L4-6")
        layers = tuple(int(number) for number in match[2].split("-"))
        if len(set(layers)) != len(layers):
            raise RequestError(f"{name!r} names a layer twice")
        if int(match[1]) != len(layers):
            raise RequestError(f"{name!r} says {match[1]} strides but names {len(layers)} layers")
        return cls(int(match[1]), layers)

    def to_json(self) -> str:
        """The surgery as JSON text, the recipe that goes with a state_dict."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Surgery":
        """Read what `to_json` wrote.

        Raises:
            RequestError: not JSON, or not the fields of a surgery.
        """
        try:
            fields = json.loads(text)
            return cls._from_fields(fields)
        except (TypeError, ValueError, KeyError, AttributeError) as problem:
            raise RequestError(f"not a surgery in JSON: {problem}") from problem

    @classmethod
    def _from_fields(cls, fields: dict[str, Any]) -> "Surgery":
        before = fields.get("after")
        if not all(isinstance(i, int) and not isinstance(i, bool) for i in (fields["S"], *fields["L"])):
            raise RequestError("S and L must be whole numbers")
        return cls(**{**fields, "after": cls._from_fields(before) if before else None})

    def apply(self, model: nn.Module) -> nn.Module:
        """Operate a fresh model of the same architecture in the same way; see `eliminate`."""
        from stridesurgery.operate import operate

        fresh = self.after.apply(model) if self.after else model
        return operate(fresh, replace(self, after=None))


@dataclass(frozen=True)
class Change:
    """One operator of the model and what it becomes."""

    site: Site
    operator: Operator


@dataclass(frozen=True)
class Cut:
    """One eliminated step of the chain of reductions."""

    before: Reduction  # maps up to this reduction keep their grid
    by: tuple[int, int]  # k: all later maps grow by this, (rows, columns)


@dataclass(frozen=True)
class Plan:
    """What a surgery does to one model."""

    surgery: Surgery
    cuts: tuple[Cut, ...]
    changes: tuple[Change, ...]

    def reduction(self, old: Reduction) -> Reduction:
        """f: the reduction that maps of an old reduction have afterwards."""
        rows, columns = old
        for cut in self.cuts:
            if not (old[0] <= cut.before[0] and old[1] <= cut.before[1]):
                rows, columns = rows / cut.by[0], columns / cut.by[1]
        return rows, columns


def request(
    analysis: Analysis, S: int | None, L: int | str | Sequence[int | str] | None, options: dict[str, Any]
) -> Surgery:
    """What a caller asked for, as a surgery with layers by number.

    Raises:
        RequestError: no such layer, a layer without a stride, S and L that disagree.
    """
    if L is None:
        if S is None:
            raise RequestError(
                f"say S (how many strides), L (at which layers) or a name such as 'S1L0'. {_strided(analysis)}"
            )
        return Surgery(S, _first_layers(analysis, S), **options)
    asked = [L] if isinstance(L, (int, str)) else list(L)
    layers = tuple(_layer_number(analysis, item) for item in asked)
    groups = {analysis.transitions_of(layer) for layer in layers}
    if S is not None and S != len(groups):
        raise RequestError(
            f"S is {S} but L = {_listed(layers)} names {len(groups)} transition(s); {_strided(analysis)}"
        )
    if not layers:
        raise RequestError(f"L is empty. {_strided(analysis)}")
    return Surgery(len(groups), layers, **options)


def _first_layers(analysis: Analysis, S: int) -> tuple[int, ...]:
    levels = analysis.levels
    if isinstance(S, bool) or not isinstance(S, int) or S < 1:
        raise RequestError(f"S, the number of strides to eliminate, is a positive int, got {S!r}")
    if S > len(levels):
        raise RequestError(f"S is {S} but the model has {len(levels)} transitions. {_strided(analysis)}")
    numbers = range(len(analysis.layers))
    firsts = []
    for level in range(S):
        members = [i for i in numbers if level in analysis.transitions_of(i)]
        if not any(i in firsts for i in members):
            firsts.append(members[0])
    return tuple(firsts)


def _layer_number(analysis: Analysis, item: int | str) -> int:
    count = len(analysis.layers)
    if isinstance(item, str):
        named = [i for i, site in enumerate(analysis.layers) if site.name == item]
        if not named:
            raise RequestError(f"no layer is named {item!r}. {_strided(analysis)}")
        item = named[0]
    if isinstance(item, bool) or not isinstance(item, int):
        raise RequestError(f"a layer is a number or a module name, got {item!r}")
    if not 0 <= item < count:
        raise RequestError(f"layer {item} does not exist: the model has layers 0 to {count - 1}. {_strided(analysis)}")
    if not analysis.transitions_of(item):
        site = analysis.layers[item]
        why = "works on a pooled map of fixed size" if site.before.pooled else "has stride 1"
        raise RequestError(f"layer {item} ({site.name}) {why}. {_strided(analysis)}")
    return item


def _strided(analysis: Analysis) -> str:
    found = [i for i, site in enumerate(analysis.layers) if site.is_strided]
    return f"Strided layers: {_listed(found)}." if found else "The model has no strided layers."


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def plan(analysis: Analysis, surgery: Surgery) -> Plan:
    """Which operators of a model a surgery changes, and into what.

    Raises:
        RequestError: a layer that does not exist or has no stride, a remaining stride that does not fit.
        OperatorError: an operator that would have to change and is not understood.
    """
    for layer in surgery.L:
        _layer_number(analysis, layer)
    chosen = sorted({t for layer in surgery.L for t in analysis.transitions_of(layer)})
    cuts = tuple(_cut(analysis, t, surgery) for t in chosen)
    bare = Plan(surgery, cuts, ())
    return replace(bare, changes=changes_of(analysis.sites, bare))


def changes_of(sites: Sequence[Site], plan: Plan) -> tuple[Change, ...]:
    """What a plan makes of the sites of a recording (that of train mode may have more than the one planned on)."""
    changes = (_change(site, plan) for site in sites)
    return tuple(c for c in changes if c is not None)


def _cut(analysis: Analysis, transition: int, surgery: Surgery) -> Cut:
    level = analysis.levels[transition]
    by = []
    for factor, wanted in zip(level.factor, AXES[surgery.axis], strict=True):
        k = factor / surgery.stride if wanted and factor > 1 else Fraction(1)
        if k.denominator != 1 or k < 1:
            raise RequestError(
                f"a stride of {surgery.stride} cannot remain at transition {transition}, whose stride is "
                f"{float(factor):g}: it must divide it. Strides that can remain: {_divisors(factor)}"
            )
        by.append(int(k))
    if by == [1, 1]:
        raise RequestError(
            f"nothing to eliminate: at transition {transition} the stride along {surgery.axis!r} is "
            f"{_by(level.factor)} (rows x columns) and {surgery.stride} is to remain"
        )
    return Cut(level.before, (by[0], by[1]))


def _divisors(factor: Fraction) -> str:
    if factor.denominator != 1:
        return "none"
    return _listed([d for d in range(1, int(factor)) if factor % d == 0])


def _by(sides: Sequence[Any]) -> str:
    return "x".join(f"{float(s):g}" for s in sides)


def _change(site: Site, plan: Plan) -> Change | None:
    old, operator = (site.before.reduction, site.after.reduction), site.operator
    new = plan.reduction(old[0]), plan.reduction(old[1])
    was = [b / a for a, b in zip(*old, strict=True)]
    now = [b / a for a, b in zip(*new, strict=True)]
    if was == now or operator.kind == "adaptive" or site.before.pooled:
        return None
    if operator.kind == "resize":
        if operator.scale is None:
            return None  # resized to the size of another map, which has changed alike
        if operator.refusal or max(operator.scale) < 1:
            raise _refusal(site, operator.refusal or "interpolates downwards, which has no finer form")
        return Change(site, replace(operator, scale=(1 / now[0], 1 / now[1])))
    if operator.refusal:
        raise _refusal(site, operator.refusal)
    by = [a / b for a, b in zip(was, now, strict=True)]
    if any(k.denominator != 1 or step % int(k) for k, step in zip(by, operator.step, strict=True)):
        raise _refusal(site, f"has stride {_by(operator.step)}, which cannot become {_by(now)}")
    return Change(site, refined(operator, (int(by[0]), int(by[1])), plan.surgery.pool == "remove"))


def _refusal(site: Site, why: str) -> OperatorError:
    return OperatorError(
        f"{site.name} ({site.operator.name}) would have to change with the layers you named, and {why}. "
        "Choose another transition, or teach the operator with stridesurgery.register_operator"
    )
