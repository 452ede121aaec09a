"""Finds the map of a network that a layer number, a module path or no name at all means."""

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from operator import index
from typing import SupportsIndex

from torch import fx

from stridesurgery._analysis import Analysis, GridInfo, channel_axis
from stridesurgery._features.candidates import Values, module_of, outermost, straight_back
from stridesurgery._features.stages import last_tokens, stage_ends
from stridesurgery._features.tokens import Tokens
from stridesurgery._node import BATCH, info, shape_of
from stridesurgery.errors import RequestError

TapName = int | str


@dataclass(frozen=True)
class Tap:
    """One map of a network that is taken out."""

    name: str  # what was asked for: a layer number or a module path
    module: str  # the outermost module that returns it, or the call that makes it
    node: fx.Node  # of the analysed graph
    place: GridInfo
    channels: int
    channel_axis: int  # 1: (N, C, H, W); 3: (N, H, W, C)
    tokens: Tokens | None = None  # where the map is taken out of a sequence of tokens


def find_taps(analysis: Analysis, names: Sequence[TapName] | TapName | None) -> tuple[Tap, ...]:
    """Return the maps that are asked for; None: the last of every reduction.

    Raises:
        RequestError: a name that is no layer and no module, or is not one map.
    """
    values = Values(analysis)
    if names is None:
        return _one_of_each_reduction(values)
    asked = list(names) if isinstance(names, Iterable) and not isinstance(names, str) else [names]
    if not asked:
        raise RequestError(
            "taps is empty; name layers or modules, or leave it out for one map per reduction"
        )
    taps = tuple(_tap(values, str(name), _find(values, name)) for name in asked)
    twice = [t.name for t in taps if [u.name for u in taps].count(t.name) > 1]
    if twice:
        raise RequestError(f"tap {twice[0]} is named twice")
    return taps


def _tap(values: Values, name: str, node: fx.Node) -> Tap:
    place, shape = values.analysis.grid_of[node], shape_of(node) or ()
    if node in values.tokens:
        return Tap(name, module_of(node), node, place, shape[2], 1, values.tokens[node])
    axis = channel_axis(node, place)
    assert axis is not None
    return Tap(name, module_of(node), node, place, shape[axis], axis)


def _find(values: Values, name: TapName) -> fx.Node:
    if isinstance(name, str):
        return _by_path(values, name)
    if isinstance(name, bool) or not isinstance(name, SupportsIndex):
        raise RequestError(f"a tap is a layer number or a module path, got {name!r}")
    return _by_layer(values, index(name))


def _by_layer(values: Values, number: int) -> fx.Node:
    """Return the last map before the next layer; pointwise operators belong to the layer before."""
    layers = values.analysis.layers
    if not 0 <= number < len(layers):
        raise RequestError(
            f"layer {number} does not exist: the model has layers 0 to {len(layers) - 1}"
        )
    site = layers[number]
    if site.node not in values.position or site.node not in values.closed:
        raise RequestError(
            f"layer {number} ({site.name}) is inside a residual or parallel block, where it is not "
            "the only map. " + _block_around(values, site.node)
        )
    candidates = []
    for node in [site.node, *values.descendants(site.node)]:
        if node is not site.node and node in values.layers:
            break
        same = values.reduction[node] == site.after.reassembled.reduction
        if same and node in values.closed and node in values.maps:
            candidates.append(node)
    if not candidates:
        raise RequestError(
            f"layer {number} ({site.name}) makes no map (N, C, H, W) that could be taken out"
        )
    return outermost(straight_back(values, candidates))


def _block_around(values: Values, node: fx.Node) -> str:
    """Return the way out: the nearest module around a node whose map can be taken."""
    path = str(info(node).path)
    while path:
        ends = [n for n in values.maps if path in info(n).ends and n in values.closed]
        if len(ends) == 1:
            return f"Tap the block instead: {path!r}"
        path = path.rpartition(".")[0]
    return "No module around it returns one closed map; tap a module by its path"


def _by_path(values: Values, path: str) -> fx.Node:
    ends: dict[str, list[fx.Node]] = {}
    for node in values.analysis.recording.graph.nodes:
        for end in info(node).ends:
            ends.setdefault(end, []).append(node)
    found = ends.get(path, [])
    module, _, number = path.rpartition("#")
    if module in ends and number.isdecimal() and int(number) < len(ends[module]):
        found = [ends[module][int(number)]]
    if len(found) == 1:
        if found[0] in values.tokens or found[0] in values.maps or _passes_map(values, found[0]):
            return found[0]
        shape = tuple("N" if n == BATCH else n for n in shape_of(found[0]) or ())
        raise RequestError(
            f"{path!r} does not return a map (N, C, H, W): its value has shape {shape}"
        )
    if len(found) > 1:
        raise RequestError(
            f"{path!r} runs {len(found)} times in one pass; tap one of the calls, {path + '#0'!r} "
            f"to {f'{path}#{len(found) - 1}'!r}, or a module around one"
        )
    made = [n for n in values.maps if n.name == path or (not info(n).ends and module_of(n) == path)]
    if made:
        return made[0]
    parts = sorted(end for end in ends if end.startswith(f"{path}["))
    if parts:
        raise RequestError(
            f"{path!r} returns several values; tap one of {', '.join(map(repr, parts))}"
        )
    if path in dict(values.analysis.recording.model.named_modules()):
        raise RequestError(f"module {path!r} is not called, or returns no tensor")
    near = difflib.get_close_matches(path, ends, n=3) or list(ends)[:3]
    raise RequestError(
        f"the model has no module {path!r}; there are {', '.join(map(repr, near))}, ..."
    )


def _passes_map(values: Values, node: fx.Node) -> bool:
    place = values.analysis.grid_of.get(node)
    return place is not None and node.op != "placeholder" and channel_axis(node, place) is not None


def _one_of_each_reduction(values: Values) -> tuple[Tap, ...]:
    """Return the map that ends a stage, of every reduction, finest first."""
    ends = [*stage_ends(values), *last_tokens(values)]
    taps = [_tap(values, module_of(node), node) for node in ends]
    if not taps:
        raise RequestError(
            "no stage of the model returns a map: it has no layers, or works on tokens in an order "
            "of their own, or on several maps at once. Name modules as taps"
        )
    names = [tap.name for tap in taps]
    return tuple(
        replace(t, name=_call_name(values, t)) if names.count(t.name) > 1 else t for t in taps
    )


def _call_name(values: Values, tap: Tap) -> str:
    """Name a module that is called at several reductions by the number of its call."""
    calls = [n for n in values.analysis.recording.graph.nodes if tap.module in info(n).ends]
    return f"{tap.module}#{calls.index(tap.node)}" if tap.node in calls else tap.node.name
