"""A dual path whose finer half runs only in those tiles where the coarse half asks for it."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, fx, nn

from stridesurgery._analysis import (
    analyse,
)
from stridesurgery._features.tile_graph import TileGraph, describe_call, image_of, maps_of
from stridesurgery._node import returned
from stridesurgery._trace import RewrittenModel, copied, copied_model, rewritten
from stridesurgery.errors import RequestError
from stridesurgery.ops import (
    all_tiles,
)

Choose = Callable[[dict[str, Tensor]], Tensor]


@dataclass(frozen=True)
class Tiling:
    """How a sparse path divides the image."""

    tile: int  #: pixels
    margin: int  #: pixels around the wanted tiles in which the fine path runs as well
    exact_margin: float  #: pixels from which on the wanted cells are the whole fine path's
    budget: int | None  #: tiles that run of each image; None: as many as are wanted


class _Choice(nn.Module):
    """Calls a function, so that a graph can."""

    def __init__(self, choose: Choose) -> None:
        super().__init__()
        self.function = choose

    def forward(self, maps: dict[str, Tensor]) -> Tensor:
        return self.function(maps)


def sparse_path(
    both: RewrittenModel,
    choose: Choose,
    *,
    tile: int,
    margin: int | None = 0,
    budget: int | None = None,
    fill: float = 0.0,
    whole_maps: str = "refuse",
) -> RewrittenModel:
    """Run the fine half of a dual path only in the tiles where its coarse half asks for it.

    The layers that both paths share, and the coarse path, run on the whole image. The tiles run
    through the rest of the fine path as a batch of the same modules. Before each operator with a
    window they fetch its border from the tiles beside them; where no tile runs, the border is the
    coarse path's map of the same layer, enlarged. With no tile chosen the batch is empty.

    Args:
        both: what `dual_path` returned, with combine="split".
        choose: from {"large.11": (N, C, h, w), ...} to (N, h, w) on any grid over the image: bool,
            or scores if there is a budget. A tile is wanted if a chosen cell reaches into it. A
            function, or a module.
        tile: pixels, a multiple of the fine path's largest reduction.
        margin: pixels around the wanted tiles in which the fine path runs as well, rounded up to
            whole tiles. None: as many as make the wanted cells exactly those of the whole fine
            path. With fewer, cells at the border of the wanted tiles are approximate; `verify`
            prints by how much.
        budget: run that many tiles of each image, the ones with the best scores, so that all shapes
            are fixed (export).
        fill: the value of the fine maps where no tile is wanted.
        whole_maps: where the fine path reads a whole map (squeeze-excite): "refuse", or take the
            "coarse" path's value.

    Returns:
        A graph module as `both`, whose eval graph returns {"small.11": ..., "large.11": ...,
        "tiles": (N, rows, columns) bool}. Its `tiling` has the exact margin. In train mode it is
        the dual path, with all tiles wanted.

    Raises:
        RequestError: `both` is no dual path; a tile, margin or budget that does not fit.
        OperatorError: an operator of the fine path that is not known to work on windows, or reads a
            whole map.
        GridError: the fine path makes maps that have no tiles.

    Example:
        >>> import timm, torch, stridesurgery as ss
        >>> model = timm.create_model("resnet18").eval()
        >>> both = ss.dual_path(model, "S1L6", taps="layer3", input_size=128)
        >>> bright = lambda maps: maps["large.layer3"].mean(1) > 0.9
        >>> sparse = ss.sparse_path(both, bright, tile=32)
        >>> {name: tuple(map_.shape) for name, map_ in sparse(torch.rand(1, 3, 128, 128)).items()}
        {'small.layer3': (1, 256, 16, 16), 'large.layer3': (1, 256, 8, 8), 'tiles': (1, 4, 4)}
    """
    _check(both, whole_maps, tile, margin, budget)
    analysis = analyse(both, both.surgery.input_size)  # type: ignore[union-attr]
    cut = TileGraph(analysis, tile, whole_maps)
    exact = _exact_margin(cut)
    margin = margin if margin is not None else math.ceil(exact) if math.isfinite(exact) else None
    if margin is None:
        raise RequestError("no margin is exact where a cell sees the whole image; give one")
    graph = cut.graph(math.ceil(margin / tile), budget, fill)
    result = copied_model(both)
    result.add_module("choose", choose if isinstance(choose, nn.Module) else _Choice(choose))
    sparse = rewritten(result, _with_all_tiles(both.graphs[True], tile), graph, None)
    sparse.tiling = Tiling(tile, margin, exact, budget)  # type: ignore[assignment]
    return sparse


def _exact_margin(cut: TileGraph) -> float:
    """Return the pixels around a tile that its cells see in the fine path (the larger side)."""
    most = math.inf if any(cut.place(n).pooled for n in cut.fine) else 0.0
    for node in cut.maps_of_grid([n for n in cut.maps.values() if n in cut.own]):
        for axis in range(2):
            tap = cut.place(node).geometry[axis]
            for start in cut.starts:
                if cut.place(start).pooled:
                    continue
                seen = cut.place(start).geometry[axis]
                step, cell = seen.step, cut.reduction(node)[axis]
                before = seen.bounds()[0] - tap.bounds()[0]
                after = tap.bounds()[1] - seen.bounds()[1] - cell + step
                most = max(most, before, after)
    return most


def with_choice(sparse: RewrittenModel, choose: Choose) -> RewrittenModel:
    """Return a copy of a sparse path that asks another function."""
    other = copied_model(sparse, apart=True)
    other.add_module("choose", _Choice(choose))
    assert isinstance(other, RewrittenModel)
    return other


def _check(
    both: RewrittenModel, whole_maps: str, tile: int, margin: int | None, budget: int | None
) -> None:
    if whole_maps not in ("refuse", "coarse"):
        raise RequestError(f"whole_maps is 'refuse' or 'coarse', got {whole_maps!r}")
    for name, value, least in (("tile", tile, 1), ("margin", margin, 0), ("budget", budget, 1)):
        if value is not None and (type(value) is not int or value < least):
            raise RequestError(f"{name} is an int of at least {least}, got {value!r}")
    if budget is not None and margin != 0:
        raise RequestError("a budget fixes how many tiles run: leave the margin at 0")
    names = list(maps_of(both.graphs[False])) if isinstance(both, RewrittenModel) else []
    if {name.partition(".")[0] for name in names} != {"small", "large"} or "+" in "".join(names):
        raise RequestError(
            "sparse_path takes what dual_path returns, with combine='split' and maps of both paths"
        )
    if both.only_at is not None:
        raise RequestError(
            f"the model computes with sizes fixed at {both.only_at}; tiles have others"
        )
    if hasattr(both, "choose"):
        raise RequestError("the model has an attribute .choose of its own; rename it")


def _with_all_tiles(graph: fx.Graph, tile: int) -> fx.Graph:
    graph = copied(graph)
    output = returned(graph)[0]
    with graph.inserting_before(output):
        mask = graph.call_function(all_tiles, (image_of(graph), tile))
    describe_call(mask, image_of(graph), "all_tiles")
    output.args = ({**maps_of(graph), "tiles": mask},)
    return graph
