"""Detectors and encoders for segmentation on backbones that were operated on.

torchvision's own detectors need none of this: `ss.eliminate(detector, "S1L0")`. Here is a feature
pyramid with a Faster R-CNN on any model, and an encoder for segmentation_models_pytorch.
`python -m examples.detectors` prints where the anchors of six detectors stand.
"""

from examples.detectors.encoder import Encoder
from examples.detectors.pyramid import Pyramid, faster_rcnn, pyramid

__all__ = ["Encoder", "Pyramid", "faster_rcnn", "pyramid"]
