"""The stock COCO detector under each surgery, trained further: same images, steps and augmentation.

    python -m examples.study.fine_tuning --work runs                      # all rows, three seeds
    python -m examples.study.fine_tuning --work runs --rows base S1L0 --seeds 0 --first 300 --epochs 3

Trains on `coco_train`, evaluates on `coco_public`. A run that was stopped goes on with the same command;
a row whose record is there is skipped. Before the first step a row finds what the detector finds
without training: the boxes that its predictors were trained with are exchanged for the row's own, and
the predictors with them, so that they say the same boxes. With --epochs 0 that is recorded.
"""

import argparse
import copy
import sys
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, cast

import torch
import torch.nn.functional as F
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn
from torchvision.ops import batched_nms, box_convert, clip_boxes_to_image, sigmoid_focal_loss

import stridesurgery as ss
from examples.ssd.configurations import find
from examples.ssd.data import CocoImages, Split
from examples.ssd.model import Detector
from examples.ssd.processes import Processes, Stop
from examples.ssd.programs import run, wanted_device
from examples.ssd.training import Options, Training
from examples.study import records, trained
from examples.study.stock import HIGH_TAP, INPUT_SIZE, LOW_TAP, StockSSD, load_stock
from examples.study.stock_boxes import (
    SCALES,
    anchor_sizes,
    anchors,
    learned_centres,
    six_layers,
    usual_centres,
)
from examples.study.training_free import APART, data_folder

# The paper's rule: a map of a step has the boxes of that step; split: the maps after the second are
# those of the original.
FINE = (0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95)
SPLIT = (0.1, 0.2, 0.5, 0.65, 0.8, 0.95, 1.0)
SIDE = 5.0  # an offset of 1 is a fifth of a factor e, see `stock_boxes.decode`
TO_SSD = (1, 0, 3, 2)  # TensorFlow's rows and columns as x and y


@dataclass(frozen=True)
class Row:
    """One network to train."""

    surgery: str | None = None
    size: int = INPUT_SIZE  # pixels
    scales: tuple[float, ...] = FINE  # of the boxes, shares of the image
    finer_maps: int = 6  # of the six maps, that have twice the cells the predictors were trained on
    combine: str | None = None  # two paths: "split" or "concat"
    padded: bool = True  # whether the last extra looks beyond the border; not: the paper's Fmap1


ROWS = {
    "base": Row(scales=SCALES, finer_maps=0),
    "Size600": Row(size=2 * INPUT_SIZE),
    "S1L6": Row("S1L6"),
    "S1L4": Row("S1L4"),
    "S1L0": Row("S1L0"),
    "S1L0-Fmap1": Row("S1L0", padded=False),
    "S1L0-Split": Row("S1L0", scales=SPLIT, finer_maps=2, combine="split"),
    "S1L0-Concat": Row("S1L0", combine="concat"),
}


# ---- the network


class Pyramid(nn.Module):
    """From images to the six maps that the heads read; the extras start from `root`."""

    def __init__(self, features: nn.Module, extras: nn.ModuleList, root: str | None) -> None:
        super().__init__()
        self.features, self.extras, self.root = features, extras, root

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        found = self.features(images)
        low, high, *_ = found.values()
        start = high if self.root is None else found[self.root]
        more = list(accumulate(self.extras, lambda x, extra: extra(x), initial=start))[1:]
        return OrderedDict((str(i), x) for i, x in enumerate((low, high, *more)))


