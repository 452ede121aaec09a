"""How a detector's anchors stand to the cells of its maps."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator

from stridesurgery._analysis import read_size
from stridesurgery._hw import HW
from stridesurgery.detection.anchors import middles, points, stock_anchors
from stridesurgery.detection.levels import Level, levels
from stridesurgery.detection.torchvision_models import recorded_at
from stridesurgery.errors import RequestError

ROUNDING = 1e-3  # pixels: SSD's boxes are fractions of the image before they are pixels


@dataclass(frozen=True)
class Placement:
    """The anchors of one detector at one input size.

    Example:
        >>> import torchvision, stridesurgery as ss
        >>> net = torchvision.models.detection.ssd300_vgg16(weights=None, weights_backbone=None)
        >>> fine = ss.eliminate(net, "S1L9")
        >>> found = ss.detection.placement(fine)
        >>> found.count, found.inside
        (33880, 1.0)
    """

    levels: tuple[Level, ...]  #: the maps
    count: int  #: number of anchors
    inside: float  #: share of their centres that lie inside the image
    farthest: (
        float  #: greatest distance of a centre from where its cell looks, along an axis, cells
    )


def placement(detector: nn.Module, input_size: int | HW[int] | None = None) -> Placement:
    """Measure where the anchors of a torchvision detector stand, for one image; nothing is run.

    Args:
        detector: an SSD, RetinaNet, FCOS or R-CNN, operated or not.
        input_size: pixels of the image that its backbone gets, one number or (h, w); by default
            SSD's own, else 512.

    Raises:
        RequestError: it has no anchor generator, or more than one.

    Example:
        >>> import torchvision, stridesurgery as ss
        >>> net = torchvision.models.detection.retinanet_resnet50_fpn(
        ...     weights=None, weights_backbone=None
        ... )
        >>> found = ss.detection.placement(net, 512)
        >>> found.count, found.levels[0].grid
        (49104, (64, 64))
    """
    kinds = (AnchorGenerator, DefaultBoxGenerator)
    generators = [module for module in detector.modules() if isinstance(module, kinds)]
    if len(generators) != 1:
        raise RequestError(
            f"{type(detector).__name__} has {len(generators)} anchor generators of torchvision, "
            "not one"
        )
    size = recorded_at(detector) if input_size is None else read_size(detector, input_size)
    maps = levels(detector.get_submodule("backbone"), size)
    boxes = stock_anchors(generators[0], size, maps)
    centres = torch.cat(list(map(middles, boxes)))
    edge = torch.tensor([size[1], size[0]])
    inside = ((centres >= -ROUNDING) & (centres <= edge + ROUNDING)).all(dim=1)
    return Placement(maps, len(centres), float(inside.float().mean()), _farthest(boxes, maps))


def _farthest(boxes: Sequence[Tensor], maps: Sequence[Level]) -> float:
    distances = []
    for anchors, level in zip(boxes, maps, strict=True):
        looks = points(level.looks, level.grid)
        away = (middles(anchors).view(len(looks), -1, 2) - looks[:, None]).abs()
        distances.append(float((away / torch.tensor(level.looks.step).flip(0)).max()))
    return max(distances)
