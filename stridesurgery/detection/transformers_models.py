"""The DETR family of transformers, told by name and not imported."""

from typing import Any

from stridesurgery._analysis import NewStride
from stridesurgery.errors import RequestError
from stridesurgery.surgery import Surgery

FAMILIES = {
    "conditional_detr": "ConditionalDetr",
    "deformable_detr": "DeformableDetr",
    "detr": "Detr",
    "rt_detr": "RTDetr",
    "rt_detr_v2": "RTDetrV2",
    "table_transformer": "TableTransformer",
}
_HOME = "transformers.models.{0}.modeling_{0}.{1}"
# where the backbone, timm's or their own, is in each class
PLACES = {
    _HOME.format(module, f"{name}{end}"): at
    for module, name in FAMILIES.items()
    for end, at in (("Model", "backbone.model"), ("ForObjectDetection", "model.backbone.model"))
}


def follow(before: Any, after: Any, surgery: Surgery, stride: NewStride) -> None:
    """Set RT-DETR's strides; in the others positions and reference points are shares of the image.

    Raises:
        RequestError: anchors that were made for one image size, before the surgery.
    """
    old = getattr(before.config, "feat_strides", None)
    if old is None:
        return
    if before.config.anchor_image_size is not None:
        raise RequestError(
            "config.anchor_image_size fixes the anchors of RT-DETR; build it with "
            "anchor_image_size=None"
        )
    new = [float(max(stride((side, side)))) for side in old]
    for holder in (after.config, *after.modules()):
        for name in ("feat_strides", "out_strides"):
            if name in vars(holder):
                setattr(holder, name, [int(s) if s.is_integer() else s for s in new])
