"""The maps that a detector predicts from, and where their cells look."""

from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from stridesurgery._analysis import MapGeometry, analyse, geometry_of
from stridesurgery._hw import HW
from stridesurgery._node import returned
from stridesurgery.errors import RequestError


@dataclass(frozen=True)
class Level:
    """One map that a detector predicts from.

    Example:
        >>> import torchvision, stridesurgery as ss
        >>> net = torchvision.models.detection.ssd300_vgg16(weights=None, weights_backbone=None)
        >>> level = ss.detection.levels(net.backbone, 300)[0]
        >>> level.name, level.grid, level.looks.step
        ('0', (38, 38), (8.0, 8.0))
    """

    name: str  #: its key in what the backbone returns; "0" if that is one map
    grid: HW[int]  #: (h, w) cells, for an input of the size at which the backbone was recorded
    looks: MapGeometry  #: where its cells look


def levels(backbone: nn.Module, input_size: int | HW[int]) -> tuple[Level, ...]:
    """Return the maps that a backbone gives for inputs of (h, w) pixels, in order.

    A map into which coarser ones are merged, as by a feature pyramid, looks where its finest part
    does: that is what tells its cells apart.

    Args:
        backbone: a module that returns one map (N, C, H, W) or a dict of them.
        input_size: pixels, one number or (h, w).

    Raises:
        RequestError: it returns something else.
        TraceError: the forward pass cannot be recorded at this size.

    Example:
        >>> import torchvision, stridesurgery as ss
        >>> net = torchvision.models.detection.retinanet_resnet50_fpn(
        ...     weights=None, weights_backbone=None
        ... )
        >>> [level.looks.step for level in ss.detection.levels(net.backbone, 512)]
        [(8.0, 8.0), (16.0, 16.0), (32.0, 32.0), (64.0, 64.0), (128.0, 128.0)]
    """
    analysis = analyse(backbone, input_size)
    found = []
    for name, node in _maps(analysis.recording.graph).items():
        place = analysis.grid_of.get(node)
        if place is None or place.grid is None:
            raise RequestError(f"{type(backbone).__name__} returns a value {name!r} that is no map")
        looks = geometry_of(*place.reassembled.geometry)
        found.append(Level(name, place.reassembled_grid(place.grid), looks))
    return tuple(found)


def _maps(graph: fx.Graph) -> dict[str, fx.Node]:
    """Return the maps that a graph returns, by their key."""
    value: Any = returned(graph)[-1].args[0]  # the last is what builds an ordered dict, if one is
    if isinstance(value, fx.Node):
        return {"0": value}
    if isinstance(value, dict) and all(isinstance(node, fx.Node) for node in value.values()):
        return {str(name): node for name, node in value.items()}
    raise RequestError("a detector's backbone returns one map or a dict of maps")
