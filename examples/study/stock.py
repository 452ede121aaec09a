"""A COCO-trained SSD on MobileNet v1, as a detector of torchvision's class.

The network is TensorFlow's `ssd_mobilenet_v1_0.75_depth_300x300_coco14_sync`: "same" padding,
ReLU6, batch norms folded into the convolutions, one sigmoid a category. It is rebuilt from the
layer table beside its weights, and trained further with the focal loss that it was trained with.
"""

import json
import os
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.ops import batched_nms, clip_boxes_to_image, sigmoid_focal_loss

import stridesurgery as ss
from examples.ssd.model import Detector
from examples.ssd.programs import DetectionError
from stridesurgery.detection import GeometryBoxes, Level, Stand, levels

NAME = "ssd_mobilenet_v1_075_coco_300"
SIZE = 300  # pixels
TAPS = (11, 13)  # the backbone's layers whose maps are predicted from; the others are the extras'
SCALES = (0.2, 0.35, 0.5, 0.65, 0.8, 0.95, 1.0)  # of the six maps, and one more to interpolate
TO_SSD = (1, 0, 3, 2)  # TensorFlow's rows and columns as x and y
GREY = {"image_mean": [128 / 255] * 3, "image_std": [128 / 255] * 3}
LIMITS = {
    "score_thresh": 0.02,  # the 100 boxes that are kept of a photograph score more
    "nms_thresh": 0.6,
    "topk_candidates": 2000,  # of all categories; 1000 or 5000 give the same AP
    "detections_per_img": 100,
}


def data_folder() -> Path:
    """Return the folder with weights and photographs."""
    folder = os.environ.get("STRIDESURGERY_DATA")
    if not folder or not (Path(folder) / "weights").is_dir():
        raise DetectionError("STRIDESURGERY_DATA names no folder with weights and photographs.")
    return Path(folder)


# ---- the network


def load_parts(folder: Path) -> nn.ModuleDict:
    """Return the detector's backbone, extras and heads, in eval mode, from a table and weights."""
    table = json.loads((folder / f"{NAME}.json").read_text(encoding="utf-8"))
    blocks: dict[str, OrderedDict[str, nn.Module]] = {}
    for row in table["layers"]:
        if row["padding"] != "SAME" or row["activation"] not in ("relu6", None):
            raise DetectionError(f"{row['name']}: padding or activation of another network.")
        part, number, name = row["name"].split(".")
        block: Any = blocks.setdefault(part, OrderedDict()).setdefault(number, nn.Sequential())
        out_channels, per_group, kernel, _ = row["shape"]
        kind = nn.Conv2d if kernel == 1 else Conv2dSame  # nothing is added around one cell
        how = {"stride": row["stride"], "groups": row["groups"]}
        block.add_module(name, kind(per_group * row["groups"], out_channels, kernel, **how))
        if row["activation"] is not None:
            block.add_module(f"{name}_act", nn.ReLU6())
    backbone = nn.Sequential(blocks.pop("backbone"))  # block i holds layer i
    lists = {name: nn.ModuleList(own.values()) for name, own in blocks.items()}
    whole = nn.ModuleDict({"backbone": backbone, **lists})
    state = load_file(folder / f"{NAME}.safetensors")
    state.pop("anchors_tflite", None)  # rounded to steps of 2 pixels; `Boxes` gives exact ones
    whole.load_state_dict(state)
    return whole.eval()


class Pyramid(nn.Module):
    """From images to the six maps that the heads read; the extras start from the map `root`."""

    def __init__(self, features: nn.Module, extras: nn.Module, root: str | None = None) -> None:
        super().__init__()
        self.features, self.extras, self.root = features, extras, root

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        return self.six(self.features(images))

    def six(self, found: Mapping[str, Tensor]) -> OrderedDict[str, Tensor]:
        """Return the six maps from the backbone's."""
        low, high, *_ = found.values()
        start = high if self.root is None else found[self.root]
        extras = cast(nn.ModuleList, self.extras)
        more = list(accumulate(extras, lambda x, extra: extra(x), initial=start))[1:]
        return OrderedDict((str(i), x) for i, x in enumerate((low, high, *more)))


