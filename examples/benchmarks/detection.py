"""The harness beside torchvision's SSD, on equal inputs in one run: network, loss and post-processing as ratios.

    python examples/benchmarks/detection.py
    python examples/benchmarks/detection.py --rounds 30 --batch 16 --device cuda

Both are SSD300 on VGG-16 with the same 81 classes and the same number of priors. Both losses get the same outputs,
priors and objects; both post-processings the same outputs and the same limits. What is compared is the
ratio ours / theirs.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from torch import Tensor
from torchvision.models.detection import ssd300_vgg16
from torchvision.models.detection.ssd import SSD as TorchvisionSSD
from torchvision.ops import box_convert

from examples.ssd import model
from examples.ssd.configurations import find
from examples.ssd.formatting import as_table
from examples.ssd.loss import losses
from examples.ssd.postprocess import PAPER, detections
from examples.ssd.programs import positive, run, wanted_device

CLASSES = 81
OBJECTS = 7  # an image, as many as COCO's have on average
SCORES_ABOVE = 4.0  # how much likelier background is in the outputs, as in a trained network's

Call = Callable[[], object]


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
        losses(a, b, priors, torch.cat(boxes), torch.cat(labels), [OBJECTS] * batch).mean().backward()
        return a.grad

    def their_call() -> object:
        a, b = offsets.clone().requires_grad_(), logits.clone().requires_grad_()
        matched = [their_match(theirs, t["boxes"], anchors[0]) for t in targets]
        both = theirs.compute_loss(targets, {"bbox_regression": a, "cls_logits": b}, anchors, matched)
        sum(both.values()).backward()
        return a.grad

    return our_call, their_call


def their_match(theirs: TorchvisionSSD, boxes: Tensor, anchors: Tensor) -> Tensor:
    """As torchvision's SSD.forward does it."""
    from torchvision.ops import box_iou

    return theirs.proposal_matcher(box_iou(boxes, anchors))


def suppression_calls(theirs: TorchvisionSSD, priors: Tensor, batch: int, size: int) -> tuple[Call, Call]:
    """From outputs to detections, with the same limits."""
    offsets, logits = outputs(batch, len(priors), priors.device)
    anchors = [box_convert(priors, "cxcywh", "xyxy") * size] * batch
    limits = replace(PAPER, per_class=PAPER.candidates, per_image=theirs.detections_per_img)
    theirs.score_thresh, theirs.nms_thresh, theirs.topk_candidates = limits.score, limits.iou, limits.candidates

    def their_call() -> object:
        heads = {"bbox_regression": offsets, "cls_logits": logits}
        return theirs.postprocess_detections(heads, anchors, [(size, size)] * batch)

    return inference(lambda: detections(offsets, logits, priors, limits)), inference(their_call)


def outputs(batch: int, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Offsets (N, P, 4) and logits (N, P, C) as a trained network's: nearly everything is background."""
    generator = torch.Generator(device).manual_seed(0)
    offsets = torch.randn(batch, count, 4, device=device, generator=generator)
    logits = torch.randn(batch, count, CLASSES, device=device, generator=generator)
    logits[..., 0] += SCORES_ABOVE + 4
    return offsets, logits


def objects(seed: int, device: torch.device) -> Tensor:
    """(OBJECTS, 4): corners as shares of the image."""
    generator = torch.Generator().manual_seed(seed)
    corner, side = torch.rand(2, OBJECTS, 2, generator=generator)
    side = 0.05 + 0.4 * side
    start = corner * (1 - side)
    return torch.cat([start, start + side], dim=1).to(device)


def medians(pair: tuple[Call, Call], rounds: int, device: torch.device) -> tuple[float, float]:
    """Milliseconds of each, called in turn; who goes first takes turns too."""
    samples: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds + 2):
        for which in (0, 1) if number % 2 else (1, 0):
            started = time.perf_counter()
            pair[which]()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if number >= 2:  # the first ones warm up
                samples[which].append((time.perf_counter() - started) * 1e3)
    return statistics.median(samples[0]), statistics.median(samples[1])


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=positive, default=15, help="(default: %(default)s)")
    parser.add_argument("--batch", type=positive, default=8, help="images (default: %(default)s)")
    parser.add_argument("--device", help="cpu, cuda, ... (default: the GPU if there is one)")
    arguments = parser.parse_args(argv)
    device = wanted_device(arguments.device)
    row = replace(find("SSD-VGG16"), boxes=(4, 6, 6, 6, 4, 4))  # torchvision has four boxes on the first map
    ours = model.build(row, CLASSES).eval().to(device)
    theirs = ssd300_vgg16(weights=None, weights_backbone=None, num_classes=CLASSES).eval().to(device)
    images = torch.rand(arguments.batch, 3, row.size, row.size, device=device)
    pairs = {
        "network": networks(ours, theirs, images),
        "loss": loss_calls(theirs, ours.priors, arguments.batch, row.size),
        "post-processing": suppression_calls(theirs, ours.priors, arguments.batch, row.size),
    }
    lines = []
    for name, pair in pairs.items():
        mine, other = medians(pair, arguments.rounds, device)
        lines.append((name, f"{mine:.1f}", f"{other:.1f}", f"{mine / other:.2f}"))
    print(f"{arguments.batch} images, {len(ours.priors)} priors, {arguments.rounds} rounds, {device}")
    print(as_table(("", "ours ms", "torchvision ms", "ratio"), lines))


if __name__ == "__main__":
    run(main)
