"""Two paths through one set of weights: the finer network and the network as it was."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import fx, nn

from stridesurgery._analysis import Analysis, Feature, FeatureInfo, GridInfo, analyse, geometry_of
from stridesurgery._features.extract import (
    feature_of,
    finished,
    reassembled,
    source_of,
    with_output,
)
from stridesurgery._features.join import Joined, after, join, split_modules
from stridesurgery._features.taps import Tap, TapName, find_taps
from stridesurgery._features.tokens import as_map
from stridesurgery._hw import HW
from stridesurgery._node import Key, info, shape_of
from stridesurgery._rewrite import Plan, check_alike, operate, plan, rearranged, requested
from stridesurgery._trace import RewrittenModel, copied
from stridesurgery.errors import GridError, RequestError
from stridesurgery.ops import first_phase, sample
from stridesurgery.surgery import Axis, Options, Pool, Positions, Surgery

Taps = Sequence[TapName] | TapName | None
PATHS = ("small", "large")


def dual_path(
    model: nn.Module,
    S: int | str | Surgery | None = None,
    L: int | str | Sequence[int | str] | None = None,
    *,
    taps: Taps | Mapping[str, Taps] = None,
    combine: Literal["split", "concat"] = "split",
    sampler: Literal["slice", "original"] = "slice",
    large_norm: Literal["shared", "frozen"] = "shared",
    share: bool = True,
    stride: int = Options.stride,
    axis: Axis = Options.axis,
    pool: Pool = Options.pool,
    dilate: bool = Options.dilate,
    positions: Positions = Options.positions,
    input_size: int | HW[int] | None = None,
) -> RewrittenModel:
    """Eliminate strides, and run the later layers again on the maps sampled back to the old grid.

    The small-object path is `eliminate`'s network. At each eliminated layer the large-object path
    samples the old grid and goes through the same modules; up to the first of them, its norm and
    activation included, both are one.

    Args:
        model: as for `eliminate`.
        S: how many strides to eliminate, or a name such as "S1L0", or a `Surgery`; as for
            `eliminate`.
        L: at which layers; as for `eliminate`.
        taps: which maps, as for `features` and numbered as in `model`: the same for both paths, or
            {"small": ..., "large": ...}; None: of each path the last map of every reduction.
        combine: "split" returns the maps of both paths as "small.11", "large.11"; "concat" one map
            per reduction, the maps of equal reduction concatenated over channels, small before
            large, as "small.13+large.11".
        sampler: "slice" takes every k-th cell of the finer map (the paper); "original" runs the
            original operator where that is another thing: at removed pools. With it the large path
            is the pretrained network.
        large_norm: "shared": in train mode both paths normalise by their batch and update the
            running statistics (the paper); "frozen": the large path normalises by the running
            statistics, as the small path has left them, and does not update them. The norm of the
            first eliminated layer runs once, for both paths.
        share: False: the large path runs the first eliminated layer anew, at its old stride, rather
            than sample the finer map. For `sparse_path`, which then makes that map in tiles alone.
        stride: what remains of each stride; must divide it.
        axis: rows ("h"), columns ("w") or both ("hw").
        pool: whether a pool whose stride goes is removed ("remove", as in the paper) or runs at
            stride 1 ("keep").
        dilate: keep the features of the small path, as `eliminate` does; the large path is then a
            part of it (the first phase) and costs nothing. Both paths share one run of every norm.
        positions: what becomes of tables of positions in the small path; as for `eliminate`.
        input_size: pixels at which the maps are checked, one number or (h, w); by default the
            model's own.

    Returns:
        A graph module in the mode of the original, with its state_dict, as `features` returns it.
        In eval mode convolutions make the large path the original network, whatever the sampler.

    Raises:
        RequestError: the request does not fit the model; taps that are no maps.
        OperatorError: an operator that would have to change is not understood, or a norm cannot be
            frozen.
        GridError: a map would leave the grid; maps to concatenate differ in size.
        ModelError: not a plain module: wrapped, compiled, scripted.
        TraceError: the forward pass cannot be recorded at this size.

    Example:
        >>> import timm, torch, stridesurgery as ss
        >>> model = timm.create_model("resnet18").eval()
        >>> both = ss.dual_path(model, "S1L16", taps="layer4", input_size=64)
        >>> {name: tuple(map_.shape) for name, map_ in both(torch.rand(1, 3, 64, 64)).items()}
        {'small.layer4': (1, 512, 4, 4), 'large.layer4': (1, 512, 2, 2)}
    """
    _check(combine, "combine", ("split", "concat"))
    _check(sampler, "sampler", ("slice", "original"))
    _check(large_norm, "large_norm", ("shared", "frozen"))
    asked = _by_path(taps)
    options = Options(stride=stride, axis=axis, pool=pool, dilate=dilate, positions=positions)
    surgery, analysis = requested(model, S, L, input_size, options)
    surgery = replace(surgery, form="graph")
    if surgery.restore_at is not None:
        raise RequestError("a dual path samples the old grid itself; leave restore_at out")
    planned = plan(analysis, surgery)
    fine = operate(model, surgery, analysis=analysis)
    assert isinstance(fine, RewrittenModel)
    small = analyse(fine, analysis.recording.size)
    outputs = _outputs(asked, analysis, small, planned, sampler)
    check_alike(
        analysis.recording.graph, analysis.training.recording.graph, [out.key for out in outputs]
    )
    if surgery.dilate:
        joined = {mode: _phases(fine, small, mode, outputs) for mode in (True, False)}
    else:
        split_modules(fine, model, planned)
        joined = {
            a.recording.training: join(fine, a, planned, sampler, large_norm, share)
            for a in (analysis.training, analysis)
        }
    groups = _by_reduction(outputs) if combine == "concat" else [(out,) for out in outputs]
    graphs = {mode: _with_outputs(fine, joined[mode], groups) for mode in (True, False)}
    result = finished(
        fine,
        graphs[True],
        graphs[False],
        fine.only_at,
        FeatureInfo(tuple(map(_feature_of, groups))),
    )
    if sampler == "slice" and any(
        window.tap for change in planned.changes for window in change.operator.windows
    ):
        # a sliced map does not see what the original's removed pool sees
        grid_of = {
            info(n).key: place
            for n, place in analyse(result, analysis.recording.size).grid_of.items()
        }
        groups = [
            tuple(_as_sampled(out, joined[False], grid_of) for out in group) for group in groups
        ]
        result.feature_info = FeatureInfo(tuple(map(_feature_of, groups)))
    return result


def _as_sampled(out: "_Output", joined: Joined, grid_of: Mapping[Key, GridInfo]) -> "_Output":
    """Give a large path's map the geometry that it has in the joined graph."""
    if out.path == "small":
        return out
    return replace(out, tap=replace(out.tap, place=grid_of[info(joined.large[out.key]).key]))


