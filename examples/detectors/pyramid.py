"""A torchvision feature pyramid, and a detector, on any model that can be operated."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

import stridesurgery as ss
from stridesurgery.detection import GeometryAnchors, Stand, check_looks, set_scales

Pair = tuple[int, int]  # (h, w)
RECORDED_AT = (512, 512)  # pixels

LEVELS = 4  # maps that are merged, in the FPN paper those with steps of 4 to 32 pixels
RATIOS = (0.5, 1.0, 2.0)  # height / width
ANCHOR_CELLS = 8  # the side of an anchor: 32 pixels on a map with a step of 4, as in the FPN paper
POOLED_CELLS = 7


class Pyramid(BackboneWithFPN):
    """A `BackboneWithFPN` around `ss.features`; images to an ordered dict "0", "1", ..., "pool".

    The constructor of torchvision's cuts a model at its direct children, in the order in which they
    were registered. Here the body is cut already, from its graph.
    """

    def __init__(self, body: nn.Module, out_channels: int = 256) -> None:
        nn.Module.__init__(self)
        self.body = body
        self.fpn = FeaturePyramidNetwork(
            read_info(body).channels(), out_channels, LastLevelMaxPool()
        )
        self.out_channels = out_channels

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W) to maps (N, out_channels, h, w), finest first."""
        maps = self.body(x).values()
        return self.fpn(OrderedDict((str(number), value) for number, value in enumerate(maps)))


def read_info(maps: nn.Module) -> ss.FeatureInfo:
    """Return what `ss.features` says about the maps that its result returns."""
    info = maps.feature_info
    assert isinstance(info, ss.FeatureInfo)
    return info


def pyramid(
    model: nn.Module,
    surgery: str | ss.Surgery | None,
    out_channels: int = 256,
    *,
    taps: Sequence[int | str] | None = None,
    input_size: int | Pair | None = None,
) -> Pyramid:
    """A feature pyramid on a model with strides eliminated.

    Args:
        model: any timm or torchvision model with maps (N, C, H, W); its classifier stays unused in
            the state_dict.
        surgery: which strides go; a dilating one keeps the model's features. None: none goes.
        out_channels: of every map.
        taps: the maps to merge, as `ss.features` takes them of the operated model; by default the
            last of each of the four coarsest reductions.
        input_size: pixels at which the model is recorded; by default its own.
    """
    operated = model if surgery is None else ss.eliminate(model, surgery, input_size=input_size)
    body = ss.features(operated, taps, input_size=input_size)
    if taps is None and len(names := read_info(body).module_name()) > LEVELS:
        body = ss.features(operated, names[-LEVELS:], input_size=input_size)
    return Pyramid(body, out_channels)


def faster_rcnn(backbone: Pyramid, num_classes: int, **options: Any) -> FasterRCNN:
    """Build a torchvision Faster R-CNN whose anchors and RoI pooling know where cells look.

    num_classes counts the background; options are those of `FasterRCNN`.

    Raises:
        ss.GridError: a map whose cells are no place for anchors.
    """
    levels = ss.detection.levels(backbone, RECORDED_AT)
    check_looks(levels)
    plain = AnchorGenerator(
        tuple((ANCHOR_CELLS * level.looks.step[0],) for level in levels), (RATIOS,) * len(levels)
    )
    merged = levels[:-1]  # the pooled map makes proposals only
    pool = MultiScaleRoIAlign([level.name for level in merged], POOLED_CELLS, sampling_ratio=2)
    set_scales(pool, [level.looks.step for level in merged])
    anchors = GeometryAnchors(plain, [Stand(level.looks) for level in levels])
    return FasterRCNN(
        backbone, num_classes, rpn_anchor_generator=anchors, box_roi_pool=pool, **options
    )
