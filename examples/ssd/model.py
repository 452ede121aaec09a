"""The detector: torchvision's SSD on an operated backbone, with the paper's neck, heads and boxes."""

import copy
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD, SSDHead

import stridesurgery as ss
from examples.ssd import backbones
from examples.ssd.configurations import Configuration
from examples.ssd.neck import Neck
from examples.ssd.pelee import PeleeNeck
from examples.ssd.programs import DetectionError
from examples.ssd.rfb import RFBNeck

COCO_CLASSES = 81  # background and 80
NECKS: dict[str, Any] = {"ssd": Neck, "rfb": RFBNeck, "rfb_mobile": RFBNeck, "pelee": PeleeNeck}
ASPECTS = {4: [2], 6: [2, 3]}  # by boxes per cell: the aspect ratios beside 1, each also upright
Cells = tuple[list[float], list[float]]  # step and first centre, [y, x], in pixels


class Pyramid(nn.Module):
    """Operated backbone and neck: images (N, 3, H, W) to one map (N, C, H', W') per predictor."""

    def __init__(self, features: nn.Module, row: Configuration) -> None:
        super().__init__()
        self.features, known = features, backbones.info(features)
        self.channels = {f.name: f.channels for f in known.features}
        self.neck = NECKS[row.neck](row, list(self.channels), known.channels())
        initialise(self.neck)
        maps = weightless(features, row.size)
        unclear = [key for key, x in maps.items() if x.shape[1] == x.shape[3]]
        if unclear and any(x.shape[1] != self.channels[key] for key, x in maps.items()):
            raise DetectionError(
                f"map {unclear[0]} has as many channels as rows: take another --size."
            )

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        maps = {key: self._channels_first(key, x) for key, x in self.features(images).items()}
        return OrderedDict((str(i), x) for i, x in enumerate(self.neck(maps)))

    def _channels_first(self, key: str, x: Tensor) -> Tensor:
        """Turn the maps of backbones that work on (N, H, W, C)."""
        return x if x.shape[1] == self.channels[key] else x.permute(0, 3, 1, 2)


class DefaultBoxes(DefaultBoxGenerator):
    """SSD's default boxes around cells that the configuration or the geometry places."""

    def __init__(self, row: Configuration, cells: Sequence[Cells]) -> None:
        """cells: of each predictor's map."""
        shares = [size / row.size for size in row.sizes]
        super().__init__([ASPECTS[count] for count in row.boxes], scales=shares)
        self.size, self.cells = row.size, cells

    def unclipped(self, grids: Sequence[Any]) -> Tensor:
        """Return (P, 4): centre x, centre y, width, height as shares of the image."""
        parts = []
        for grid, (step, first), sides in zip(grids, self.cells, self._wh_pairs, strict=True):
            ys, xs = (first[i] + step[i] * torch.arange(grid[i]) for i in (0, 1))
            centres = torch.cartesian_prod(ys, xs).view(-1, 2).flip(1) / self.size
            around = centres.repeat_interleave(len(sides), dim=0)
            parts.append(torch.cat([around, sides.repeat(len(centres), 1)], dim=1))
        return torch.cat(parts)

    def _grid_default_boxes(self, grid_sizes: Any, image_size: Any, dtype: Any = None) -> Tensor:
        """Limit each of the four numbers to 0..1, as the paper's code does."""
        return self.unclipped(grid_sizes).clamp(0, 1).to(dtype or torch.float32)


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
        >>> [rows for rows, columns in model.grids(ssd)]
        [38, 19, 10, 5, 3, 2]
    """
    net = backbones.create(row.backbone) if backbone is None else backbone
    pyramid = Pyramid(backbones.maps_of(net, row), row)
    boxes = DefaultBoxes(row, printed_cells(row) if row.steps else true_cells(pyramid))
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


def initialise(part: nn.Module) -> None:
    """Give Xavier weights and zero biases, as SSD starts everything that is not the backbone."""
    for module in part.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


# ---- where the cells look


def printed_cells(row: Configuration) -> list[Cells]:
    """Return the paper's: the first centre half a step in, so that the last may lie outside."""
    return [([step, step], [step / 2, step / 2]) for step in row.steps or ()]


def true_cells(pyramid: Pyramid) -> list[Cells]:
    """Return where the cells of each predictor's map really look."""
    neck: Any = pyramid.neck
    looks = {f.name: f.geometry for f in backbones.info(pyramid.features).features}
    found = [(looks[key].step, looks[key].offset) for key in neck.sources]
    # Of the extras alone, in cells of the map that they start from, on one that is large enough.
    root, taps = looks[neck.root], [str(i) for i in range(len(neck.extras))]
    extras = ss.features(nn.Sequential(*neck.extras), taps, input_size=64)
    for look in backbones.info(extras).geometry():
        step = [root.step[i] * look.step[i] for i in (0, 1)]
        found.append((step, [root.offset[i] + root.step[i] * look.offset[i] for i in (0, 1)]))
    # The library counts from the centre of the first pixel, boxes from the image's corner.
    return [(list(step), [v + 0.5 for v in offset]) for step, offset in found]


def grids(ssd: SSD) -> list[tuple[int, int]]:
    """Return (rows, columns) of every predictor's map, without computing one."""
    maps = weightless(ssd.backbone, ssd.transform.fixed_size[0])
    return [(x.shape[2], x.shape[3]) for x in maps.values()]


@torch.inference_mode()
def weightless(module: nn.Module, size: int) -> Any:
    """Return what a copy that computes shapes only gives for one image."""
    return copy.deepcopy(module).to("meta").eval()(torch.empty(1, 3, size, size, device="meta"))
