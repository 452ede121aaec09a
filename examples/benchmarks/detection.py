"""The harness beside torchvision's SSD, on equal inputs in one run: each part as a ratio.

    python examples/benchmarks/detection.py
    python examples/benchmarks/detection.py --rounds 30 --batch 16 --device cuda

Both are SSD300 on VGG-16 with the same 81 classes, the same number of priors and the same weights. Both losses get
the same outputs, priors and objects; both post-processings the same outputs and the same limits. Evaluation goes from
images to COCO's results, torchvision's as its detection reference does it; the figures are then of equal results, ours
with their checks, the reference's by pycocotools alone. What is compared is the ratio ours / theirs.
"""

import argparse
import io
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from pycocotools.coco import COCO  # type: ignore[import-untyped]
from pycocotools.cocoeval import COCOeval  # type: ignore[import-untyped]
from torch import Tensor
from torchvision.models.detection import ssd300_vgg16
from torchvision.models.detection.ssd import SSD as TorchvisionSSD
from torchvision.ops import box_convert

from examples.ssd import model
from examples.ssd.annotations import Annotations, Categories, Record
from examples.ssd.configurations import find
from examples.ssd.data import Batch
from examples.ssd.evaluate import predict
from examples.ssd.evaluation import evaluate
from examples.ssd.formatting import as_table
from examples.ssd.loss import losses
from examples.ssd.postprocess import PAPER, detections
from examples.ssd.programs import positive, run, wanted_device

CPU = torch.device("cpu")
CLASSES = 81
FIGURE_IMAGES = 32  # for COCO's figures
OBJECTS = 7  # an image, as many as COCO's have on average
BACKGROUND = (
    8.0  # how much larger its logit is: nearly everything is background for a trained network
)

Call = Callable[[], object]


def with_equal_weights(ours: model.SSD, theirs: TorchvisionSSD) -> None:
    """Give torchvision's network the weights of ours, which has the same layers, and the pixels that they expect."""
    neck: Any = ours.neck
    scores: Any = ours.heads.scores
    for conv in scores:
        conv.bias.data.view(-1, CLASSES)[:, 0] += BACKGROUND
    parts = (neck.norm, ours.features, neck.extras, scores, ours.heads.offsets)
    mine = [p for part in parts for p in part.parameters()]
    for own, other in zip(mine, theirs.parameters(), strict=True):
        other.data.copy_(own.data)
    theirs.transform.image_mean, theirs.transform.image_std = (
        (t.flatten() / 255).tolist() for t in (ours.mean, ours.std)
    )


def networks(ours: model.SSD, theirs: TorchvisionSSD, images: Tensor) -> tuple[Call, Call]:
    """The forward pass up to offsets and logits, in eval mode."""

    def their_call() -> object:
        return theirs.head(list(theirs.backbone(images).values()))

    return inference(lambda: ours(images)), inference(their_call)


def inference(call: Call) -> Call:
    def run_it() -> object:
        with torch.inference_mode():
            return call()

    return run_it


def loss_calls(theirs: TorchvisionSSD, priors: Tensor, batch: int, size: int) -> tuple[Call, Call]:
    """Matching and loss with its gradient, from the same outputs and objects."""
    offsets, logits = outputs(batch, len(priors), priors.device)
    corners = box_convert(priors, "cxcywh", "xyxy")
    boxes = [objects(seed, priors.device) for seed in range(batch)]
    labels = [torch.arange(1, OBJECTS + 1, device=priors.device) for _ in range(batch)]
    targets = [{"boxes": b * size, "labels": k} for b, k in zip(boxes, labels, strict=True)]
    anchors = [corners * size] * batch

    def our_call() -> object:
        a, b = offsets.clone().requires_grad_(), logits.clone().requires_grad_()
        losses(
            a, b, priors, torch.cat(boxes), torch.cat(labels), [OBJECTS] * batch
        ).mean().backward()
        return a.grad

    def their_call() -> object:
        a, b = offsets.clone().requires_grad_(), logits.clone().requires_grad_()
        matched = [their_match(theirs, t["boxes"], anchors[0]) for t in targets]
        both = theirs.compute_loss(
            targets, {"bbox_regression": a, "cls_logits": b}, anchors, matched
        )
        sum(both.values()).backward()
        return a.grad

    return our_call, their_call


