"""Change the strides of a pretrained backbone and keep every weight."""

from stridesurgery import known_functions, known_modules  # noqa: F401  (they fill the operator table)
from stridesurgery.compare import Comparison, Row, compare
from stridesurgery.cost import Cost, Part, cost
from stridesurgery.dual_path import dual_path
from stridesurgery.errors import GridError, ModelError, OperatorError, RequestError, SurgeryError, TraceError
from stridesurgery.feature_info import Feature, FeatureInfo, MapGeometry
from stridesurgery.features import features
from stridesurgery.latency import Timing
from stridesurgery.operate import eliminate
from stridesurgery.operators import Operator, register_operator
from stridesurgery.recalibrate import recalibrate
from stridesurgery.report import Layer, Report, Transition, inspect
from stridesurgery.search import Budget, Candidate, Search, search
from stridesurgery.surgery import Surgery
from stridesurgery.verify import Verification, verify
from stridesurgery.window import Window

__version__ = "0.1.0"

__all__ = [
    "Budget",
    "Candidate",
    "Comparison",
    "Cost",
    "Feature",
    "FeatureInfo",
    "GridError",
    "Layer",
    "MapGeometry",
    "ModelError",
    "Operator",
    "OperatorError",
    "Part",
    "Report",
    "RequestError",
    "Row",
    "Search",
    "Surgery",
    "SurgeryError",
    "Timing",
    "TraceError",
    "Transition",
    "Verification",
    "Window",
    "compare",
    "cost",
    "dual_path",
    "eliminate",
    "features",
    "inspect",
    "recalibrate",
    "register_operator",
    "search",
    "verify",
]
