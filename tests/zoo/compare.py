"""The witness's operators beside the strided layers of `inspect`, module by module, and why they differ if they do."""

import math
from collections import defaultdict
from dataclasses import dataclass

from torch import nn

from stridesurgery import Layer, Report
from tests.zoo.witness import Event, Witness


@dataclass(frozen=True)
class Comparison:
    """What the witness says of a model's strided layers."""

    events: int  # operators that shrank a map
    layers: int  # strided layers of `inspect`
    accounted: tuple[str, ...]  # differences whose cause the code below can name
    open: tuple[str, ...]  # differences it cannot: a stride that `inspect` misses or invents

    def __str__(self) -> str:
        if not self.accounted and not self.open:
            return "agrees"
        return "; ".join([*(f"DISAGREES: {text}" for text in self.open), *self.accounted])


def compare(model: nn.Module, report: Report, witness: Witness) -> Comparison:
    """Match operators with layers by the module in which both ran."""
    modules = dict(model.named_modules())
    strided = [layer for layer in report.layers if layer.index in report.strided]
    layers: dict[str, list[Layer]] = defaultdict(list)
    for layer in strided:
        layers[layer.name if layer.name in modules else layer.name.rpartition(".")[0]].append(layer)
    events: dict[str, list[Event]] = defaultdict(list)
    for event in witness.events:
        events[_owner(event.path, layers)].append(event)
    accounted, unexplained = [], []
    for path in [*layers, *(p for p in events if p not in layers)]:
        if len(events[path]) == len(layers[path]):
            continue
        why = _reason(path, layers[path], events[path], witness, modules)
        (accounted if why else unexplained).append(
            why or _difference(path, layers[path], events[path])
        )
    return Comparison(len(witness.events), len(strided), tuple(accounted), tuple(unexplained))


def _owner(path: str, layers: dict[str, list[Layer]]) -> str:
    """The module of a layer at or around `path`, else `path` itself."""
    around = path
    while around and around not in layers:
        around = around.rpartition(".")[0]
    return around if around in layers else path


def _reason(
    path: str,
    layers: list[Layer],
    events: list[Event],
    witness: Witness,
    modules: dict[str, nn.Module],
) -> str | None:
    kinds = sorted({event.operator for event in events})
    calls = f"{len(events)} x {', '.join(kinds)}"
    if (
        layers
        and len(events) > len(layers)
        and len(kinds) == 1
        and len({e.after for e in events}) == 1
    ):
        return f"{calls} make up {len(layers)} layer in {path} ({type(modules[path]).__name__})"
    if layers and not events and all(layer.operator in ("view", "reshape") for layer in layers):
        return f"{layers[0].operator} in {path} lays blocks of cells over channels; nothing shrinks"
    if layers:
        return None
    if all("adaptive" in kind for kind in kinds):
        return f"{calls} in {path}: pools to a fixed size"
    if all(len(event.axes) == 1 and max(event.axes) == len(event.before) - 1 for event in events):
        return f"{calls} in {path}: along one axis, the last"
    if kinds == ["unfold"] and all(
        math.prod(event.after) >= math.prod(event.before) for event in events
    ):
        return f"{calls} in {path}: overlapping windows, which drop no cell"
    keeper = witness.keeper(path)
    if keeper is not None:
        return f"{calls} inside {keeper} ({type(modules[keeper]).__name__}), whose output has its input's grid"
    return None


def _difference(path: str, layers: list[Layer], events: list[Event]) -> str:
    listed = ", ".join(f"L{layer.index} {layer.operator}" for layer in layers) or "no layer"
    seen = ", ".join(map(str, events)) or "no operator that shrinks"
    return f"{path or 'the model'} has {listed} but {seen}"