def their_match(theirs: TorchvisionSSD, boxes: Tensor, anchors: Tensor) -> Tensor:
    """As torchvision's SSD.forward does it."""
    from torchvision.ops import box_iou

    return theirs.proposal_matcher(box_iou(boxes, anchors))


def suppression_calls(
    theirs: TorchvisionSSD, priors: Tensor, batch: int, size: int
) -> tuple[Call, Call]:
    """From outputs to detections, with the same limits."""
    offsets, logits = outputs(batch, len(priors), priors.device)
    anchors = [box_convert(priors, "cxcywh", "xyxy") * size] * batch
    limits = replace(PAPER, per_class=PAPER.candidates, per_image=theirs.detections_per_img)
    theirs.score_thresh, theirs.nms_thresh, theirs.topk_candidates = (
        limits.score,
        limits.iou,
        limits.candidates,
    )

    def their_call() -> object:
        heads = {"bbox_regression": offsets, "cls_logits": logits}
        return theirs.postprocess_detections(heads, anchors, [(size, size)] * batch)

    def our_call() -> object:
        return detections(offsets, logits.softmax(dim=2)[..., 1:], priors, limits)

    return inference(our_call), inference(their_call)


def evaluation_calls(ours: model.SSD, theirs: TorchvisionSSD, images: Tensor) -> tuple[Call, Call]:
    """From images, uint8, to COCO's results, with the same limits."""
    count, side = len(images), images.shape[-1]
    records = tuple(Record(i, Path(), side, side, (), ()) for i in range(count))
    ids = tuple(range(1, CLASSES))
    annotations = Annotations(records, Categories(ids, tuple(map(str, ids))), {})
    nothing = torch.empty(0, 4), torch.empty(0).long()
    batch = Batch(images, *nothing, counts=(0,) * count, positions=tuple(range(count)))

    def their_call() -> object:
        found = theirs([image / 255 for image in images])
        return [
            result for i, of_image in enumerate(found) for result in as_reference_does(i, of_image)
        ]

    limits = replace(PAPER, per_class=PAPER.candidates, per_image=theirs.detections_per_img)
    return inference(lambda: predict(ours, [batch], annotations, images.device, limits)), inference(
        their_call
    )


def as_reference_does(image_id: int, found: dict[str, Tensor]) -> list[dict[str, object]]:
    """torchvision's references/detection/coco_eval.py."""
    xmin, ymin, xmax, ymax = found["boxes"].unbind(1)
    boxes = torch.stack((xmin, ymin, xmax - xmin, ymax - ymin), dim=1).tolist()
    scores, labels = found["scores"].tolist(), found["labels"].tolist()
    return [
        {"image_id": image_id, "category_id": labels[k], "bbox": box, "score": scores[k]}
        for k, box in enumerate(boxes)
    ]


def figure_calls(batch: int) -> tuple[Call, Call]:
    """COCO's figures of the same results, as many boxes an image as are evaluated."""
    generator = torch.Generator().manual_seed(0)
    truth = coco(batch)
    results = [
        {"image_id": i, "category_id": int(k), "bbox": [*corner, *side], "score": float(s)}
        for i in range(batch)
        for corner, side, k, s in zip(
            (200 * torch.rand(100, 2, generator=generator)).tolist(),
            (100 * torch.rand(100, 2, generator=generator)).tolist(),
            torch.randint(1, CLASSES, (100,), generator=generator),
            torch.rand(100, generator=generator),
            strict=True,
        )
    ]

    def their_call() -> object:
        with redirect_stdout(io.StringIO()):
            evaluator = COCOeval(truth, truth.loadRes(results), "bbox")
            evaluator.evaluate()
            evaluator.accumulate()
            evaluator.summarize()
        return evaluator.stats

    return (lambda: evaluate(truth, results)), their_call


