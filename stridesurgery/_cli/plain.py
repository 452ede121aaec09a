"""Convert results to plain data, as JSON holds it."""

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import singledispatch
from typing import Any

from stridesurgery._cost import Candidate, Cost, Row, Timing


@singledispatch
def plain(value: Any) -> Any:
    """Convert a result to plain data.

    A dataclass becomes an object of its fields. NaN becomes null, an infinite number
    its text, such as "inf".
    """
    if is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


@plain.register
def _(value: Timing) -> Any:
    return {"median": value.median, "quartiles": list(value.spread), "rounds": len(value.seconds)}


@plain.register
def _(value: Cost) -> Any:
    return {
        **totals(value),
        "uncounted": dict(value.uncounted),
        "per_layer": [_part(part, "layer") for part in value.per_layer().values()],
        "per_reduction": [_part(part, "reduction") for part in value.per_reduction().values()],
    }


@plain.register
def _(value: Candidate) -> Any:
    return {
        "name": value.name,
        **{field.name: plain(getattr(value, field.name)) for field in fields(value)},
    }


@plain.register
def _(value: Row) -> Any:
    return {
        "name": value.name,
        "surgery": plain(value.surgery),
        **totals(value.cost),
        "maps": [
            {**plain(feature), "grid": list(grid)}
            for feature, grid in zip(value.maps, value.grids, strict=True)
        ],
        "latency": plain(value.latency),
        "training_step": plain(value.training_step),
    }


def totals(cost: Cost) -> dict[str, Any]:
    """Return the total cost of a network as plain data."""
    return {
        "model": cost.model,
        "input_size": list(cost.input_size),
        "parameters": cost.parameters,
        "macs": cost.macs,
        "flops": cost.flops,
        "activation_bytes": cost.activation_bytes,
        "peak_bytes": cost.peak_bytes,
    }


def _part(part: Any, by: str) -> dict[str, Any]:
    return {
        by: plain(getattr(part, by)),
        "macs": part.macs,
        "flops": part.flops,
        "bytes": part.bytes,
    }
