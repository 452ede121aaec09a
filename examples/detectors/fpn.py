"""A finer `retinanet_resnet50_fpn` or `fasterrcnn_resnet50_fpn`: anchors, and the scales of the RoI pooling."""

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.boxes import box_area

import stridesurgery as ss
from examples.detectors.anchors import GeometryAnchors, Level, Pair, stands
from examples.detectors.backbones import levels_at, operated

RECORDED_AT = (512, 512)  # pixels; a multiple of the step of RetinaNet's coarsest map, 128


def finer_retinanet(
    model: RetinaNet, surgery: str | ss.Surgery, *, sizes: str = "follow", centres: str = "looks"
) -> RetinaNet:
    """A copy of a torchvision RetinaNet with strides eliminated in its backbone and its anchors moved.

    Args:
        model: `retinanet_resnet50_fpn(...)`, its v2, or one on another torchvision `BackboneWithFPN`.
        surgery: as `ss.inspect(model.backbone, 512)` numbers the layers.
        sizes: "follow" (anchors as many cells large as before) or "stay" (as many pixels); see `anchors.stands`.
        centres: "looks" (where cells look) or "carried" (as trained predictors have learned); see there.

    Raises:
        ss.SurgeryError: the surgery is not possible.
    """
    finer = copy.deepcopy(model)
    finer.backbone = operated(model.backbone, surgery, RECORDED_AT)
    before, after = (fpn_levels(m.backbone, RECORDED_AT) for m in (model, finer))
    where = stands(model.anchor_generator, RECORDED_AT, before, after, sizes=sizes, centres=centres)
    finer.anchor_generator = GeometryAnchors(model.anchor_generator, where)
    return finer


def finer_faster_rcnn(
    model: FasterRCNN, surgery: str | ss.Surgery, *, sizes: str = "follow", centres: str = "looks"
) -> FasterRCNN:
    """A copy of a torchvision Faster R-CNN with strides eliminated, its anchors and its RoI pooling moved.

    Args:
        model: `fasterrcnn_resnet50_fpn(...)`, its v2, or another on a torchvision `BackboneWithFPN`; Mask and
            Keypoint R-CNN are Faster R-CNNs too.
        surgery, sizes, centres: as for `finer_retinanet`.

    Raises:
        ss.SurgeryError: the surgery is not possible.
        ValueError: one axis only, which RoIAlign has no scale for.
    """
    finer = copy.deepcopy(model)
    finer.backbone = operated(model.backbone, surgery, RECORDED_AT)
    before, after = (fpn_levels(m.backbone, RECORDED_AT) for m in (model, finer))
    where = stands(
        model.rpn.anchor_generator, RECORDED_AT, before, after, sizes=sizes, centres=centres
    )
    finer.rpn.anchor_generator = GeometryAnchors(model.rpn.anchor_generator, where)
    steps = {level.name: level.looks.step for level in after}
    for pool in (m for m in finer.modules() if isinstance(m, MultiScaleRoIAlign)):
        set_scales(pool, [steps[name] for name in pool.featmap_names])
    return finer


def fpn_levels(backbone: nn.Module, size: Pair) -> tuple[Level, ...]:
    """The maps that a torchvision `BackboneWithFPN` returns for inputs of (h, w) pixels.

    A merged map looks where the body's map looks that it merges: that is what tells its cells apart. What it sees
    through the coarser maps is repeated over several cells by the upsampling, and lies up and left of most of them.
    """
    body = {name: f"body.{path}" for path, name in backbone.body.return_layers.items()}  # type: ignore[operator, union-attr]
    return levels_at(backbone, lambda name: body.get(name, f"fpn[{name}]"), size)


class MapsByStep:
    """Which map a box is pooled from, by its size; torchvision's `LevelMapper` where every step doubles.

    Torchvision numbers the maps by powers of two and takes it that none is missing, so after the elimination of a
    late stride it would never use the last map. Here a box changes from one map to the next when its side is
    `cells` * sqrt(2) geometric means of their steps long: 224 pixels between steps of 8 and 16, as in the FPN paper.
    """

    def __init__(self, steps: Sequence[float], cells: float) -> None:
        self.limits = [
            cells * math.sqrt(2 * a * b) for a, b in zip(steps, steps[1:], strict=False)
        ]  # pixels

    def __call__(self, boxes: list[Tensor]) -> Tensor:
        """boxes: (R, 4) for each image, in pixels. Returns the numbers of the maps, (all R,)."""
        sides = torch.cat([box_area(b) for b in boxes]).sqrt()
        return torch.bucketize(sides, torch.tensor(self.limits, device=sides.device), right=True)


def set_scales(pool: MultiScaleRoIAlign, steps: Sequence[tuple[float, float]]) -> None:
    """Tell a RoI pooling the steps (rows, columns) of its maps in pixels, which it otherwise guesses and keeps.

    Raises:
        ValueError: rows and columns differ.
    """
    if any(rows != columns for rows, columns in steps):
        raise ValueError(
            "RoIAlign has one scale for rows and columns; eliminate strides of both axes (axis='hw')"
        )
    pool.scales = [1 / rows for rows, _ in steps]
    pool.map_levels = MapsByStep(
        [rows for rows, _ in steps], pool.canonical_scale / 2**pool.canonical_level
    )
