"""Constants of a model that fix the size of its maps although every shape fits.

Shapes alone do not show a table that is tiled or looked up beyond its end: these rules look at what
parameters and buffers meet in the graph.
"""

import math
import operator as py
from collections import defaultdict
from typing import Any

from torch import fx

from stridesurgery._analysis import Analysis
from stridesurgery._node import (
    BATCH,
    Key,
    Shape,
    called,
    info,
    origins,
    returned,
    shape_of,
    tensors_in,
)
from stridesurgery._trace import Recording
from stridesurgery.errors import GridError
from stridesurgery.ops import function_traits, module_traits


def check_constants(original: Recording, operated: Recording, compared: bool) -> None:
    """Refuse constants that were made for the number of cells the maps had.

    Args:
        original: the recording of the untouched model.
        operated: that of the operated model; what follows its maps there is right.
        compared: whether those were compared with the untouched model on a larger input.

    Raises:
        GridError: naming the parameter or buffer.
    """
    now, followed = operated.shapes, _followed(original, operated)
    _check_windows(original, now, followed)
    for node in original.graph.nodes:
        traits = (
            module_traits(original.module(node))
            if node.op == "call_module"
            else function_traits(node)
        )
        if traits.looks_up:
            _check_lookup(original, node, now, followed)
        elif traits.arithmetic and not compared:
            _check_broadcast(node, now, followed)


def _followed(original: Recording, operated: Recording) -> set[str]:
    """Return the tables that follow the maps, and the buffers that have another size now."""
    shapes = {n.target: shape_of(n) for n in original.graph.nodes if n.op == "get_attr"}
    tables = {
        f"{path}.{name}".removeprefix(".")
        for path, module in operated.model.named_modules()
        for name in vars(module).get("position_tables", ())
    }
    read = [n for n in operated.graph.nodes if n.op == "get_attr"]
    return tables | {n.target for n in read if shape_of(n) != shapes.get(n.target, shape_of(n))}


def check_reads(original: Analysis, operated: Recording) -> None:
    """Refuse operators that read a fixed part of a map that has grown, and outputs whose batch has.

    Raises:
        GridError: naming the place.
    """
    now = operated.shapes
    parts = {
        info(n).key: info(n).parts
        for n in original.recording.graph.nodes
        if info(n).parts is not None
    }
    for node in operated.graph.nodes:
        if info(node).parts != parts.get(info(node).key, info(node).parts):
            raise GridError(
                f"{info(node).path or node.name} splits a map into pieces of a fixed size, of "
                f"which there would be {info(node).parts} instead of {parts[info(node).key]}. "
                "Choose a transition after this place"
            )
    for site in original.spatial_ops:
        if site.operator.kind == "global" and _changed(site.node, now):
            raise GridError(
                f"{site.name} pools its whole map with a kernel of "
                f"{site.operator.kernel[0]}x{site.operator.kernel[1]} cells, which the larger map "
                "exceeds. Use adaptive pooling there, or operate on `features(model)`, which "
                "leaves the head out"
            )
    for node in original.recording.graph.nodes:
        name = called(node)
        if function_traits(node).reads_part and node.args and _reads_part(node, now):
            raise GridError(
                f"the value at {info(node).path or node.name} leaves the grid: {name} reads a "
                "fixed part of a map that would grow. Choose a transition after this place"
            )
    for result in tensors_in(node.args for node in returned(original.recording.graph)):
        before = shape_of(result) or ()
        after = now.get(info(result).key, before)
        if before[:1] == (BATCH,) != after[:1]:
            raise GridError(
                f"the output {result.name} would hold {after[0] / BATCH:g} results an image: the "
                "model folds the larger maps into its batch. Choose a transition after the place "
                "where it does, or operate on `features(model)`, if only its head does so"
            )


