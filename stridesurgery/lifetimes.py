"""When a network lets go of what its calls have made: as forward code that runs does, or as a graph does."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from torch import fx

from stridesurgery.memory import Event
from stridesurgery.meter import Spent
from stridesurgery.traced import Key

Piece = tuple[Key, int]  # who made it, and the how manyth of what outlived the call
Deaths = Mapping[Key, Sequence[Piece]]  # what goes right after a call


def deaths_in_a_run(spent: Mapping[Key, Spent], events: Sequence[Event]) -> Deaths | None:
    """What a run of the forward code let go, and when, by the calls of its recording.

    `events` begin with the image. None: the run made other pieces than its recording did.
    """
    made = [(key, i, size) for key, call in spent.items() for i, size in enumerate(call.pieces)]
    taken = [number for number, size in events if size > 0][1:]
    sizes = [size for _, size in events if size > 0][1:]
    if sizes != [size for _, _, size in made]:
        return None
    maker = {
        number: (key, spent[key].kept.index(i))
        for number, (key, i, _) in zip(taken, made, strict=True)
        if i in spent[key].kept
    }
    call = dict(zip(taken, (key for key, _, _ in made), strict=True))
    deaths: dict[Key, list[Piece]] = defaultdict(list)
    last: Any = None
    for number, size in events[1:]:
        if size > 0:
            last = call[number]
        elif number in maker:
            deaths[last].append(maker[number])
    return deaths


def deaths_in_a_graph(graph: fx.Graph) -> Deaths:
    """What a graph lets go, and when: a value right after its last use, with all that share its memory."""
    nodes = list(graph.nodes)
    position = {node: i for i, node in enumerate(nodes)}
    maker: dict[Any, Piece] = {}
    last: dict[Any, int] = {}
    for node in nodes:
        label = node.meta.get("memory")
        if label is None:
            continue
        if label not in maker:
            maker[label] = _maker(node)
        uses = [position[node], *(position[user] for user in node.users)]
        last[label] = max(last.get(label, 0), *uses)
    deaths: dict[Key, list[Piece]] = defaultdict(list)
    for label, index in last.items():
        if nodes[index].op != "output":
            deaths[nodes[index].meta["key"]].append(maker[label])
    return deaths


def _maker(node: fx.Node) -> Piece:
    """The call that makes a value's memory: of a part of several it is the call that gives them all."""
    source = node.args[0] if node.args else None
    if node.op == "call_function" and isinstance(source, fx.Node) and "parts" in source.meta:
        return source.meta["key"], int(node.args[1])  # type: ignore[arg-type]
    return node.meta["key"], 0
