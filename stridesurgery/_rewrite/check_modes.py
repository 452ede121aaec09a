"""Whether a graph can stand for the forward code: in both modes, at other input sizes."""

from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from torch import fx, nn

from stridesurgery._analysis import Analysis
from stridesurgery._node import BATCH, Key
from stridesurgery._rewrite.plan import Draft, Plan
from stridesurgery._trace import Recording, record
from stridesurgery.errors import GridError, OperatorError, TraceError


def check_same_maps(analysis: Analysis, planned: Plan, draft: Draft) -> None:
    """Refuse a graph that gives a module another map in train mode: calls were matched by their order.

    Raises:
        GridError: naming the module.
    """
    if len(draft.recordings) == 1:
        return
    train, evaluation = (draft.recordings[mode].shapes for mode in (True, False))
    for key, shape in evaluation.items():
        if key[1] == "call_module" and train.get(key, shape) != shape:
            raise GridError(
                f"{key[2]} gets another map in train mode than in eval mode: the forward code differs between the "
                "modes in a way that a graph cannot follow. Make the strides modules"
            )


def check_alike(evaluation: fx.Graph, training: fx.Graph, keys: Iterable[Key]) -> None:
    """Functions are matched between the modes by the number of their call, so both must call them as often.

    Raises:
        GridError: naming the place where they do not.
    """
    counts = [Counter(n.meta["key"][:3] for n in graph.nodes) for graph in (evaluation, training)]
    for path, op, target, _ in keys:
        family = (path, op, target)
        if op != "call_module" and counts[0][family] != counts[1][family]:
            raise GridError(
                f"{path or 'the forward code'} calls {target} {counts[0][family]} times in eval mode and "
                f"{counts[1][family]} times in train mode, which no graph can tell apart. Make them "
                "modules"
            )


def check_output_kind(graph: fx.Graph) -> None:
    """A graph can return tensors and numbers in tuples, lists and dicts."""

    def check(value: Any) -> None:
        if not isinstance(value, (fx.Node, int, float, str, type(None))):
            raise OperatorError(f"the model returns a {type(value).__name__}, which a graph cannot build")

    output = next(n for n in graph.nodes if n.op == "output")
    fx.node.map_aggregate(output.args[0], check)


def is_fixed_size(meta_model: nn.Module, recording: Recording) -> bool:
    """Whether a graph holds sizes as constants: whether it would be another one at other input sizes."""
    if recording.missed:
        raise OperatorError(
            f"{recording.missed[0]}, which is lost in a graph; take that out, or leave the result a module"
        )
    h, w = recording.size
    if not recording.compares:  # nothing but sizes that stand in the graph can differ: one other size tells it all
        with suppress(TraceError):
            if str(record(meta_model, (h + 65, w + 67), batch=BATCH + 2).graph) == str(recording.graph):
                return False
    if str(record(meta_model, recording.size, batch=BATCH + 2).graph) != str(recording.graph):
        raise GridError(
            "the model computes with the batch size as a constant (len(x), int(x.shape[0])), which no graph can "
            "follow; use x.shape[0] as it is"
        )
    same = []
    for size in ((h + 64, w), (h + 65, w + 67), (h // 2, w // 2)):  # not square, odd, smaller
        try:
            other = record(meta_model, size)
        except TraceError:
            continue  # the model itself does not take this size
        same.append(str(other.graph) == str(recording.graph))
    return not same or not all(same)