class Heads(nn.Module):
    """The heads for the categories that are asked for, in the words of torchvision."""

    def __init__(self, heads: nn.Module, categories: Sequence[int]) -> None:
        super().__init__()
        self.heads, self.categories = heads, list(categories)

    def forward(self, maps: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return offsets (N, P, 4) and logits (N, P, classes): the background has none."""
        said: dict[str, list[Tensor]] = {"box": [], "cls": []}
        for head, x in zip(cast(nn.ModuleList, self.heads), maps, strict=True):
            for name, parts in said.items():
                values = head.get_submodule(name)(x).permute(0, 2, 3, 1)
                parts.append(values.reshape(len(x), -1, 4 if name == "box" else 91))
        boxes, logits = torch.cat(said["box"], 1), torch.cat(said["cls"], 1)
        return {"bbox_regression": boxes[..., TO_SSD], "cls_logits": logits[..., self.categories]}


class StockDetector(Detector):
    """A detector of one sigmoid a category, which also takes photographs of any size.

    The focal loss (Lin et al. 2017, alpha 0.75, gamma 2) over all boxes, and offsets that count a
    quarter, are those that it was trained with.
    """

    see: Callable[[Image.Image, int], Image.Image]  # the photograph as the network gets it

    def forward(self, images: Any, targets: Any = None) -> Any:
        if not isinstance(images[0], Image.Image):
            return super().forward(images, targets)
        size = self.transform.fixed_size[0]
        found = super().forward([as_tensor(self.see(image, size)) for image in images])
        for image, one in zip(images, found, strict=True):
            one["boxes"] = one["boxes"] * torch.tensor([*image.size, *image.size]) / size
        return found

    def compute_loss(self, targets: Any, head_outputs: Any, anchors: Any, matched_idxs: Any) -> Any:
        boxes = classes = positives = head_outputs["cls_logits"].new_zeros(())
        images = (*(x.float() for x in head_outputs.values()), targets, anchors, matched_idxs)
        for offsets, logits, target, prior, matched in zip(*images, strict=True):
            found = matched >= 0
            rows, wanted = matched[found], torch.zeros_like(logits)
            wanted[found] = F.one_hot(target["labels"][rows] - 1, logits.shape[1]).float()
            encoded = self.box_coder.encode_single(target["boxes"][rows], prior[found])
            boxes = boxes + F.smooth_l1_loss(offsets[found], encoded, reduction="sum") / 4
            classes = classes + sigmoid_focal_loss(logits, wanted, 0.75, 2, reduction="sum")
            positives = positives + found.sum()
        count = positives.clamp(min=1)
        losses = {"bbox_regression": boxes / count, "classification": classes / count}
        return {**losses, "positives": positives}

    def postprocess_detections(
        self, head_outputs: Any, image_anchors: Any, image_shapes: Any
    ) -> list[dict[str, Tensor]]:
        """Return as torchvision does, but for sigmoids, and `topk_candidates` of all categories."""
        found, images = (
            [],
            (*(x.float() for x in head_outputs.values()), image_anchors, image_shapes),
        )
        for offsets, logits, prior, shape in zip(*images, strict=True):
            scores = logits.sigmoid()
            anchor, label = (scores > self.score_thresh).nonzero(as_tuple=True)
            best = scores[anchor, label].topk(min(self.topk_candidates, len(anchor)))
            anchor, labels = anchor[best.indices], label[best.indices] + 1
            boxes = self.box_coder.decode_single(offsets[anchor], prior[anchor])
            one = {"boxes": clip_boxes_to_image(boxes, shape), "scores": best.values}
            kept = batched_nms(one["boxes"], one["scores"], labels, self.nms_thresh)
            kept = kept[: self.detections_per_img]
            found.append({key: value[kept] for key, value in {**one, "labels": labels}.items()})
        return found


def detector(
    parts: nn.ModuleDict,
    features: nn.Module | None = None,
    boxes: DefaultBoxGenerator | None = None,
    *,
    size: int = SIZE,
    root: str | None = None,
    categories: Sequence[int] = range(1, 91),
) -> StockDetector:
    """Return a detector in eval mode on the given parts; by default as it was trained."""
    if features is None:
        features = ss.features(parts["backbone"], TAPS, input_size=size)
    pyramid, head = Pyramid(features, parts["extras"], root), Heads(parts["heads"], categories)
    how: dict[str, Any] = {"head": head, **LIMITS, **GREY}
    net = StockDetector(pyramid, boxes or Boxes(), (size, size), 1 + len(categories), **how)
    net.see = resized
    return net.eval()


def resized(photograph: Image.Image, size: int) -> Image.Image:
    return photograph.resize((size, size), Image.Resampling.BILINEAR)


def enlarged(photograph: Image.Image, size: int) -> Image.Image:
    """Return `size` pixels of which no more is known than of SIZE; bicubic does best."""
    return resized(photograph, SIZE).resize((size, size), Image.Resampling.BICUBIC)


def as_tensor(image: Image.Image) -> Tensor:
    """Return (3, H, W) in 0..1."""
    return torch.tensor(np.asarray(image)).permute(2, 0, 1) / 255


# ---- boxes


class Boxes(DefaultBoxGenerator):
    """The default boxes, `factor` times as large as in training, in the middles of equal cells."""

    def __init__(self, scales: Sequence[float] = SCALES, factor: float = 1.0) -> None:
        super().__init__([[2, 3]] * 6, scales=list(scales), clip=False)
        # torchvision's second box of a cell, between two scales, is TensorFlow's last one.
        made = self._generate_wh_pairs(6)
        sides = [pairs[[0, 2, 3, 4, 5, 1]] for pairs in made]
        sides[0] = sides[0][:3] * torch.tensor([[0.5], [1.0], [1.0]])
        self._wh_pairs = [pairs * factor for pairs in sides]

    def num_anchors_per_location(self) -> list[int]:
        return list(map(len, self._wh_pairs))


def middles(level: Level) -> ss.MapGeometry:
    """Return where the boxes of a map of the trained network stand."""
    rows, columns = (SIZE / cells for cells in level.grid)
    return replace(level.looks, step=(rows, columns), offset=(rows / 2 - 0.5, columns / 2 - 0.5))


def carried(trained: Level, level: Level) -> ss.MapGeometry:
    """Return where the boxes of a map stand that predictors of another grid were trained for.

    A predictor knows nothing of pixels: it has learned how far its box stands from the point that
    its cell looks at, on average, in cells. In this detector that is up to a third of a cell, since
    "same" padding shifts the points and not the boxes.
    """
    stood, looks = (g.centres(trained.grid) for g in (middles(trained), trained.looks))
    row, column = (float(b[0] + (a - b).mean()) for a, b in zip(stood, looks, strict=True))
    row, column = level.looks.carry((row, column), trained.looks)
    return replace(level.looks, offset=(row - 0.5, column - 0.5))


def at_size(parts: nn.ModuleDict, size: int) -> StockDetector:
    """Return the detector for an input size, its boxes as many cells large as in training."""
    if size == SIZE:
        return detector(parts)
    net, trained = detector(parts, size=size), levels(detector(parts).backbone, SIZE)
    pairs = zip(trained, levels(net.backbone, size), strict=True)
    where = [Stand(carried(*pair)) for pair in pairs]
    net.anchor_generator = GeometryBoxes(Boxes(factor=SIZE / size), where)
    return net
