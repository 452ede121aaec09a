"""Operated backbones inside detectors and segmentation models that exist already, each by one short function.

Every function leaves the caller's model alone and keeps the keys of its state_dict. What they share: the backbone
inside is operated (whole detection models are not traceable), and the anchors move to where its cells look now.

`python -m examples.detectors` prints what that does to six of them.
"""

from examples.detectors.anchors import GeometryAnchors, GeometryBoxes, Level
from examples.detectors.encoder import Encoder
from examples.detectors.fpn import finer_faster_rcnn, finer_retinanet
from examples.detectors.pyramid import Pyramid, faster_rcnn, pyramid
from examples.detectors.ssd import finer_ssd

__all__ = [
    "Encoder",
    "GeometryAnchors",
    "GeometryBoxes",
    "Level",
    "Pyramid",
    "faster_rcnn",
    "finer_faster_rcnn",
    "finer_retinanet",
    "finer_ssd",
    "pyramid",
]