class Heads(nn.Module):
    """The stock heads for the categories that are asked for, in the words of torchvision."""

    def __init__(self, heads: nn.ModuleList, category_ids: Sequence[int]) -> None:
        super().__init__()
        self.heads, self.category_ids = heads, list(category_ids)

    def forward(self, maps: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return offsets (N, P, 4) and logits (N, P, classes): the background has none."""
        said: dict[str, list[Tensor]] = {"box": [], "cls": []}
        for head, x in zip(self.heads, maps, strict=True):
            for name, parts in said.items():
                values = head.get_submodule(name)(x).permute(0, 2, 3, 1)
                parts.append(values.reshape(len(x), -1, 4 if name == "box" else 91))
        boxes, logits = torch.cat(said["box"], 1), torch.cat(said["cls"], 1)
        return {"bbox_regression": boxes[..., TO_SSD], "cls_logits": logits[..., self.category_ids]}


class Anchors(nn.Module):
    """The same boxes (P, 4), corners as shares of the image, for every image."""

    def __init__(self, boxes: Tensor) -> None:
        super().__init__()
        self.register_buffer("boxes", boxes, persistent=False)

    def forward(self, images: Any, maps: object) -> list[Tensor]:
        shares = self.get_buffer("boxes")
        return [shares * shares.new_tensor([w, h, w, h]) for h, w in images.image_sizes]


class StockDetector(Detector):
    """A detector of one sigmoid a category, trained as it was trained before.

    The focal loss (Lin et al. 2017, alpha 0.75, gamma 2) over all priors, and offsets that count a
    quarter, are TensorFlow's `ssd_mobilenet_v1_0.75_depth_300x300_coco14_sync.config`.
    """

    def compute_loss(self, targets: Any, head_outputs: Any, anchors: Any, matched_idxs: Any) -> Any:
        boxes = classes = positives = head_outputs["cls_logits"].new_zeros(())
        outputs = (head_outputs["bbox_regression"].float(), head_outputs["cls_logits"].float())
        for offsets, logits, target, prior, matched in zip(
            *outputs, targets, anchors, matched_idxs, strict=True
        ):
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
        """Return as torchvision does, but for sigmoids."""
        found = []
        outputs = (head_outputs["bbox_regression"].float(), head_outputs["cls_logits"].float())
        for offsets, logits, prior, shape in zip(
            *outputs, image_anchors, image_shapes, strict=True
        ):
            corners = clip_boxes_to_image(self.box_coder.decode_single(offsets, prior), shape)
            best = logits.sigmoid().topk(min(self.topk_candidates, len(logits)), dim=0)
            anchor, label = best.indices, torch.arange(logits.shape[1]).expand_as(best.indices)
            sure = best.values > self.score_thresh
            boxes, labels = corners[anchor[sure]], label.to(anchor.device)[sure]
            keep = batched_nms(boxes, best.values[sure], labels, self.nms_thresh)
            keep = keep[: self.detections_per_img]
            one = {"boxes": boxes[keep], "scores": best.values[sure][keep]}
            found.append({**one, "labels": labels[keep] + 1})
        return found


def build(row: Row, stock: StockSSD, category_ids: Sequence[int]) -> StockDetector:
    """Return the network of a row with the stock detector's weights; `stock` is left alone."""
    net = copy.deepcopy(stock).requires_grad_(True)
    places, features = _places(row, net), _features(row, net)
    heads = [(_conv(head, "box"), _conv(head, "cls")) for head in net.heads]
    if row.combine == "concat":
        more = cast(Any, features).feature_info.channels()[1] - heads[1][0].in_channels
        for conv in (_conv(net.extras[0], "reduce"), *heads[1]):
            _widen(conv, more)
    if not row.padded:
        _unpad(net.extras[-1])
    for level, (box, _) in enumerate(heads):
        _rebase(box, level, row)
    root = f"large.{HIGH_TAP}" if row.combine == "split" else None
    grey: dict[str, Any] = {"image_mean": [128 / 255] * 3, "image_std": [128 / 255] * 3}
    return StockDetector(
        Pyramid(features, net.extras, root),
        Anchors(box_convert(places[:, TO_SSD], "cxcywh", "xyxy")),  # not clipped, as in training
        (row.size, row.size),
        1 + len(category_ids),
        head=Heads(net.heads, category_ids),
        nms_thresh=0.6,
        detections_per_img=100,
        **grey,
    )


def _conv(block: nn.Module, name: str) -> nn.Conv2d:
    return cast(nn.Conv2d, block.get_submodule(name))


def _features(row: Row, net: StockSSD) -> nn.Module:
    how: dict[str, Any] = {"input_size": row.size}
    taps = (LOW_TAP, HIGH_TAP)
    if row.combine == "split":
        chosen = {"small": taps, "large": (HIGH_TAP,)}
        return ss.dual_path(net.backbone, row.surgery, taps=chosen, **how)
    if row.combine == "concat":
        return ss.dual_path(net.backbone, row.surgery, taps=taps, combine="concat", **how)
    operated = ss.eliminate(net.backbone, row.surgery, **how) if row.surgery else net.backbone
    return ss.features(operated, taps, **how)


def _places(row: Row, net: StockSSD) -> Tensor:
    """Return the anchors (P, 4): on the finer maps at `stock_boxes.learned_centres`."""
    trained_at, finer = six_layers(net, INPUT_SIZE), copy.copy(net)
    if row.surgery is not None:
        finer = copy.deepcopy(net)
        finer.backbone = cast(Any, ss.eliminate(net.backbone, row.surgery, input_size=row.size))
    if not row.padded:
        _unpad(finer.extras[-1])
    layers = six_layers(finer, row.size)
    learned = learned_centres(layers, row.size, trained_at, INPUT_SIZE)[: row.finer_maps]
    return anchors([*learned, *usual_centres(trained_at)[row.finer_maps :]], scales=row.scales)


def _rebase(box: nn.Conv2d, level: int, row: Row) -> None:
    """Change what a box predictor says so that it means the same boxes from the row's anchors.

    On a map with twice the cells it takes objects for twice as large: what it says is meant from
    anchors half as large.
    """
    meant = anchor_sizes(level) * (0.5 if level < row.finer_maps else 1.0)  # height, width
    factor, bias = meant / anchor_sizes(level, row.scales), cast(Tensor, box.bias)
    weights, biases = box.weight.data.unflatten(0, (-1, 4)), bias.data.view(-1, 4)
    weights[:, :2] *= factor[:, :, None, None, None]
    biases[:, :2] *= factor
    biases[:, 2:] += SIDE * factor.log()


def _widen(conv: nn.Conv2d, more: int) -> None:
    """Add input channels, which count nothing before they are trained."""
    out, _, *kernel = conv.weight.shape
    new = conv.weight.new_zeros(out, more, *kernel)
    conv.weight = nn.Parameter(torch.cat([conv.weight.data, new], dim=1))
    conv.in_channels += more


def _unpad(block: nn.Module) -> None:
    """No padding instead of "same": 3 cells become 1."""
    conv = _conv(block, "conv")
    if isinstance(conv, Conv2dSame):
        plain = nn.Conv2d(conv.in_channels, conv.out_channels, 3, stride=2)
        plain.load_state_dict(conv.state_dict())
        cast(Any, block).conv = plain


# ---- the program


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS), metavar="ROW")
    trained.add_recipe(parser, epochs=20)
    a = parser.parse_args(argv)
    sets = [data_folder() / name for name in ("coco_train", "coco_public")]
    train, val = (Split(f / "instances.json", f / "images") for f in sets)
    images = CocoImages(train, with_objects=True, first=a.first)
    same, everyone = trained.settings(a, len(images)), Processes(wanted_device(a.device))
    options = Options(
        lr=a.lr, epochs=a.epochs, batch=a.batch, warmup=a.warmup, augment=not a.no_augment,
        amp=a.amp, workers=a.workers,
    )  # fmt: skip
    for seed in a.seeds if a.epochs else a.seeds[:1]:
        kind = f"seed{seed}" if a.epochs else "untrained"
        for name in a.rows:
            path = a.results / "fine_tuning" / f"{name}-{kind}.json"
            if records.is_done(path, same):
                continue
            folder, row = a.work / "fine_tuning" / f"{name}-{kind}", ROWS[name]
            ssd = build(row, load_stock(data_folder() / "weights"), list(images.categories))
            about = replace(
                find("SSDMnetv1"), name=f"stock {name}", size=row.size, surgery=row.surgery
            )
            with Stop() as stop:
                seeded = replace(options, seed=seed)
                training = Training(ssd, about, images, everyone, seeded, folder, stop)
                if training.path.is_file():
                    training.resume()
                while not training.finished:
                    if not training.run_epoch():
                        sys.exit("Stopped; the same command goes on.")
            rivals = [f"{other}-{kind}" for other in a.rows[: a.rows.index(name)]]
            found = trained.record(ssd, val, folder, rivals, a.device, apart=APART)
            records.write(path, {"row": name, "seed": seed, "settings": same, **found})
            print(f"{path}: AP {found['figures']['ap'][0]:.1f}", flush=True)


if __name__ == "__main__":
    run(main)
