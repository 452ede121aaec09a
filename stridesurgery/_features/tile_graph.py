"""The graph of a sparse path: the fine half of a dual path, in tiles."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from stridesurgery._analysis import (
    Analysis,
    GridInfo,
    SpatialOp,
    channel_axis,
    operator_of,
)
from stridesurgery._features.extract import ancestors
from stridesurgery._features.join import PLAIN_CONVOLUTIONS
from stridesurgery._hw import HW
from stridesurgery._node import called, info, returned, tensors_in
from stridesurgery._trace import is_overwritten
from stridesurgery.errors import GridError, OperatorError, RequestError
from stridesurgery.ops import (
    Windows,
    border_cells,
    cut_tiles,
    inside,
    is_per_cell,
    per_tile,
    put_tiles,
    tile_index,
    tile_mask,
    with_border,
)


def maps_of(graph: fx.Graph) -> dict[str, fx.Node]:
    maps: Any = returned(graph)[0].args[0]
    return maps if isinstance(maps, dict) else {}


def image_of(graph: fx.Graph) -> fx.Node:
    return next(n for n in graph.nodes if n.op == "placeholder")


def describe_call(made: fx.Node, of: fx.Node, what: str) -> None:
    path, _, target, count = info(of).key
    key = (path, made.op, f"{what}:{target}:{made.name}", count)
    info(made).take(of, key=key, ends=(), memory=made.name, writes=(), shape=None)


@dataclass(frozen=True)
class _Tiles:
    """A value of the fine path, in tiles."""

    node: fx.Node
    start: fx.Node  # the whole map from which
    chain: tuple[Windows, ...]  # these windows lead to it


class TileGraph:
    """The eval graph of a dual path, its fine half in tiles."""

    def __init__(self, analysis: Analysis, tile: int, whole_maps: str) -> None:
        self.analysis, self.tile, self.whole_maps = analysis, tile, whole_maps
        self.old = analysis.recording.graph
        self.maps = maps_of(self.old)
        self.sites = {site.node: site for site in analysis.spatial_ops}
        large = {node for name, node in self.maps.items() if name.startswith("large.")}
        self.coarse = ancestors(self.old, large, set())
        wanted = ancestors(self.old, {n for n in self.maps.values()}, set())
        self.fine = [
            n
            for n in self.old.nodes
            if n in wanted - self.coarse and n.op not in ("get_attr", "placeholder", "output")
        ]
        self.own = set(self.fine)
        self.counterparts = {_original_key(n): n for n in self.coarse if _is_large(n)}
        sources = dict.fromkeys(s for n in self.fine for s in tensors_in([n.args, n.kwargs]))
        self.starts = [s for s in sources if s not in self.own and s in analysis.grid_of]
        if not self.fine:
            raise RequestError("the small maps are all on the shared part of the two paths")
        for node in (*self.starts, *self.fine):
            self._check_value(node)
        largest = max(math.lcm(*self.reduction(n)) for n in self.maps_of_grid(self.fine))
        if tile % largest:
            raise RequestError(
                f"tile is a multiple of the fine path's largest reduction, {largest} pixels; got "
                f"{tile}"
            )
        self.new = fx.Graph()
        self.whole: dict[fx.Node, fx.Node] = {}
        self.kept: dict[fx.Node, fx.Node] = {}  # copies of starts that the coarse path overwrites
        self.tiles: dict[fx.Node, _Tiles] = {}
        self.borders: dict[tuple[Any, ...], fx.Node] = {}

    def place(self, node: fx.Node) -> GridInfo:
        return self.analysis.grid_of[node]

    def maps_of_grid(self, nodes: list[fx.Node]) -> list[fx.Node]:
        return [n for n in nodes if not self.place(n).pooled]

    def reduction(self, node: fx.Node) -> HW[int]:
        rows, columns = self.place(node).reduction
        return int(rows), int(columns)

    def _cells(self, node: fx.Node) -> HW[int]:
        """Return the cells of a tile on the map of a node."""
        rows, columns = self.reduction(node)
        return self.tile // rows, self.tile // columns

    def _check_value(self, node: fx.Node) -> None:
        place = self.analysis.grid_of.get(node)
        where = str(node.target) if node.op == "call_module" else info(node).path or node.name
        if place is not None and place.pooled:
            if self.whole_maps == "coarse" and _original_key(node) in self.counterparts:
                return
            raise OperatorError(
                f"{where} reads the whole map, of which tiles are a part. whole_maps='coarse' "
                "takes the coarse path's value, if that path has it"
            )
        if place is None or place.grid is None or channel_axis(node, place) != 1:
            raise GridError(f"the value at {where} is no map (N, C, H, W), which has no tiles")
        if any(r.denominator > 1 for r in place.reduction) or any(
            cells > -(-pixels // r)
            for cells, pixels, r in zip(place.grid, place.image, place.reduction, strict=True)
        ):
            raise GridError(f"the map at {where} has more cells than the image has tiles for")
        if node in self.own:
            self._check_operator(node, where)

    def _check_operator(self, node: fx.Node, where: str) -> None:
        site = self.sites.get(node)
        if info(node).hooked or (site is not None and _padding_value(self.analysis, site) is None):
            raise OperatorError(
                f"{where} is not known to read windows of its map padded with a number"
            )
        if site is not None or operator_of(self.analysis.recording, node) is not None:
            return  # windows, or one cell
        module = self.analysis.recording.module(node) if node.op == "call_module" else None
        if not (is_per_cell(node, module) or called(node) in ("cat", "concat")):
            raise OperatorError(f"{where} ({called(node)}) is not known to work cell by cell")

    # ---- the graph

    def graph(self, ring: int, budget: int | None, fill: float) -> fx.Graph:
        """Return the graph that runs the coarse path, chooses, and runs the fine path in tiles."""
        for node in self.old.nodes:
            if node.op in ("placeholder", "get_attr") or (
                node in self.coarse and node.op != "output"
            ):
                self.whole[node] = self.new.node_copy(node, lambda n: self.whole[n])
                if node in self.starts and is_overwritten(node, self.coarse):
                    self.kept[node] = self._call(node, torch.clone, self.whole[node])
        maps = {name: n for name, n in self.maps.items() if n in self.coarse}
        image = self.whole[image_of(self.old)]
        asked = self.new.call_module(
            "choose", ({k: self.whole[n] for k, n in maps.items() if k.startswith("large.")},)
        )
        describe_call(asked, image_of(self.old), "choose")
        self.mask = self._call(image_of(self.old), tile_mask, asked, image, self.tile, budget)
        self.index = self._call(image_of(self.old), tile_index, self.mask, ring, budget)
        for node in self.fine:
            if not self.place(node).pooled:
                self._add(node)
        results = {}
        for name, node in self.maps.items():
            results[name] = self.whole[node] if node in maps.values() else self._result(node, fill)
        output = self.new.output({**results, "tiles": self.mask})
        info(output).take(returned(self.old)[0])
        return self.new

    def _call(self, of: fx.Node, function: Callable[..., Any], *args: Any) -> fx.Node:
        made = self.new.call_function(function, args)
        describe_call(made, of, function.__name__)
        return made

    def _start(self, node: fx.Node) -> fx.Node:
        return self.kept.get(node, self.whole[node])

    def _add(self, node: fx.Node) -> None:
        """Add an operator of the fine path."""
        site = self.sites.get(node)
        sources = [s for s in tensors_in([node.args, node.kwargs]) if s in self.analysis.grid_of]
        if site is not None:
            self.tiles[node] = self._windowed(node, site, sources[0])
            return
        given = {source: self._given(node, source) for source in sources}
        made = self.new.node_copy(node, lambda n: given[n] if n in given else self.whole[n])
        first = next(s for s in sources if not self.place(s).pooled)
        before = self.tiles.get(first) or _Tiles(made, self._start(first), ())
        self.tiles[node] = _Tiles(made, before.start, before.chain)

    def _given(self, node: fx.Node, source: fx.Node) -> fx.Node:
        """Return a value for an operator that works cell by cell."""
        if source in self.tiles:
            return self.tiles[source].node
        if self.place(source).pooled:
            value = self.whole[self.counterparts.get(_original_key(source), source)]
            return self._call(source, per_tile, value, self.index)
        cells = self._cells(source)
        return self._call(source, cut_tiles, self._start(source), self.mask, self.index, cells)

    def _windowed(self, node: fx.Node, site: SpatialOp, source: fx.Node) -> _Tiles:
        """Add an operator with a window: it runs on tiles with a border, and leaves none."""
        cells, windows = self._cells(source), site.operator.windows
        fill = _padding_value(self.analysis, site)
        conv = self._plain(node)
        if source in self.tiles:
            value = self.tiles[source]
            start, chain = value.start, value.chain
            coarse, by = self._coarse(source)
            border = self._border(start, chain, cells, windows, by, conv is not None)
            given = self._call(source, with_border, value.node, border, fill, coarse)
        else:
            start, chain = self._start(source), ()
            tiles = (self.mask, self.index, cells, windows, fill, conv is not None)
            given = self._call(source, cut_tiles, start, *tiles)
        if conv is not None:
            left = self._bare(node, given, conv, windows)
        else:
            made = self.new.node_copy(node, lambda n: given if n is source else self.whole[n])
            left = self._call(node, inside, made, start, chain, cells, windows)
        kept_size = all(w.step == 1 and 2 * w.left(99) == w.span - 1 for w in windows)
        return _Tiles(left, start, chain if kept_size else (*chain, windows))

    def _plain(self, node: fx.Node) -> Any:
        """Return the convolution of a node if it can run without padding: no hook hangs on it."""
        module = self.analysis.recording.module(node) if node.op == "call_module" else None
        hooked = module is not None and (module._forward_hooks or module._forward_pre_hooks)
        return module if type(module) in PLAIN_CONVOLUTIONS and not hooked else None

    def _bare(self, node: fx.Node, given: fx.Node, conv: Any, windows: Windows) -> fx.Node:
        """Add a convolution without padding, which makes exactly the tile from tile and border."""
        weight, bias = (
            None if getattr(conv, name) is None else self.new.get_attr(f"{node.target}.{name}")
            for name in ("weight", "bias")
        )
        for part in (weight, bias):
            if part is not None:
                describe_call(part, node, "weight")
        step, dilation = tuple(w.step for w in windows), tuple(w.dilation for w in windows)
        args = (given, weight, bias, step, 0, dilation, conv.groups)
        return self._call(node, torch.conv2d, *args)

    def _border(self, start: fx.Node, *place: Any) -> fx.Node:
        """Return where tiles find their borders: once for all operators of one grid and extent."""
        key = (start, *place)
        if key not in self.borders:
            self.borders[key] = self._call(start, border_cells, self.mask, self.index, *key)
        return self.borders[key]

    def _coarse(self, node: fx.Node) -> tuple[fx.Node | None, HW[int]]:
        """Return the coarse path's value, and how much larger its cells are, if it has the map."""
        other = self.counterparts.get(_original_key(node))
        if other is None or self.place(other).pooled:
            return None, (1, 1)
        mine, its = self.reduction(node), self.reduction(other)
        return self.whole[other], (its[0] // mine[0], its[1] // mine[1])

    def _result(self, node: fx.Node, fill: float) -> fx.Node:
        value = self.tiles[node]
        place = (self.mask, self.index, value.start, value.chain, self._cells(node), fill)
        return self._call(node, put_tiles, value.node, *place)


def _is_large(node: fx.Node) -> bool:
    return info(node).key[0].startswith("large:")


def _original_key(node: fx.Node) -> tuple[Any, ...]:
    """Return what is the same in the keys of a value of the fine path and of the coarse path."""
    path, _, target, count = info(node).key
    if _is_large(node):
        path, target = path.removeprefix("large:"), target.rpartition(":")[0]
    return path, target, count


def _padding_value(analysis: Analysis, site: SpatialOp) -> float | None:
    """Return the number that an operator pads its map with; None if it is not known to do that."""
    operator, node = site.operator, site.node
    module = analysis.recording.module(node) if node.op == "call_module" else None
    if site.local or operator.refusal or operator.last != -1:
        return None
    if any(w.tap and max(*w.pads(n)) > 0 for w in operator.windows for n in range(64, 128)):
        return None  # a removed pool repeats the cells at the border
    if operator.kind == "conv" and getattr(module, "padding_mode", "zeros") == "zeros":
        return 0.0
    if operator.kind == "max_pool":
        return -math.inf
    padded = any(w.padding != 0 or w.ceil for w in operator.windows)
    if operator.kind == "avg_pool" and (not padded or getattr(module, "count_include_pad", False)):
        return None if any(w.ceil for w in operator.windows) else 0.0
    unpadded = not padded and all(w.kernel == w.step for w in operator.windows)
    return 0.0 if operator.kind == "merge" and unpadded else None