def _reads_part(node: fx.Node, now: dict[Key, Shape]) -> bool:
    source, before = node.args[0], shape_of(node)
    if (
        not isinstance(source, fx.Node)
        or before is None
        or origins(source)
        or info(source).key not in now
    ):
        return False
    was, grown = shape_of(source) or (), now[info(source).key]
    axes = [i for i, (a, b) in enumerate(zip(grown, was, strict=False)) if a != b]
    if not axes:
        return False
    index = node.args[1] if node.target is py.getitem else None
    if not isinstance(index, tuple) or any(
        not isinstance(i, (int, slice, type(Ellipsis))) for i in index
    ):
        return not _changed(node, now) and math.prod(grown) > math.prod(was)
    if Ellipsis in index:
        at = index.index(Ellipsis)
        index = (*index[:at], *(slice(None),) * (len(was) - len(index) + 1), *index[at + 1 :])
    read = [axis for axis in axes if axis < len(index) and _is_fixed(index[axis])]
    return bool(read) and not (len(axes) == 1 and _is_first_tokens(index[axes[0]]))


def _is_fixed(item: Any) -> bool:
    return isinstance(item, int) or (
        isinstance(item, slice) and isinstance(item.stop, int) and item.stop > 0
    )


def _is_first_tokens(item: Any) -> bool:
    """Return True if an index reads the first tokens (class, distillation, registers)."""
    if isinstance(item, slice):
        return item.start in (None, 0) and item.stop <= 8
    return item in (0, 1)


def _changed(node: fx.Node, now: dict[Key, Shape]) -> bool:
    shape = shape_of(node)
    return shape is not None and now.get(info(node).key, shape) != shape


def _check_windows(original: Recording, now: dict[Key, Shape], followed: set[str]) -> None:
    """Refuse one entry per window (Swin's attention mask): it would be tiled over more windows."""
    # by module: the numbers of windows that are not so any more
    windows: dict[str, set[int]] = defaultdict(set)
    for key, before in original.shapes.items():
        after = now.get(key, before)
        if before and after and after[0] != before[0] and before[0] % BATCH == 0:
            windows[key[0]].add(before[0] // BATCH)
    for node in original.graph.nodes:
        shape = shape_of(node) or ()
        while shape and shape[0] == 1:
            shape = shape[1:]
        is_table = node.op == "get_attr" and sum(n > 1 for n in shape[1:]) > 1
        if is_table and node.target not in followed and shape[0] in windows[info(node).path]:
            raise GridError(
                f"{node.target} fixes the size of the maps: it holds one entry for each of "
                f"{shape[0]} windows, of which there would be more. Build the model for any size "
                "(timm: strict_img_size=False) and try again"
            )


def _check_lookup(
    original: Recording, node: fx.Node, now: dict[Key, Shape], followed: set[str]
) -> None:
    """Refuse a table that is looked up at positions computed from the size: it may be too short."""
    table, *index = (*node.args, *node.kwargs.values())
    names: list[str] = []
    if node.op == "call_module":
        names, index = [f"{node.target}.weight"], [table]
    elif isinstance(table, fx.Node):
        names = origins(table)
    if not followed.issuperset(names) and any(_changed(i, now) for i in tensors_in(index)):
        raise GridError(
            f"the size of the maps is fixed by {', '.join(names)}: {info(node).path or node.name} "
            "looks it up at positions of the maps, of which there would be more. Choose a "
            "transition after this place"
        )


def _check_broadcast(node: fx.Node, now: dict[Key, Shape], followed: set[str]) -> None:
    """Refuse a position table of one window (NesT) that would be repeated for several."""
    operands: list[Any] = [
        a for a in node.args if isinstance(a, fx.Node) and shape_of(a) is not None
    ]
    for table, value in ((a, b) for a in operands for b in operands if a is not b):
        lengths, before = shape_of(table) or (), shape_of(value) or ()
        after = now.get(info(value).key, before)
        if (
            sum(n > 1 for n in lengths) < 2
            or len(after) != len(before)
            or len(lengths) > len(before)
        ):
            continue  # per channel at most: the same for every cell
        grown = (
            n == 1 == b < a
            for n, b, a in zip(
                lengths, before[-len(lengths) :], after[-len(lengths) :], strict=True
            )
        )
        if any(grown) and not followed.issuperset(names := origins(table)):
            raise GridError(
                f"the size of the maps is fixed by {', '.join(names)}: "
                f"{info(node).path or node.name} would repeat it over the cells that are new. "
                "Choose a transition after this place"
            )
