"""Reads what a caller asks for into a surgery whose layers are numbers."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from difflib import get_close_matches
from fractions import Fraction
from functools import partial
from inspect import signature
from operator import index
from typing import Any, SupportsIndex, TypeVar

from torch import nn

from stridesurgery._analysis import REARRANGING, Analysis, analyse
from stridesurgery._hw import HW
from stridesurgery._trace import copied_model
from stridesurgery.errors import RequestError
from stridesurgery.ops import sample
from stridesurgery.surgery import DEFAULTS, Options, Surgery

M = TypeVar("M", bound=nn.Module)


def requested(
    model: nn.Module,
    S: int | str | Surgery | None,
    L: int | str | Sequence[int | str] | None,
    input_size: int | HW[int] | None,
    options: Options = DEFAULTS,
    output_stride: int | None = None,
) -> tuple[Surgery, Analysis]:
    """Read the arguments of `eliminate` into a surgery, and analyse the model.

    Raises:
        RequestError: the arguments contradict each other, or do not fit the model.
        ModelError, TraceError: the model cannot be recorded.
    """
    if isinstance(S, (str, Surgery)):
        named = S if isinstance(S, Surgery) else Surgery.parse(S)
        if L is not None:
            raise RequestError(f"the name {named.name} says the layers already; leave L out")
        if isinstance(S, Surgery):
            if S.after is not None:
                raise RequestError(
                    "this Surgery follows another one; eliminate(model, surgery) carries out both"
                )
            given = [
                name for name, value in options.options.items() if value != DEFAULTS.options[name]
            ]
            if given:
                raise RequestError(f"a Surgery holds its options; leave {', '.join(given)} out")
            options, input_size = S, input_size or S.input_size
        S, L = named.S, named.L
    analysis = analyse(model, input_size)
    if any(node.target in REARRANGING for node in analysis.recording.graph.nodes):
        raise RequestError(
            "the model is dilated already; operate on the original, with all layers in one request"
        )
    check_one_path(analysis, "operate on the original")
    settings = options.options
    if output_stride is not None:
        if (S, L, options.restore_at) != (None, None, None):
            raise RequestError("output_stride chooses the layers; leave S, L and restore_at out")
        L, settings["stride"] = _layers_for(analysis, output_stride, options)
    if options.restore_at is not None:
        settings["restore_at"] = layer_number(analysis, options.restore_at)
        _check_names_one(analysis, settings["restore_at"])
    return replace(request(analysis, S, L, settings), input_size=analysis.recording.size), analysis


def bound(model: M, asked: Options) -> M:
    """Return a copy of a model whose forward has the asked arguments; without any, the model.

    Raises:
        RequestError: an argument that forward does not name.
    """
    given = asked.forward_kwargs
    if not given or not isinstance(model, nn.Module):
        return model
    names = list(signature(model.forward).parameters)
    for name in given:
        if name not in names:
            raise RequestError(
                f"forward of {type(model).__name__} names no argument {name!r}; it takes "
                f"{', '.join(names)}"
            )
    copy: M = copied_model(model)  # type: ignore[assignment]
    copy.forward = partial(copy.forward, **given)  # type: ignore[method-assign]
    return copy


def check_one_path(analysis: Analysis, way_out: str) -> None:
    """Refuse what `dual_path` made: its modules run twice, at two reductions.

    Raises:
        RequestError: with the way out.
    """
    if any(node.target is sample for node in analysis.recording.graph.nodes):
        raise RequestError(f"the model has two paths already; {way_out}")


def request(
    analysis: Analysis,
    S: int | None,
    L: int | str | Sequence[int | str] | None,
    options: dict[str, Any],
) -> Surgery:
    """Read what a caller asks for into a surgery with layers by number.

    Raises:
        RequestError: no such layer, a layer without a stride, S and L that disagree.
    """
    if L is None:
        if S is None:
            raise RequestError(
                "say S (how many strides), L (at which layers) or a name such as 'S1L0'. "
                f"{_strided(analysis)}"
            )
        first = _first_layers(analysis, S)
        return Surgery(len(first), first, **options)
    asked = list(L) if isinstance(L, Iterable) and not isinstance(L, (str, bytes)) else [L]
    named = [layer_number(analysis, item) for item in asked]  # type: ignore[arg-type]  # which it checks
    for layer in named:
        _check_names_one(analysis, layer)
    groups = {analysis.transitions_of(layer): layer for layer in reversed(named)}
    # one of each transition
    layers = tuple(layer for layer in dict.fromkeys(named) if layer in groups.values())
    if S is not None and S != len(layers):
        raise RequestError(
            f"S is {S} but L = {listed(named)} names {len(layers)} transition(s). "
            f"{_strided(analysis)}"
        )
    if not layers:
        raise RequestError(f"L is empty. {_strided(analysis)}")
    return Surgery(len(layers), layers, **options)


def _check_names_one(analysis: Analysis, layer: int) -> None:
    """Refuse the name of a layer that spans transitions with a layer of their own.

    Raises:
        RequestError: naming those layers.
    """
    transitions = analysis.transitions_of(layer)
    if len(transitions) == 1:
        return
    own: dict[int, list[int]] = {t: [] for t in transitions}
    for i in range(len(analysis.layers)):
        if len(found := analysis.transitions_of(i)) == 1 and found[0] in own:
            own[found[0]].append(i)
    if all(own.values()):
        each = "; ".join(f"transition {t}: {listed(layers)}" for t, layers in own.items())
        raise RequestError(
            f"layer {layer} ({analysis.layers[layer].name}) spans transitions "
            f"{listed(transitions)}, so it does not name one. Name a layer of each that is to go: "
            f"{each}"
        )


def _layers_for(
    analysis: Analysis, output_stride: int, options: Options
) -> tuple[tuple[int, ...], int]:
    """Return the last layers to eliminate for the last map's reduction, and the remaining stride.

    Raises:
        RequestError: no such layers; with the reductions that can be had.
    """
    if isinstance(output_stride, bool) or not isinstance(output_stride, int) or output_stride < 1:
        raise RequestError(f"output_stride is a positive int, got {output_stride!r}")
    axis = 1 if options.axis == "w" else 0
    reduction, remains = Fraction(1), options.stride
    for transition in analysis.transitions:
        reduction *= transition.factor[axis]
    possible: dict[Fraction, tuple[tuple[int, ...], int]] = {reduction: ((), remains)}
    chosen: list[int] = []
    for number in reversed(range(len(analysis.transitions))):
        factor = analysis.transitions[number].factor[axis]
        if factor == 1:
            continue
        own = [i for i in range(len(analysis.layers)) if analysis.transitions_of(i) == (number,)]
        if not own or factor.denominator != 1:
            break
        if not chosen:  # a part of the stride may remain of one transition alone
            for part in (d for d in range(2, int(factor)) if factor % d == 0):
                possible.setdefault(reduction * part / factor, ((own[0],), part))
        if factor % remains:
            break
        chosen.append(own[0])
        reduction = reduction * remains / factor
        possible[reduction] = (tuple(reversed(chosen)), remains)
    if output_stride not in possible:
        found = listed(sorted(int(r) for r in possible if r.denominator == 1))  # type: ignore[arg-type]
        raise RequestError(
            f"the last map cannot have the reduction {output_stride}; it can have {found}"
        )
    layers, part = possible[Fraction(output_stride)]
    if not layers:
        raise RequestError(f"the last map has the reduction {output_stride} already")
    return layers, part


def _first_layers(analysis: Analysis, S: int) -> tuple[int, ...]:
    levels = analysis.transitions
    if isinstance(S, bool) or not isinstance(S, int) or S < 1:
        raise RequestError(f"S, the number of strides to eliminate, is a positive int, got {S!r}")
    if S > len(levels):
        raise RequestError(
            f"S is {S} but the model has {len(levels)} transitions. {_strided(analysis)}"
        )
    numbers = range(len(analysis.layers))
    firsts = []
    for level in range(S):
        members = [i for i in numbers if level in analysis.transitions_of(i)]
        if not any(i in firsts for i in members):
            firsts.append(min(members, key=lambda i: len(analysis.transitions_of(i))))
    return tuple(firsts)


def layer_number(analysis: Analysis, item: int | str) -> int:
    """L of a strided layer, given by number or module name.

    Raises:
        RequestError: there is no such layer, or it has no stride.
    """
    count = len(analysis.layers)
    if isinstance(item, str):
        item = _named(analysis, item)
    if isinstance(item, bool) or not isinstance(item, SupportsIndex):
        raise RequestError(f"a layer is a number or a module name, got {item!r}")
    item = index(item)
    if not 0 <= item < count:
        raise RequestError(
            f"layer {item} does not exist: the model has layers 0 to {count - 1}. "
            f"{_strided(analysis)}"
        )
    if not analysis.transitions_of(item):
        site = analysis.layers[item]
        why = "works on a pooled map of fixed size" if site.before.pooled else "has stride 1"
        raise RequestError(f"layer {item} ({site.name}) {why}. {_strided(analysis)}")
    return item


def _named(analysis: Analysis, name: str) -> int:
    """Return the layer of a name, or the one strided layer inside the module of that name.

    Raises:
        RequestError: there is none, or several are inside.
    """
    exact = [i for i, layer in enumerate(analysis.layers) if layer.name == name]
    inside = [
        i
        for i, layer in enumerate(analysis.layers)
        if layer.name.startswith(f"{name}.") and layer.is_strided
    ]
    found = exact[:1] or inside
    if len(found) == 1:
        return found[0]
    if inside:
        each = ", ".join(f"{i} ({analysis.layers[i].name})" for i in inside)
        raise RequestError(f"{name!r} has several strided layers: {each}. Name one of them")
    near = get_close_matches(name, [la.name for la in analysis.layers if la.is_strided], n=3)
    hint = f"; the closest are {', '.join(near)}" if near else ""
    raise RequestError(f"no layer is named {name!r}{hint}. {_strided(analysis)}")


def _strided(analysis: Analysis) -> str:
    found = [i for i, site in enumerate(analysis.layers) if site.is_strided]
    return f"Strided layers: {listed(found)}." if found else "The model has no strided layers."


def listed(numbers: Sequence[int]) -> str:
    """Numbers as a reader wants them."""
    return ", ".join(map(str, numbers))