@dataclass(frozen=True)
class _Output:
    """One map of one path."""

    path: str  # "small" or "large"
    tap: Tap  # with the name, the channels and the place it has in its path
    key: Key
    network: str = "operated"  # whose map it is, as `Source` says it

    @property
    def name(self) -> str:
        return f"{self.path}.{self.tap.name}"


def _check(value: str, name: str, known: Sequence[str]) -> None:
    if value not in known:
        raise RequestError(f"{name} is {' or '.join(map(repr, known))}, got {value!r}")


def _by_path(taps: Taps | Mapping[str, Taps]) -> dict[str, Taps]:
    if not isinstance(taps, Mapping):
        return dict.fromkeys(PATHS, taps)
    if set(taps) != set(PATHS):
        raise RequestError(
            "taps names the maps of both paths, 'small' and 'large'; got "
            f"{', '.join(map(repr, taps))}"
        )
    return {path: taps[path] for path in PATHS}


def _outputs(
    asked: dict[str, Taps], original: Analysis, fine: Analysis, planned: Plan, sampler: str
) -> list[_Output]:
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
                found.append(_Output(path, _on_fine_grid(tap, values.get(key), fine), key))
            elif not shared or asked[path] is not None:
                found.append(
                    _Output(path, tap, key, "sliced" if tap.node in sliced else "original")
                )
    small = {out.tap.place.reassembled.reduction: out for out in found if out.path == "small"}
    return [
        out
        for out in found
        if out.path == "large" or asked["small"] is not None or out in small.values()
    ]


def _phases(
    fine: RewrittenModel, small: Analysis, training: bool, outputs: Sequence[_Output]
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


def _by_reduction(outputs: Sequence[_Output]) -> list[tuple[_Output, ...]]:
    """Return the maps by reduction, finest first.

    Raises:
        GridError: maps of one reduction differ in size or layout.
    """
    groups: dict[Any, list[_Output]] = {}
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


def _cells(out: _Output) -> str:
    return "x".join(map(str, out.tap.place.reassembled.grid or ()))


def _with_outputs(
    model: nn.Module, joined: Joined, groups: Sequence[Sequence[_Output]]
) -> fx.Graph:
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


def _map_of(out: _Output, path: dict[Key, fx.Node]) -> fx.Node | None:
    """Return a path's value as a map; tokens are laid out, where that has not been done."""
    node, tokens = path.get(out.key), out.tap.tokens
    if node is None or tokens is None or len(shape_of(node) or ()) == 4:
        return node
    return as_map(node, tokens, path[tokens.made])


def _name(group: Sequence[_Output]) -> str:
    return "+".join(out.name for out in group)


def _concatenated(output: fx.Node, maps: list[fx.Node], group: Sequence[_Output]) -> fx.Node:
    if len(maps) == 1:
        return maps[0]
    with output.graph.inserting_before(output):
        made = output.graph.call_function(torch.cat, (maps, group[0].tap.channel_axis))
    info(made).take(maps[0], key=("", made.op, "cat", _name(group)), shape=None, path="", ends=())
    return made


def _feature_of(group: Sequence[_Output]) -> Feature:
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
