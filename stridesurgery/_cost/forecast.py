"""Forecast the cost of a surgery from calls that are metered once: no candidate is built or traced.

The peak depends on when each intermediate tensor is freed: in eager execution, or in a torch.fx
graph.
"""

import copy
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import fx

from stridesurgery._analysis import Analysis, SpatialOp, analyse
from stridesurgery._cost.cost import count, run_once
from stridesurgery._cost.memory import MemoryEvent
from stridesurgery._cost.meter import Meter, NodeCost
from stridesurgery._node import Key, info
from stridesurgery._rewrite import Plan, dilated_graph, operate, with_samples
from stridesurgery._trace import one_image
from stridesurgery.errors import SurgeryError
from stridesurgery.ops import FUNCTIONS, MODULES, FunctionRule, Operator

Allocation = tuple[Key, int]  # the call that made it, its index among the pieces kept
Deaths = Mapping[Key, Sequence[Allocation]]  # the allocations that are freed right after a call


@dataclass(frozen=True)
class CostEstimate:
    """Compute and memory of a network for one image."""

    macs: int
    activation_bytes: int
    peak_bytes: int | None  # None: the graph does not tell when the forward code frees values


class Forecast:
    """Add up the costs of operated networks, for any number of plans on one model."""

    def __init__(self, analysis: Analysis) -> None:
        self.analysis = analysis
        recording = analysis.recording
        self._image = one_image(recording)
        self._meter = Meter(recording.model, recording.graph)
        self._changed: dict[Any, Callable[..., Any]] = {}
        spent = self._meter.meter(self._image)
        self._eager = deaths_in_a_run(
            spent, run_once(recording, sum(s.macs for s in spent.values()))
        )
        self._in_graph = deaths_in_a_graph(recording.graph)
        self.original = self._summed(spent, self._eager)

    def of(self, plan: Plan) -> CostEstimate:
        """Estimate the cost of a plan's network.

        Raises:
            OperatorError: an operator cannot take part in a dilation.
        """
        changed = {info(c.site.node).key: self._becomes(c.site, c.operator) for c in plan.changes}
        if plan.phases or plan.samples:
            graph = (dilated_graph if plan.phases else with_samples)(self.analysis, plan)
            if plan.phases:  # in whose graph functions are replaced
                changed = {k: run for k, run in changed.items() if k[1] == "call_module"}
            return self._summed(
                self._meter.on(graph).meter(self._image, changed), deaths_in_a_graph(graph)
            )
        as_graph = plan.surgery.form == "graph" or any(key[1] != "call_module" for key in changed)
        return self._summed(
            self._meter.meter(self._image, changed), self._in_graph if as_graph else self._eager
        )

    def _becomes(self, site: SpatialOp, operator: Operator) -> Callable[..., Any]:
        """Return the callable that runs in place of a spatial operator.

        There is one callable for each operator that it can become.
        """
        node = site.node
        case = (node.target, operator)
        if case not in self._changed:
            if node.op == "call_module":
                module = self.analysis.recording.module(node)
                module = copy.deepcopy(
                    module, {id(t): t for t in (*module.parameters(), *module.buffers())}
                )
                refine = MODULES[type(module)].refine
                assert refine is not None  # else the transition was refused
                refine(module, operator)
                self._changed[case] = module
            else:
                self._changed[case] = partial(_run, FUNCTIONS[node.target], operator)  # type: ignore[index]
        return self._changed[case]

    def _summed(self, spent: Mapping[Key, NodeCost], deaths: Deaths | None) -> CostEstimate:
        macs, made = sum(s.macs for s in spent.values()), sum(s.made for s in spent.values())
        return CostEstimate(
            macs, made, None if deaths is None else self._image.nbytes + _peak(spent, deaths)
        )


def estimates(forecast: Forecast, plans: Sequence[Plan]) -> Iterator[tuple[Plan, CostEstimate]]:
    """Estimate the cost of each plan's network.

    Forward code that compares sizes may take another branch on larger maps. In that case each
    network is built and counted, and plans that `eliminate` refuses are left out.
    """
    analysis = forecast.analysis
    for plan in plans:
        follows = plan.surgery.positions != "refuse"  # whose graph is another one
        if plan.surgery.dilate or not (follows or analysis.recording.compares):
            yield plan, forecast.of(plan)
            continue
        try:
            operated = operate(analysis.recording.model, plan.surgery, analysis=analysis)
        except SurgeryError:
            continue
        yield plan, _counted(analyse(operated, analysis.recording.size))


def _counted(analysis: Analysis) -> CostEstimate:
    cost = count(analysis)
    return CostEstimate(cost.macs, cost.activation_bytes, cost.peak_bytes)


def _peak(spent: Mapping[Key, NodeCost], deaths: Deaths) -> int:
    """Return the maximum bytes that are held at once of the values that calls create."""
    held = most = 0
    for key, call in spent.items():
        most = max(most, held + call.peak)
        held += sum(call.pieces[i] for i in call.kept)
        for maker, number in deaths.get(key, ()):
            if maker in spent and number < len(spent[maker].kept):
                held -= spent[maker].pieces[spent[maker].kept[number]]
    return most


def _run(rule: FunctionRule, operator: Operator, *args: Any, **kwargs: Any) -> Any:
    """Run a function as another operator."""
    given = dict(zip(rule.parameters, args, strict=False)) | kwargs
    target, args, kwargs = rule.refine(given, operator)
    return target(*args, **kwargs)


def deaths_in_a_run(spent: Mapping[Key, NodeCost], events: Sequence[MemoryEvent]) -> Deaths | None:
    """Return, for each call of a recording, the allocations that the forward code frees after it.

    `events` begin with the image. None is returned if the run allocates other pieces than its
    recording.
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
    deaths: dict[Key, list[Allocation]] = defaultdict(list)
    last: Any = None
    for number, size in events[1:]:
        if size > 0:
            last = call[number]
        elif number in maker:
            deaths[last].append(maker[number])
    return deaths


def deaths_in_a_graph(graph: fx.Graph) -> Deaths:
    """Return, for each call, the allocations that a graph frees after it.

    Memory is freed after the last use of all the values that share it.
    """
    nodes = list(graph.nodes)
    position = {node: i for i, node in enumerate(nodes)}
    maker: dict[Any, Allocation] = {}
    last: dict[Any, int] = {}
    for node in nodes:
        label = info(node).memory
        if label is None:
            continue
        if label not in maker:
            maker[label] = _maker(node)
        uses = [position[node], *(position[user] for user in node.users)]
        last[label] = max(last.get(label, 0), *uses)
    deaths: dict[Key, list[Allocation]] = defaultdict(list)
    for label, index in last.items():
        if nodes[index].op != "output":
            deaths[info(nodes[index]).key].append(maker[label])
    return deaths


def _maker(node: fx.Node) -> Allocation:
    """Return the call that allocates a value's memory, and the index of the value.

    A value that is a part of several belongs to the call that returns them all.
    """
    source = node.args[0] if node.args else None
    if (
        node.op == "call_function"
        and isinstance(source, fx.Node)
        and info(source).parts is not None
    ):
        return info(source).key, int(node.args[1])  # type: ignore[arg-type]
    return info(node).key, 0
