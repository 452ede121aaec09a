"""Checks that a graph can stand for the forward code: in both modes, at other input sizes."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from torch import fx

from stridesurgery._analysis import Analysis
from stridesurgery._node import Key, info
from stridesurgery._rewrite.plan import Draft, Plan
from stridesurgery.errors import GridError, OperatorError


def check_same_maps(analysis: Analysis, planned: Plan, draft: Draft) -> None:
    """Refuse a graph that gives a module another map in train mode: calls are matched by order.

    Raises:
        GridError: naming the module.
    """
    if len(draft.recordings) == 1:
        return
    train, evaluation = (draft.recordings[mode].shapes for mode in (True, False))
    for key, shape in evaluation.items():
        if key[1] == "call_module" and train.get(key, shape) != shape:
            raise GridError(
                f"{key[2]} gets another map in train mode than in eval mode: the forward code "
                "differs between the modes in a way that a graph cannot follow. Make the strides "
                "modules"
            )


def check_alike(evaluation: fx.Graph, training: fx.Graph, keys: Iterable[Key]) -> None:
    """Refuse functions called more often in one mode: calls are matched by their number.

    Raises:
        GridError: naming the place where they do not.
    """
    counts = [
        Counter((*info(n).key[:3], info(n).key[3] < 0) for n in graph.nodes)
        for graph in (evaluation, training)
    ]
    for path, op, target, number in keys:
        family = (path, op, target, number < 0)
        if op != "call_module" and counts[0][family] != counts[1][family]:
            raise GridError(
                f"{path or 'the forward code'} calls {target} {counts[0][family]} times in eval "
                f"mode and {counts[1][family]} times in train mode, which no graph can tell apart. "
                "Make them modules"
            )


def check_output_kind(graph: fx.Graph) -> None:
    """Refuse outputs that a graph cannot build: tensors and numbers in plain containers."""

    def check(value: Any) -> None:
        if not isinstance(value, (fx.Node, int, float, str, type(None))):
            raise OperatorError(
                f"the model returns a {type(value).__name__}, which a graph cannot build"
            )

    output = next(n for n in graph.nodes if n.op == "output")
    fx.node.map_aggregate(output.args[0], check)
