"""Cost of networks, and search among surgeries."""

from stridesurgery._cost.compare import Comparison, Row, compare, describe
from stridesurgery._cost.cost import Cost, Part, cost
from stridesurgery._cost.latency import Timing
from stridesurgery._cost.search import search
from stridesurgery._cost.search_result import Budget, Candidate, Search

__all__ = [
    "Budget",
    "Candidate",
    "Comparison",
    "Cost",
    "Part",
    "Row",
    "Search",
    "Timing",
    "compare",
    "cost",
    "describe",
    "search",
]
