"""How a detector's anchors stand to its maps; and the surgery that people do by hand, to compare with."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from examples.detectors.anchors import Level, Pair, middles, points, stock_anchors

ROUNDING = 1e-3  # pixels: SSD's boxes are fractions of the image before they are pixels


@dataclass(frozen=True)
class Placement:
    """Of all anchors of one detector at one input size."""

    count: int
    inside: float  # share of the centres that lie inside the image
    farthest: float  # of all centres the greatest distance from where the cell looks, along one axis, in cells


def placement(generator: nn.Module, levels: Sequence[Level], size: Pair) -> Placement:
    """Measure what an anchor generator does on these maps, for one image of (h, w) pixels."""
    boxes = stock_anchors(generator, size, levels)
    centres = torch.cat(list(map(middles, boxes)))
    edge = torch.tensor([size[1], size[0]])
    inside = ((centres >= -ROUNDING) & (centres <= edge + ROUNDING)).all(dim=1)
    distances = [_farthest(middles(b), level) for b, level in zip(boxes, levels, strict=True)]
    return Placement(len(centres), float(inside.float().mean()), max(distances))


def _farthest(centres: torch.Tensor, level: Level) -> float:
    looks = points(level.looks, level.grid)
    away = (centres.view(len(looks), -1, 2) - looks[:, None]).abs()
    return float((away / torch.tensor(level.looks.step).flip(0)).max())


def by_hand(model: nn.Module, *paths: str) -> nn.Module:
    """A copy whose strides are patched module by module, and nothing else: the usual recipe, anchors left alone."""
    patched = copy.deepcopy(model)
    for path in paths:
        module = patched.get_submodule(path)
        if isinstance(module, nn.MaxPool2d):  # of three cells, so that the map keeps its size
            module.kernel_size, module.stride, module.padding = 3, 1, 1
        elif isinstance(module, nn.Conv2d):
            module.stride = (1, 1)
        else:
            raise ValueError(
                f"{path} is a {type(module).__name__}; patch convolutions and max pools"
            )
    return patched
