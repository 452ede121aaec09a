"""Finds one map per reduction: what a stage returns before the next grid, or the answer."""

from collections.abc import Sequence
from fractions import Fraction

from torch import fx, nn

from stridesurgery._features.candidates import Values, ends_of, outermost, straight_back
from stridesurgery._hw import HW
from stridesurgery._node import info, returned
from stridesurgery.ops import function_traits


def stage_ends(values: Values) -> list[fx.Node]:
    """Return the last map of every reduction, finest first; none where all are inside blocks."""
    by_reduction: dict[HW[Fraction], list[fx.Node]] = {}
    made = {n for site in values.analysis.layers for n in [site.node] if n in values.position}
    for node in values.order:
        if any(s in made for s in values.sources[node]):
            made.add(node)
        if node in made and node in values.maps:
            by_reduction.setdefault(values.reduction[node], []).append(node)
    refined = _refined(values)
    found = (
        _last(values, maps, refined)
        for _, maps in sorted(by_reduction.items())
        if _goes_on(values, maps)
    )
    return [node for node in found if node is not None]


def last_tokens(values: Values) -> list[fx.Node]:
    """Return the last block's tokens, of every reduction that has no map after its tokens."""
    last: dict[HW[Fraction], fx.Node] = {}
    for node in values.order:
        summed = function_traits(node).arithmetic and len(values.sources[node]) > 1
        if summed and node in values.tokens and node in values.closed:
            last[values.reduction[node]] = node
        elif node in values.maps:
            last.pop(values.reduction[node], None)
    return [node for _, node in sorted(last.items())]


def _goes_on(values: Values, maps: Sequence[fx.Node]) -> bool:
    """Return True if a reduction's maps lead to coarser ones or the answer (gates do not)."""
    grid_of, own = values.analysis.grid_of, values.reduction[maps[0]]
    users = {
        u
        for n in values.order
        if not grid_of[n].pooled and values.reduction[n] == own
        for u in n.users
    }
    leaving = returned(values.analysis.recording.graph)
    return any(
        u in leaving or (u in grid_of and (grid_of[u].pooled or values.reduction[u] > own))
        for u in users
    )


def _refined(values: Values) -> set[fx.Node]:
    """Return the values that coarser maps came back into, upsampled (HRNet, feature pyramids)."""
    upsampled = {
        s.node: s.before.reassembled.reduction
        for s in values.analysis.spatial_ops
        if s.operator.kind == "resize"
    }
    coarsest: dict[fx.Node, HW[Fraction]] = {}
    for node in values.order:
        found = [coarsest[n] for n in values.sources[node] if n in coarsest]
        if node in upsampled:
            found.append(upsampled[node])
        if found:
            coarsest[node] = max(found)
    return {node for node, reduction in coarsest.items() if reduction > values.reduction[node]}


def _last(values: Values, maps: Sequence[fx.Node], refined: set[fx.Node]) -> fx.Node | None:
    """Return the last map of a reduction that is not inside a block."""
    merged = [n for n in maps if n in refined]
    if merged:
        return outermost(merged)
    closed = [n for n in maps if n in values.closed]
    if not closed:  # several values lead on from every map: what a module returns beside others
        ends = [n for n in maps if ends_of(n)]
        return outermost(ends) if ends else None
    return _given_to_the_next(values, closed[-1], closed) or outermost(
        straight_back(values, closed)
    )


def _given_to_the_next(values: Values, last: fx.Node, closed: Sequence[fx.Node]) -> fx.Node | None:
    """Return the input of the block that leads to the next grid, where the last map is inside it.

    A block may widen, norm or mix its map before it strides, and a stage may begin with a whole
    block at the old grid. The map that is meant is what the module before it has returned; of
    modules within each other, the innermost that has one before it.
    """
    for path in _around(str(info(last).path)):
        given = next((n for n in reversed(closed) if not _is_inside(n, path)), None)
        row = path.rpartition(".")[0]
        if given is None or row not in [end.rpartition(".")[0] for end in ends_of(given, own=True)]:
            continue
        if not _begins_the_next(values, last, path):
            continue
        if _is_row(values, row):
            return given
        if _ends_a_block(values, last):
            return last
        if not any(len(values.sources[n]) > 1 for n in _between(values, given, last)):
            return given  # else whole blocks lie between, which are a stage of their own
    return None


def _between(values: Values, first: fx.Node, last: fx.Node) -> Sequence[fx.Node]:
    return values.order[values.position[first] + 1 : values.position[last] + 1]


def _around(path: str) -> list[str]:
    """Return the modules around a place, innermost first; not the whole model."""
    parts = path.split(".") if path else []
    return [".".join(parts[:count]) for count in range(len(parts), 0, -1)]


def _is_inside(node: fx.Node, path: str) -> bool:
    return f"{info(node).path}.".startswith(f"{path}.")


def _begins_the_next(values: Values, last: fx.Node, path: str) -> bool:
    """Return True if a module goes on to coarser grids: it is no stage that ends with a pool."""
    own = values.reduction[last]
    inside = [values.reduction[n] for n in values.order if _is_inside(n, path)]
    return sum(r > own for r in inside) > sum(r == own for r in inside)


def _is_row(values: Values, path: str) -> bool:
    """Return True if a module only runs others in turn."""
    return type(values.analysis.recording.model.get_submodule(path)) in (
        nn.Sequential,
        nn.ModuleList,
        nn.ModuleDict,
    )


def _ends_a_block(values: Values, node: fx.Node) -> bool:
    """Return True if one of a row of modules with modules of their own returns a value."""
    return any(_is_row(values, end.rpartition(".")[0]) for end in ends_of(node) if "[" not in end)
