"""The maps of a dual path: found in the joined graph, named, and concatenated if asked."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx, nn

from stridesurgery._analysis import Analysis, Feature, GridInfo, geometry_of
from stridesurgery._features.extract import (
    feature_of,
    reassembled,
    source_of,
    with_output,
)
from stridesurgery._features.join import Joined, after
from stridesurgery._features.taps import Tap, TapName, find_taps
from stridesurgery._features.tokens import as_map
from stridesurgery._node import Key, info, shape_of
from stridesurgery._rewrite import Plan, rearranged
from stridesurgery._trace import RewrittenModel, copied
from stridesurgery.errors import GridError, RequestError
from stridesurgery.ops import first_phase, sample

Taps = Sequence[TapName] | TapName | None
PATHS = ("small", "large")


@dataclass(frozen=True)
class Output:
    """One map of one path."""

    path: str  # "small" or "large"
    tap: Tap  # with the name, the channels and the place it has in its path
    key: Key
    network: str = "operated"  # whose map it is, as `Source` says it

    @property
    def name(self) -> str:
        return f"{self.path}.{self.tap.name}"


def taps_by_path(taps: Taps | Mapping[str, Taps]) -> dict[str, Taps]:
    if not isinstance(taps, Mapping):
        return dict.fromkeys(PATHS, taps)
    if set(taps) != set(PATHS):
        raise RequestError(
            "taps names the maps of both paths, 'small' and 'large'; got "
            f"{', '.join(map(repr, taps))}"
        )
    return {path: taps[path] for path in PATHS}


def find_outputs(
    asked: dict[str, Taps], original: Analysis, fine: Analysis, planned: Plan, sampler: str
) -> list[Output]:
    """Return the maps asked for; without names, of the large path those the small lacks."""
    values = {info(n).key: n for n in fine.recording.graph.nodes}
    removed = [c.site.node for c in planned.changes if any(w.tap for w in c.operator.windows)]
    sliced = after(removed if sampler == "slice" else [])
    found = []
    for path in PATHS:
        for tap in find_taps(original, asked[path]):
            key, shared = (
                info(tap.node).key,
                planned.reduction(tap.place.reduction) == tap.place.reduction,
            )
            if path == "small":
                found.append(Output(path, _on_fine_grid(tap, values.get(key), fine), key))
            elif not shared or asked[path] is not None:
                found.append(Output(path, tap, key, "sliced" if tap.node in sliced else "original"))
    small = {out.tap.place.reassembled.reduction: out for out in found if out.path == "small"}
    return [
        out
        for out in found
        if out.path == "large" or asked["small"] is not None or out in small.values()
    ]


def phase_outputs(
    fine: RewrittenModel, small: Analysis, training: bool, outputs: Sequence[Output]
) -> Joined:
    """Return both paths' maps of a dilated network: all phases together, and the first alone."""
    graph = copied(fine.graphs[training])
    nodes = {info(n).key: n for n in graph.nodes}
    grid_of = {info(n).key: place for n, place in small.grid_of.items()}
    joined = Joined(graph, {}, {})
    for out in outputs:
        node, place = nodes.get(out.key), grid_of[out.key]
        if node is None:
            continue
        if out.path == "small":
            joined.small[out.key] = reassembled(node, out.tap, nodes)
        else:
            if out.tap.tokens is not None:
                node = as_map(node, out.tap.tokens, nodes[out.tap.tokens.made])
            joined.large[out.key] = _first_phase(node, place, out.tap)
    return joined


def _first_phase(node: fx.Node, place: GridInfo, tap: Tap) -> fx.Node:
    """Return the original's map: the first phase, or every k-th cell of a map not in phases."""
    if place.phases:
        node = rearranged(node, first_phase, math.prod(place.finer))
    by = tuple(
        int(old / new) for old, new in zip(tap.place.reduction, place.reduction, strict=True)
    )
    return (
        node
        if by == (1, 1)
        else rearranged(node, sample, by, *([-2] if tap.channel_axis == 3 else []))
    )


