"""Metrics of cost.

A new metric is one entry here, and one field of `Budget`, `Candidate` and `Cost`.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """One metric of cost."""

    name: str  # field of `Budget`, `Candidate` and `Cost`
    title: str  # of the column in tables
    option: str  # name on the command line
    unit: float  # what 1 of that option stands for
    symbol: str
    help: str

    def of(self, costed: object) -> float | None:
        """Return the value of the metric; None if it is unknown."""
        value: float | None = getattr(costed, self.name)
        return value


METRICS = (
    Metric("macs", "compute", "gmacs", 1e9, "X", "billions of multiply-accumulates"),
    Metric(
        "activation_bytes",
        "activations",
        "activations",
        2**20,
        "MIB",
        "MiB of all values that are made",
    ),
    Metric("peak_bytes", "peak", "peak", 2**20, "MIB", "MiB of activations held at once"),
)
SECONDS = Metric("seconds", "latency", "milliseconds", 1e-3, "MS", "measured on this machine")
