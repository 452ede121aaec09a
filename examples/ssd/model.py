"""The detector: torchvision's SSD on an operated backbone, with the paper's neck and boxes."""

from collections import OrderedDict
from collections.abc import Sequence
from math import log2
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD, SSDHead

import stridesurgery as ss
from examples.ssd import backbones
from examples.ssd.configurations import Configuration
from examples.ssd.neck import Neck, PeleeNeck, RFBNeck

COCO_CLASSES = 81  # background and 80
NECKS: dict[str, Any] = {"ssd": Neck, "rfb": RFBNeck, "rfb_mobile": RFBNeck, "pelee": PeleeNeck}
# What the paper's rows have in common, by the number of halvings of a 300 pixel image: a map with a
# step of 4 pixels gets boxes of 5, one of 8 pixels 10, one of 16 pixels 45, and so on.
SIZES = {2: 5, 3: 10, 4: 45, 5: 90, 6: 135, 7: 180, 8: 225, 9: 270, 10: 315}
ASPECTS = {4: [2], 6: [2, 3]}  # by boxes per cell: the aspect ratios beside 1, each also upright


class Pyramid(nn.Module):
    """Operated backbone and neck: images (N, 3, H, W) to one map (N, C, H', W') per predictor."""

    def __init__(self, features: Any, row: Configuration) -> None:
        super().__init__()
        self.features, known = features, features.feature_info.features
        # Of backbones that work on (N, H, W, C), such as Swin.
        self.turned = [f.name for f in known if f.sources[0].channel_axis == 3]
        self.neck = NECKS[row.neck](row, [f.name for f in known], [f.channels for f in known])
        initialise(self.neck)

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        maps = self.features(images)
        for key in self.turned:
            maps[key] = maps[key].permute(0, 3, 1, 2)
        return OrderedDict((str(i), x) for i, x in enumerate(self.neck(maps)))


class DefaultBoxes(DefaultBoxGenerator):
    """SSD's default boxes, around centres that the row's steps or the geometry of the maps give."""

    def __init__(self, row: Configuration, maps: Sequence[ss.detection.Level]) -> None:
        """Place them. maps: what the predictors read."""
        shares = [size / row.size for size in row.sizes or sizes_for(maps, row.size)]
        super().__init__([ASPECTS[count] for count in row.boxes], scales=shares)
        steps, parts = row.steps or [None] * len(maps), []
        for level, step, sides in zip(maps, steps, self._wh_pairs, strict=True):
            if step is None:
                ys, xs = level.looks.centres(level.grid)
            else:  # the paper's: the last centres may lie outside the image
                ys, xs = (step / 2 + step * torch.arange(cells) for cells in level.grid)
            centres = torch.cartesian_prod(ys, xs).flip(1) / row.size
            around = centres.repeat_interleave(len(sides), dim=0)
            parts.append(torch.cat([around, sides.repeat(len(centres), 1)], dim=1))
        # (P, 4): centre x, centre y, width, height as shares of the image
        self.boxes = torch.cat(parts)

    def _grid_default_boxes(self, grid_sizes: Any, image_size: Any, dtype: Any = None) -> Tensor:
        """Limit each of the four numbers to 0..1, as the paper's code does."""
        return self.boxes.clamp(0, 1).to(dtype or torch.float32)


class Detector(SSD):
    """torchvision's SSD; its losses are computed in single precision, whatever the heads are."""

    def compute_loss(self, targets: Any, head_outputs: Any, anchors: Any, matched_idxs: Any) -> Any:
        """Return torchvision's losses and `positives`, by which processes weigh their losses."""
        single = {name: x.float() for name, x in head_outputs.items()}
        losses = super().compute_loss(targets, single, anchors, matched_idxs)
        return {**losses, "positives": torch.stack([(m >= 0).sum() for m in matched_idxs]).sum()}


class Network(nn.Module):
    """The part of a detector that is counted and timed: neither normalising nor suppressing."""

    def __init__(self, ssd: SSD) -> None:
        super().__init__()
        self.backbone, self.head = ssd.backbone, ssd.head

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.head(list(self.backbone(images).values()))


def build(
    row: Configuration,
    classes: int = COCO_CLASSES,
    backbone: nn.Module | None = None,
    **options: Any,
) -> Detector:
    """Return the detector of a configuration, on `backbone` or on a new one with random weights.

    classes: with the background. options: of torchvision's SSD, such as image_mean.

    Example:
        >>> from examples.ssd import configurations, model
        >>> ssd = model.build(configurations.find("SSDMnetv1-S1L0"))
        >>> [level.grid[0] for level in model.maps(ssd)]
        [38, 19, 10, 5, 3, 2]
    """
    net = backbones.create(row.backbone) if backbone is None else backbone
    pyramid = Pyramid(backbones.maps_of(net, row), row)
    boxes = DefaultBoxes(row, ss.detection.levels(pyramid, row.size))
    counts = boxes.num_anchors_per_location()
    head = SSDHead(list(pyramid.neck.out_channels), counts, classes)
    if row.head_kernel == 1:
        for part in (head.classification_head, head.regression_head):
            convs = [nn.Conv2d(c.in_channels, c.out_channels, 1) for c in part.module_list]
            part.module_list = nn.ModuleList(convs)
        initialise(head)
    limits = {"score_thresh": 0.01, "nms_thresh": 0.6, "detections_per_img": 100}
    size = (row.size, row.size)
    return Detector(pyramid, boxes, size, classes, head=head, **limits, **options)


def sizes_for(maps: Sequence[ss.detection.Level], side: int) -> list[float]:
    """Return the sizes of boxes (pixels) that the paper's rule gives maps, one more than maps."""
    halvings = [round(log2(max(level.looks.step))) for level in maps]
    halvings = [min(max(h, min(SIZES)), max(SIZES) - 1) for h in halvings]
    return [SIZES[h] * side / 300 for h in (*halvings, halvings[-1] + 1)]


def initialise(part: nn.Module) -> None:
    """Give Xavier weights and zero biases, as SSD starts everything that is not the backbone."""
    for module in part.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def maps(ssd: SSD) -> tuple[ss.detection.Level, ...]:
    """Return what the predictors read: each map's cells, and where they look."""
    return ss.detection.levels(ssd.backbone, ssd.transform.fixed_size[0])
