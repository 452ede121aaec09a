"""One model of the zoo, examined: traced, numbered, operated at every transition, and compared with the witness."""

import time
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

import stridesurgery as ss
from stridesurgery._analysis import Analysis, analyse
from stridesurgery._analysis.inspect import make_report
from stridesurgery._rewrite import check_operated, plan
from stridesurgery._trace import copy_to_meta
from stridesurgery._trace.meta_copy import input_channels
from tests.zoo.compare import compare
from tests.zoo.models import awaken, build, create, quiet
from tests.zoo.numbers import check_numbers
from tests.zoo.witness import watch


@dataclass
class Outcome:
    """What became of one transition."""

    L: int  # its first layer
    result: str  # exact, rounded or refused
    why: str = ""  # of a refusal: the error
    reference: bool = True  # shapes compared with the original's on an enlarged input
    graph: bool = False  # the result is a rewritten graph
    positions: str = ""  # of a refusal: the result with positions="resample", or the error
    dilated: str = ""  # of the last transition: the result with dilate=True, or the error


@dataclass
class Row:
    """Everything that the sweep found of one model."""

    name: str
    key: str  # the versions it was made by
    device: str = ""
    parameters: float = 0.0  # millions
    size: tuple[int, int] = (0, 0)  # pixels
    traced: dict[str, str] = field(default_factory=dict)  # by mode: "" or the error
    layers: int = 0
    strided: list[int] = field(default_factory=list)
    transitions: int = 0
    note: str = ""
    outcomes: list[Outcome] = field(default_factory=list)
    witness: dict[str, Any] = field(default_factory=dict)
    numbers: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


def examine(name: str, key: str, limit: float) -> Row:
    """The row of one model: on meta tensors, and with numbers up to `limit` million parameters."""
    start = time.perf_counter()
    model, device = build(name)
    row = Row(name, key, device, sum(p.numel() for p in model.parameters()) / 1e6)
    with quiet():
        analysis = _trace_both(model, row)
        if analysis is not None:
            report = make_report(type(model).__name__, analysis)
            row.size, row.layers, row.strided = report.input_size, len(report), list(report.strided)
            row.transitions, row.note = len(report.transitions), report.note
            meta_model = copy_to_meta(model)
            seen = watch(meta_model, report.input_size, input_channels(model)[0])
            found = compare(model, report, seen)
            row.witness = {**asdict(found), "says": str(found)}
            row.outcomes = [operate(model, analysis, t.layers[0]) for t in report.transitions]
            for outcome in row.outcomes:
                if outcome.result == "refused":
                    again = operate(model, analysis, outcome.L, positions="resample")
                    outcome.positions = again.why or again.result
            for outcome in row.outcomes[-1:]:
                outcome.dilated = _dilated(model, outcome.L)
        if row.outcomes and row.parameters <= limit:
            row.numbers = _numbers(name)
    row.seconds = time.perf_counter() - start
    return row


def _trace_both(model: nn.Module, row: Row) -> Analysis | None:
    found = {}
    for mode, training in (("eval", False), ("train", True)):
        try:
            found[mode] = analyse(model, training=training)
            row.traced[mode] = ""
        except Exception as problem:
            row.traced[mode] = f"{type(problem).__name__}: {problem}"
    return found.get("eval")


def _numbers(name: str) -> dict[str, Any]:
    torch.manual_seed(0)
    try:
        size, checks = check_numbers(awaken(create(name)))
    except Exception as problem:
        return {"why": f"{type(problem).__name__}: {problem}"}
    return {"size": size, "checks": [asdict(check) for check in checks]}


def _dilated(model: nn.Module, layer: int) -> str:
    try:
        ss.eliminate(model, L=layer, dilate=True)
    except ss.SurgeryError as problem:
        return f"{type(problem).__name__}: {problem}"
    except Exception as problem:
        return f"CRASH {type(problem).__name__}: {problem}"
    return "exact"


def operate(model: nn.Module, analysis: Analysis, layer: int, **options: Any) -> Outcome:
    """Eliminate the transition of a layer and see how the maps come out."""
    try:
        operated = ss.eliminate(model, L=layer, **options)
    except ss.SurgeryError as problem:
        return Outcome(layer, "refused", f"{type(problem).__name__}: {problem}")
    except Exception as problem:  # anything but a refusal is a fault of the library
        return Outcome(layer, "refused", f"CRASH {type(problem).__name__}: {problem}")
    grid = check_operated(analysis, plan(analysis, operated.surgery), copy_to_meta(operated).eval())
    result = "exact" if grid.exact else "rounded"
    return Outcome(layer, result, reference=grid.reference, graph=type(operated) is not type(model))
