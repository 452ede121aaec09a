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
    "KINDS",
    "REARRANGING",
    "TOLD",
    "Analysis",
    "Feature",
    "FeatureInfo",
    "Follow",
    "GridInfo",
    "Kind",
    "Layer",
    "MapGeometry",
    "NewStride",
    "Part",
    "Report",
    "Source",
    "SpatialOp",
    "Transition",
    "analyse",
    "beyond",
    "channel_axis",
    "geometry_of",
    "inspect",
    "kind_of",
    "operator_of",
    "part_of",
    "read_size",
    "reduction_of",
    "spatial_ops",
]