def _on_fine_grid(tap: Tap, node: fx.Node | None, fine: Analysis) -> Tap:
    if node is None:
        raise GridError(
            f"tap {tap.name!r} is not found in the operated model: it computes larger maps in "
            "another way; tap a module"
        )
    return replace(tap, node=node, place=fine.grid_of[node])


def concatenated_by_reduction(outputs: Sequence[Output]) -> list[tuple[Output, ...]]:
    """Return the maps by reduction, finest first.

    Raises:
        GridError: maps of one reduction differ in size or layout.
    """
    groups: dict[Any, list[Output]] = {}
    for out in outputs:
        groups.setdefault(out.tap.place.reassembled.reduction, []).append(out)
    for group in groups.values():
        kinds = {(out.tap.place.reassembled.grid, out.tap.channel_axis) for out in group}
        if len(kinds) > 1:
            sizes = ", ".join(f"{out.name} has {_cells(out)}" for out in group)
            raise GridError(
                f"maps of equal reduction differ in size and cannot be concatenated: {sizes} "
                "cells; use an input size that the total stride divides, other taps, or "
                "combine='split'"
            )
    return [tuple(groups[reduction]) for reduction in sorted(groups)]


def _cells(out: Output) -> str:
    return "x".join(map(str, out.tap.place.reassembled.grid or ()))


def as_sampled(out: Output, joined: Joined, grid_of: Mapping[Key, GridInfo]) -> Output:
    """Give a large path's map the geometry that it has in the joined graph."""
    if out.path == "small":
        return out
    return replace(out, tap=replace(out.tap, place=grid_of[info(joined.large[out.key]).key]))


def with_outputs(model: nn.Module, joined: Joined, groups: Sequence[Sequence[Output]]) -> fx.Graph:
    by_name = {out.name: out for group in groups for out in group}
    nodes = {
        name: _map_of(out, joined.small if out.path == "small" else joined.large)
        for name, out in by_name.items()
    }
    for name, node in nodes.items():
        if node is None:
            raise GridError(
                f"tap {name} is not found in train mode: the forward code differs between the "
                "modes there"
            )
    graph = with_output(
        joined.graph, {name: node for name, node in nodes.items() if node is not None}
    )
    output = next(n for n in graph.nodes if n.op == "output")
    maps: Any = output.args[0]
    output.args = (
        {
            _name(group): _concatenated(output, [maps[o.name] for o in group], group)
            for group in groups
        },
    )
    return graph


def _map_of(out: Output, path: dict[Key, fx.Node]) -> fx.Node | None:
    """Return a path's value as a map; tokens are laid out, where that has not been done."""
    node, tokens = path.get(out.key), out.tap.tokens
    if node is None or tokens is None or len(shape_of(node) or ()) == 4:
        return node
    return as_map(node, tokens, path[tokens.made])


def _name(group: Sequence[Output]) -> str:
    return "+".join(out.name for out in group)


def _concatenated(output: fx.Node, maps: list[fx.Node], group: Sequence[Output]) -> fx.Node:
    if len(maps) == 1:
        return maps[0]
    with output.graph.inserting_before(output):
        made = output.graph.call_function(torch.cat, (maps, group[0].tap.channel_axis))
    info(made).take(maps[0], key=("", made.op, "cat", _name(group)), shape=None, path="", ends=())
    return made


def joint_feature(group: Sequence[Output]) -> Feature:
    """Return the `Feature` of one map, or of several joined: each cell sees what theirs do."""
    parts = [feature_of(out.tap) for out in group]
    (rows, columns), *others = [out.tap.place.reassembled.geometry for out in group]
    for down, across in others:
        rows, columns = rows.joined(down), columns.joined(across)
    return replace(
        parts[0],
        name=_name(group),
        module="+".join(part.module for part in parts),
        channels=sum(part.channels for part in parts),
        geometry=geometry_of(rows, columns),
        sources=tuple(
            replace(source_of(out.tap, out.network), name=out.name, key=out.key) for out in group
        ),
    )
