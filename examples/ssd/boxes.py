"""Boxes as the network predicts them: offsets from priors, in units of SSD's variances."""

import torch
from torch import Tensor
from torchvision.ops import box_convert

CENTRE, SIDE = (
    0.1,
    0.2,
)  # the variances: what an offset of 1 means, as shares of the prior's side and of a factor e
LARGEST_LOG = (
    4.0  # a box at most this many powers of e larger than its prior, so that exp does not overflow
)


def encode(boxes: Tensor, priors: Tensor) -> Tensor:
    """boxes: (K, 4) corners; priors: (K, 4) centre and size. Returns (K, 4) offsets."""
    wanted = box_convert(boxes, "xyxy", "cxcywh")
    centres = (wanted[:, :2] - priors[:, :2]) / (CENTRE * priors[:, 2:])
    sides = torch.log(wanted[:, 2:] / priors[:, 2:]) / SIDE
    return torch.cat([centres, sides], dim=1)


def decode(offsets: Tensor, priors: Tensor) -> Tensor:
    """offsets: (..., 4); priors: (..., 4) centre and size. Returns (..., 4) corners."""
    centres = priors[..., :2] + offsets[..., :2] * CENTRE * priors[..., 2:]
    sides = priors[..., 2:] * torch.exp((offsets[..., 2:] * SIDE).clamp(max=LARGEST_LOG))
    return torch.cat([centres - sides / 2, centres + sides / 2], dim=-1)
