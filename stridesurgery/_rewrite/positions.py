"""Lets what fixes a grid's size follow a finer one: position tables, windows, configured sizes."""

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

from torch import fx, nn

from stridesurgery._analysis import Analysis
from stridesurgery._hw import HW
from stridesurgery._node import info, tensors_in
from stridesurgery._rewrite.plan import Plan
from stridesurgery._trace import copied_model
from stridesurgery.errors import OperatorError
from stridesurgery.ops import Cells, Growth, Operator, follow_grid, follow_of


def follow_positions(model: nn.Module, analysis: Analysis, planned: Plan) -> None:
    """Let the modules of a copy of the analysed model follow its finer maps.

    Raises:
        OperatorError: a module cannot follow as planned.
    """

    def factor(reduction: HW[Fraction]) -> HW[int]:
        new = planned.reduction(reduction)
        return int(reduction[0] / new[0]), int(reduction[1] / new[1])

    changed = {change.site.node: change.operator for change in planned.changes}
    new = _new_grids(analysis, changed, analysis.recording.size, factor)
    _follow(model, _growths(analysis, new, factor), planned.surgery.positions)


def enlarged(model: nn.Module, analysis: Analysis, size: HW[int], positions: str) -> nn.Module:
    """Return a copy of the analysed model that follows an image about some whole times larger.

    It is the model itself where it is not asked to follow, or nothing in it can.
    """
    if positions == "refuse" or not knows_positions(model):
        return model
    model, (h, w) = copied_model(model), analysis.recording.size
    k = round(size[0] / h), round(size[1] / w)
    new = _new_grids(analysis, {}, size, lambda reduction: k)
    _follow(model, _growths(analysis, new, lambda reduction: k), positions)
    return model


def knows_positions(model: nn.Module) -> bool:
    """Return True if something in the model can follow a finer grid."""
    return any(follow_of(module) is not None for module in model.modules())


def _follow(model: nn.Module, growths: dict[str, Growth], positions: str) -> None:
    for path, module in list(model.named_modules()):
        follow = follow_of(module)
        if follow is None:
            continue

        def growth(name: str, path: str = path) -> Growth:
            place = ".".join(filter(None, (path, name)))
            while place and place not in growths:  # a module that runs as part of another
                place = place.rpartition(".")[0]
            return growths[place]

        try:
            follow_grid(module, follow, growth)
        except NotImplementedError as problem:
            raise OperatorError(f"{path or 'the model'} cannot follow: it {problem}") from problem
        except (AttributeError, LookupError, TypeError, ValueError) as problem:
            what = f"{type(problem).__name__}: {problem}"
            raise OperatorError(
                f"{path or 'the model'} ({type(module).__name__}) cannot follow, it is not as its "
                f"entry expects ({what}). Teach this version with "
                "stridesurgery.ops.register_positions"
            ) from problem
    if positions == "resample-timm":
        for module in model.modules():
            tables = vars(module).get("position_tables", {})
            for name, table in tables.items():
                if not isinstance(table, str):
                    tables[name] = replace(table, half_pixel=True)


Factor = Callable[[HW[Fraction]], HW[int]]
_WINDOWED = ("conv", "max_pool", "avg_pool", "blur_pool", "merge", "slice")


def _new_grids(
    analysis: Analysis, changed: dict[fx.Node, Operator], size: HW[int], factor: Factor
) -> dict[fx.Node, HW[int]]:
    """Return the cells of every map with these operators changed, on an image of another size."""
    sites = {site.node: site for site in analysis.spatial_ops}
    new: dict[fx.Node, HW[int]] = {}
    for node, place in analysis.grid_of.items():
        sources = [s for s in tensors_in([node.args, node.kwargs]) if s in new]
        alike = [s for s in sources if analysis.grid_of[s].grid == place.grid]
        source = next(iter(alike or sources), None)
        operator = changed.get(node) or (sites[node].operator if node in sites else None)
        if source is None:
            new[node] = size
        elif operator is not None and operator.kind in _WINDOWED and not sites[node].local:
            rows, columns = operator.windows
            new[node] = rows.finer_cells(new[source][0]), columns.finer_cells(new[source][1])
        elif place.grid == analysis.grid_of[source].grid or place.grid is None:
            new[node] = new[source]
        else:
            down, right = factor(place.reduction)
            new[node] = place.grid[0] * down, place.grid[1] * right
    return new


def _growths(analysis: Analysis, new: dict[fx.Node, HW[int]], factor: Factor) -> dict[str, Growth]:
    """Return what becomes of the maps that enter and leave each module that runs, by its path."""

    def cells(node: fx.Node) -> Cells:
        place = analysis.grid_of[node]
        return Cells(place.grid or (0, 0), new[node], factor(place.reduction))

    first, last, returned = dict[str, fx.Node](), dict[str, fx.Node](), dict[str, fx.Node]()
    for node in analysis.grid_of:
        sources = [s for s in tensors_in([node.args, node.kwargs]) if s in new]
        path = str(node.target) if node.op == "call_module" else info(node).path
        while True:
            first.setdefault(path, sources[0] if sources else node)
            last[path] = node
            if not path:
                break
            path = path.rpartition(".")[0]
        for end in info(node).ends:
            returned.setdefault(end.partition("[")[0], node)
    ends = last | returned
    return {path: Growth(cells(node), cells(ends[path])) for path, node in first.items()}
