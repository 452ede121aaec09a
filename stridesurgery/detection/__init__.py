"""Whole detectors: what knows the strides of their backbones follows a surgery."""

from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD
from torchvision.ops import MultiScaleRoIAlign

from stridesurgery._analysis import TOLD
from stridesurgery.detection import transformers_models, ultralytics_models
from stridesurgery.detection.anchors import (
    GeometryAnchors,
    GeometryBoxes,
    Stand,
    check_looks,
)
from stridesurgery.detection.bound import choose_bound
from stridesurgery.detection.dual import DualPath, dual_path
from stridesurgery.detection.levels import Level, levels
from stridesurgery.detection.placement import Placement, placement
from stridesurgery.detection.pooling import set_scales
from stridesurgery.detection.register import register_detector
from stridesurgery.detection.torchvision_models import follow as follow_torchvision

__all__ = [
    "DualPath",
    "GeometryAnchors",
    "GeometryBoxes",
    "Level",
    "Placement",
    "Stand",
    "check_looks",
    "choose_bound",
    "dual_path",
    "levels",
    "placement",
    "register_detector",
    "set_scales",
]

for _kind in (FasterRCNN, FCOS, RetinaNet, SSD):
    register_detector(_kind, at="backbone", follow=follow_torchvision)
register_detector(ultralytics_models.KIND, at="", follow=ultralytics_models.follow)
for _name, _at in transformers_models.PLACES.items():
    register_detector(_name, at=_at, follow=transformers_models.follow)
TOLD.update((AnchorGenerator, DefaultBoxGenerator, MultiScaleRoIAlign))
