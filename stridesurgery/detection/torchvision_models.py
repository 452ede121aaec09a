"""Lets anchors, RoI scales and padding of torchvision's detectors follow their strides."""

from torch import nn
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.ops import MultiScaleRoIAlign

from stridesurgery._analysis import NewStride
from stridesurgery._hw import HW
from stridesurgery.detection.anchors import GeometryAnchors, GeometryBoxes, stands
from stridesurgery.detection.levels import levels
from stridesurgery.detection.pooling import set_scales
from stridesurgery.errors import RequestError
from stridesurgery.surgery import Surgery

RECORDED_AT = (512, 512)  # pixels; a multiple of the step of RetinaNet's coarsest map, 128


def recorded_at(detector: nn.Module) -> HW[int]:
    """Return the (h, w) pixels at which a detector's maps are compared: SSD's own, if fixed."""
    fixed = getattr(detector.transform, "fixed_size", None)  # (w, h)
    return (fixed[1], fixed[0]) if fixed else RECORDED_AT


def follow(before: nn.Module, after: nn.Module, surgery: Surgery, stride: NewStride) -> None:
    """Move the anchors to where the finer cells look, and tell pooling and padding the new steps.

    Raises:
        RequestError: dilation, after which the backbone still returns its coarse maps; one axis
            only, which RoIAlign has no scale for.
        GridError: a map whose cells are no place for anchors.
    """
    if surgery.dilate:
        raise RequestError(
            "a dilated backbone returns the maps it always did; build a detector on ss.features of "
            "it"
        )
    size = recorded_at(before)
    old, new = (levels(model.get_submodule("backbone"), size) for model in (before, after))
    for path, stock in before.named_modules():
        if not isinstance(stock, (AnchorGenerator, DefaultBoxGenerator)):
            continue
        where = stands(stock, size, old, new, sizes=surgery.sizes, centres=surgery.centres)
        made = GeometryBoxes if isinstance(stock, DefaultBoxGenerator) else GeometryAnchors
        holder, _, name = path.rpartition(".")
        setattr(after.get_submodule(holder), name, made(stock, where).train(stock.training))
    for pool in (m for m in after.modules() if isinstance(m, MultiScaleRoIAlign)):
        set_scales(pool, [la.looks.step for la in new if la.name in pool.featmap_names])
    sides: int = before.transform.size_divisible  # type: ignore[union-attr, assignment]
    divides = [i for i, level in enumerate(old) if max(level.looks.step) <= sides]
    if divides:
        grown = zip(old[divides[-1]].looks.step, new[divides[-1]].looks.step, strict=True)
        divisible = max(1, int(sides * max(n / o for o, n in grown)))
        after.transform.size_divisible = divisible  # type: ignore[union-attr]
