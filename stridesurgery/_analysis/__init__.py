"""Layers, grids and transitions of a recorded model."""

from stridesurgery._analysis.analysis import Analysis, analyse
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
from stridesurgery._analysis.propagate import REARRANGING, spatial_ops
from stridesurgery._analysis.transitions import beyond

__all__ = [
    "Analysis",
    "Feature",
    "FeatureInfo",
    "Layer",
    "MapGeometry",
    "GridInfo",
    "REARRANGING",
    "Report",
    "SpatialOp",
    "Source",
    "Transition",
    "analyse",
    "beyond",
    "channel_axis",
    "spatial_ops",
    "geometry_of",
    "inspect",
    "reduction_of",
]
