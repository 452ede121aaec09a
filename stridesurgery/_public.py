"""The public names."""

from stridesurgery import detection
from stridesurgery._analysis import (
    Feature,
    FeatureInfo,
    Layer,
    MapGeometry,
    Report,
    Transition,
    inspect,
)
from stridesurgery._cost import (
    Budget,
    Candidate,
    Comparison,
    Cost,
    Part,
    Row,
    Search,
    Timing,
    compare,
    cost,
    search,
)
from stridesurgery._features import Tiling, dual_path, features, sparse_path
from stridesurgery._rewrite import eliminate, load, recalibrate, save
from stridesurgery._verify import Verification, verify
from stridesurgery.errors import (
    GridError,
    ModelError,
    OperatorError,
    RequestError,
    SurgeryError,
    TraceError,
)
from stridesurgery.ops import Operator, Window, register_operator
from stridesurgery.surgery import Surgery

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
    "Tiling",
    "Timing",
    "TraceError",
    "Transition",
    "Verification",
    "Window",
    "compare",
    "cost",
    "detection",
    "dual_path",
    "eliminate",
    "features",
    "inspect",
    "load",
    "recalibrate",
    "register_operator",
    "save",
    "search",
    "sparse_path",
    "verify",
]
