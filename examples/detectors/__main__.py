"""Detectors as they are, patched by hand, and operated: their maps, and where anchors stand.

    python -m examples.detectors

Random weights, nothing is downloaded and no network runs: maps are told from shapes.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import timm
from torch import nn
from torchvision.models import detection

import stridesurgery as ss
from examples.detectors.by_hand import by_hand
from examples.detectors.encoder import Encoder
from examples.detectors.pyramid import Pair, faster_rcnn, pyramid
from examples.ssd.programs import as_table

RANDOM: dict[str, Any] = {"weights": None, "weights_backbone": None}
HEADER = ("", "maps (cells)", "steps (pixels)", "anchors", "inside", "farthest")


@dataclass(frozen=True)
class Case:
    """One detector, one surgery, one input size."""

    build: Callable[..., nn.Module]
    surgery: str
    patched: str  # the module that people patch for it
    size: Pair  # (h, w) pixels


CASES = (
    Case(detection.ssd300_vgg16, "S1L9", "backbone.features.16", (300, 300)),
    Case(detection.ssdlite320_mobilenet_v3_large, "S1L0", "backbone.features.0.0.0", (320, 320)),
    # a usual photograph as torchvision resizes and pads it
    Case(detection.retinanet_resnet50_fpn, "S1L0", "backbone.body.conv1", (800, 1088)),
    Case(detection.fasterrcnn_resnet50_fpn, "S1L0", "backbone.body.conv1", (800, 1088)),
)


def rows(case: Case) -> Iterator[tuple[str, ...]]:
    """The table's rows of one detector."""
    stock = case.build(**RANDOM)
    yield row("as it is", stock, case.size)
    yield row("by hand", by_hand(stock, case.patched), case.size)
    yield row("library", ss.eliminate(stock, case.surgery), case.size)
    carried = ss.eliminate(stock, case.surgery, centres="carried")
    yield row("library, carried", carried, case.size)


def row(title: str, model: nn.Module, size: Pair) -> tuple[str, ...]:
    """Maps and anchors of one network in words."""
    found = ss.detection.placement(model, size)
    cells = " ".join(f"{h}x{w}" for h, w in (level.grid for level in found.levels))
    steps = " ".join(f"{level.looks.step[0]:g}" for level in found.levels)
    return title, cells, steps, str(found.count), f"{found.inside:.1%}", f"{found.farthest:.2f}"


def main() -> None:
    """Print the tables."""
    print(
        "inside: share of anchor centres inside the image; farthest: the greatest distance from an "
        "anchor's\ncentre to where its cell looks, in cells"
    )
    for case in CASES:
        print(f"\n{case.build.__name__}, {case.surgery}, {case.size[0]}x{case.size[1]}")
        print(as_table(HEADER, rows(case)))

    backbone = pyramid(timm.create_model("efficientnet_b0", num_classes=0), "S1L0")
    line = row("library", faster_rcnn(backbone, num_classes=91), (512, 512))
    print("\nFaster R-CNN on a pyramid of timm's efficientnet_b0, S1L0, 512x512")
    print(as_table(HEADER, [line]))

    net: Any = timm.create_model("resnet18", features_only=True)
    fine: Any = ss.eliminate(net, "S1L0")
    steps = f"{net.feature_info.reduction()} -> {fine.feature_info.reduction()}"
    print("\ntimm's resnet18, features_only=True: reductions", steps)
    encoder = Encoder(timm.create_model("resnet18"), "S1L0")
    told = f"channels {encoder.out_channels} output stride {encoder.output_stride}"
    print("An encoder for segmentation:", told)


if __name__ == "__main__":
    main()
