"""Proof that a dilated network's values are the original's, phase by phase, from shapes alone."""

import math

from torch import fx

from stridesurgery._analysis import Analysis, GridInfo, beyond
from stridesurgery._node import BATCH, Shape, info, shape_of
from stridesurgery._rewrite.plan import Plan
from stridesurgery._rewrite.rearrange import place_of
from stridesurgery._trace import Recording
from stridesurgery.errors import GridError


def batch_axes(shape: Shape) -> list[int]:
    """Return the axes that the images of a recording's batch may lie along."""
    return [i for i, length in enumerate(shape) if length and length % BATCH == 0]


def check_phases(original: Analysis, dilated: Recording, planned: Plan) -> int:
    """Compare every value of a dilated network with the original's: same shape, in each phase.

    Returns:
        How many values were compared.

    Raises:
        GridError: naming the first that differs.
    """
    now = {info(n).key: n for n in dilated.graph.nodes}
    before = {info(n).key: n for n in original.recording.graph.nodes}
    changed = {info(c.site.node).key for c in planned.changes}
    count = 0
    for key, node in before.items():
        was, new = shape_of(node), shape_of(now.get(key))
        if was is None or new is None or node.op in ("get_attr", "output") or key in changed:
            continue
        place = original.grid_of.get(node)
        # what is made for a batch of a length that was read (class tokens) is not told by a
        # reduction
        transitions = [
            c for c in planned.transitions if place is None or beyond(place.reduction, c.before)
        ]
        factors = [
            math.prod(int(c.by[0] * c.by[1]) for c in transitions[:n])
            for n in range(1, len(transitions) + 1)
        ]
        allowed = [
            was,
            *(
                shape
                for k in (factors if place is None else factors[-1:])
                for shape in _batched(was, k)
            ),
        ]
        if new not in allowed:
            where = info(node).path or node.name
            raise GridError(
                f"the value at {where} would become {new} where {' or '.join(map(str, allowed))} "
                "was expected: the model mixes the images of a batch. Choose a transition after "
                "this place"
            )
        count += 1
    return count


def check_no_map(node: fx.Node, place: GridInfo) -> None:
    """Refuse to return one phase of a value that looks like a map of unknown grid.

    Raises:
        GridError: its cells cannot be put together.
    """
    shape = shape_of(node) or ()
    if (
        len(shape) == 4
        and not place.pooled
        and place.grid is not None
        and min(*shape[2:], *shape[1:3]) > 1
    ):
        raise GridError(
            f"the output at {place_of(node)}, {shape}, has the form of a map, and its cells come "
            "from operators that are not understood, so that its phases cannot be put together. "
            "Leave dilate out, or choose a later transition"
        )


def _batched(shape: tuple[int, ...], factor: int) -> list[tuple[int, ...]]:
    """Return the shapes with a batch `factor` times as long, windows and heads beside it or not."""
    return [(*shape[:i], shape[i] * factor, *shape[i + 1 :]) for i in batch_axes(shape)]