def coco(images: int, side: int = 300) -> COCO:
    """The objects of as many images, in COCO's form."""
    truth = COCO()
    boxes = [
        (i, box)
        for i in range(images)
        for box in box_convert(objects(i, CPU) * side, "xyxy", "xywh").tolist()
    ]
    truth.dataset = {
        "images": [{"id": i, "width": side, "height": side} for i in range(images)],
        "annotations": [
            {
                "id": n,
                "image_id": i,
                "category_id": n % 80 + 1,
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": 0,
            }
            for n, (i, box) in enumerate(boxes, start=1)
        ],
        "categories": [{"id": k, "name": str(k)} for k in range(1, CLASSES)],
    }
    with redirect_stdout(io.StringIO()):
        truth.createIndex()
    return truth


def outputs(batch: int, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Offsets (N, P, 4) and logits (N, P, C) as a trained network's: nearly everything is background."""
    generator = torch.Generator(device).manual_seed(0)
    offsets = torch.randn(batch, count, 4, device=device, generator=generator)
    logits = torch.randn(batch, count, CLASSES, device=device, generator=generator)
    logits[..., 0] += BACKGROUND
    return offsets, logits


def objects(seed: int, device: torch.device) -> Tensor:
    """(OBJECTS, 4): corners as shares of the image."""
    generator = torch.Generator().manual_seed(seed)
    corner, side = torch.rand(2, OBJECTS, 2, generator=generator)
    side = 0.05 + 0.4 * side
    start = corner * (1 - side)
    return torch.cat([start, start + side], dim=1).to(device)


def medians(
    pair: tuple[Call, Call], rounds: int, device: torch.device
) -> tuple[float, float, float]:
    """Milliseconds of each, called in turn, and the ratio of a round; who goes first takes turns too."""
    samples: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds + 2):
        for which in (0, 1) if number % 2 else (1, 0):
            started = time.perf_counter()
            pair[which]()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if number >= 2:  # the first ones warm up
                samples[which].append((time.perf_counter() - started) * 1e3)
    ratios = [mine / other for mine, other in zip(*samples, strict=True)]
    return statistics.median(samples[0]), statistics.median(samples[1]), statistics.median(ratios)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=positive, default=15, help="(default: %(default)s)")
    parser.add_argument("--batch", type=positive, default=8, help="images (default: %(default)s)")
    parser.add_argument("--device", help="cpu, cuda, ... (default: the GPU if there is one)")
    arguments = parser.parse_args(argv)
    device = wanted_device(arguments.device)
    row = replace(
        find("SSD-VGG16"), boxes=(4, 6, 6, 6, 4, 4)
    )  # torchvision has four boxes on the first map
    ours = model.build(row, CLASSES).eval().to(device)
    theirs = (
        ssd300_vgg16(weights=None, weights_backbone=None, num_classes=CLASSES).eval().to(device)
    )
    with_equal_weights(ours, theirs)
    pixels = torch.randint(
        0, 256, (arguments.batch, 3, row.size, row.size), device=device, dtype=torch.uint8
    )
    images = ours.prepare(pixels)
    with torch.inference_mode():
        heads = theirs.head(list(theirs.backbone(images).values()))
        torch.testing.assert_close(
            ours(images), (heads["bbox_regression"], heads["cls_logits"]), rtol=1e-3, atol=1e-3
        )
    pairs = {
        "network": networks(ours, theirs, images),
        "loss": loss_calls(theirs, ours.priors, arguments.batch, row.size),
        "post-processing": suppression_calls(theirs, ours.priors, arguments.batch, row.size),
        "evaluation": evaluation_calls(ours, theirs, pixels),
        "COCO's figures": figure_calls(FIGURE_IMAGES),
    }
    lines = []
    for name, pair in pairs.items():
        mine, other, ratio = medians(pair, arguments.rounds, device)
        lines.append((name, f"{mine:.1f}", f"{other:.1f}", f"{ratio:.2f}"))
    print(
        f"{arguments.batch} images, {len(ours.priors)} priors, {arguments.rounds} rounds, {device}"
    )
    print(as_table(("", "ours ms", "torchvision ms", "ratio"), lines))


if __name__ == "__main__":
    run(main)
