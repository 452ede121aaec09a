"""Layers, grids and transitions of a recorded model."""

from stridesurgery._analysis.analysis import Analysis, analyse, read_size
from stridesurgery._analysis.feature_info import (
    Feature,
    FeatureInfo,
    MapGeometry,
    Source,
    geometry_of,
    reduction_of,
)
from stridesurgery._analysis.grid import GridInfo, SpatialOp, channel_axis
from stridesurgery._analysis.inspect import Layer, Report, Transition, inspect
from stridesurgery._analysis.part import (
    KINDS,
    TOLD,
    Follow,
    Kind,
    NewStride,
    Part,
    kind_of,
    part_of,
)
from stridesurgery._analysis.propagate import REARRANGING, operator_of, spatial_ops
from stridesurgery._analysis.transitions import beyond

__all__ = [
    "Analysis",
    "Feature",
    "FeatureInfo",
    "Follow",
    "KINDS",
    "Kind",
    "Layer",
    "MapGeometry",
    "GridInfo",
    "NewStride",
    "Part",
    "REARRANGING",
    "Report",
    "SpatialOp",
    "TOLD",
    "Source",
    "Transition",
    "analyse",
    "beyond",
    "channel_axis",
    "spatial_ops",
    "geometry_of",
    "inspect",
    "kind_of",
    "part_of",
    "read_size",
    "operator_of",
    "reduction_of",
]
