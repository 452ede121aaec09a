"""A finer `ssd300_vgg16` or `ssdlite320_mobilenet_v3_large`."""

import copy

from torch import nn
from torchvision.models.detection.ssd import SSD, SSDFeatureExtractorVGG

import stridesurgery as ss
from examples.detectors.anchors import GeometryBoxes, Level, Pair, stands
from examples.detectors.backbones import levels_at, operated


def finer_ssd(
    model: SSD, surgery: str | ss.Surgery, *, sizes: str = "follow", centres: str = "looks"
) -> SSD:
    """A copy of a torchvision SSD with strides eliminated in its backbone and its default boxes moved.

    Args:
        model: `ssd300_vgg16(...)` or `ssdlite320_mobilenet_v3_large(...)`, trained or not.
        surgery: as `ss.inspect(model.backbone, ...)` numbers the layers; "S1L9" is ssd300's pool3.
        sizes: "follow" (boxes as many cells large as before) or "stay" (as many pixels); see `anchors.stands`.
        centres: "looks" (where cells look) or "carried" (as trained predictors have learned); see there.

    Returns:
        The detector, with the state_dict keys of the original: six maps, all after the transition k times larger.

    Raises:
        ss.SurgeryError: the surgery is not possible.
    """
    width, height = model.transform.fixed_size
    finer = copy.deepcopy(model)
    finer.backbone = operated(model.backbone, surgery, (height, width))
    before, after = (ssd_levels(m.backbone, (height, width)) for m in (model, finer))
    where = stands(
        model.anchor_generator, (height, width), before, after, sizes=sizes, centres=centres
    )
    finer.anchor_generator = GeometryBoxes(model.anchor_generator, where)
    return finer


def ssd_levels(backbone: nn.Module, size: Pair) -> tuple[Level, ...]:
    """The maps that an SSD backbone returns for inputs of (h, w) pixels."""
    paths = [
        f"{part}.{name}" for part in ("features", "extra") for name in _children(backbone, part)
    ]
    if isinstance(
        backbone, SSDFeatureExtractorVGG
    ):  # the first map is that of all `features`, rescaled
        paths = ["features", *(path for path in paths if path.startswith("extra."))]
    return levels_at(backbone, lambda name: paths[int(name)], size)


def _children(module: nn.Module, path: str) -> list[str]:
    return [name for name, _ in module.get_submodule(path).named_children()]
