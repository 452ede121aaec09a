"""What must hold of a detector that was operated on, for the tests of several files."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import stridesurgery as ss
from stridesurgery.detection.anchors import middles

SMALL: dict[str, Any] = {"weights": None, "weights_backbone": None, "num_classes": 4}
RESIZED: dict[str, Any] = {"min_size": 64, "max_size": 96}  # to sides of 64 and up to 96 pixels
IMAGES = ((131, 97), (70, 101))  # (h, w): of different shapes, odd, one high and one wide


def target(h: int, w: int) -> dict[str, Tensor]:
    """Two objects, as every kind of detector is told of them."""
    boxes = torch.tensor([[5.0, 8, 40, 60], [50, 3, 80, 30]])
    masks = torch.zeros(2, h, w, dtype=torch.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
        mask[top:bottom, left:right] = 1
    points = torch.stack([middles(boxes)] * 17, dim=1)  # keypoints, all in the middle
    keypoints = torch.cat([points, torch.ones(2, 17, 1)], dim=2)
    labels = torch.tensor([1, 3])
    return {"boxes": boxes, "labels": labels, "masks": masks, "keypoints": keypoints}


@dataclass(frozen=True)
class Seen:
    """What the parts of a detector gave in one pass."""

    image: tuple[int, int]  # (h, w) pixels of the batch, padding included
    maps: list[Tensor]
    anchors: list[Tensor]  # (A, 4) an image


def images() -> list[Tensor]:
    return [torch.rand(3, *size) for size in IMAGES]


def watched(model: nn.Module, generator: nn.Module) -> Seen:
    """Evaluate a detector, look at what its backbone and its generator give, and check its detections."""
    kept: dict[str, Any] = {}
    handles = [
        model.get_submodule("backbone").register_forward_hook(
            lambda m, x, out: kept.update(x=x[0], maps=out)
        ),
        generator.register_forward_hook(lambda m, x, out: kept.update(anchors=out)),
    ]
    with torch.inference_mode():
        found = model(images())
    for handle in handles:
        handle.remove()
    assert len(found) == len(IMAGES)
    for detections, (h, w) in zip(found, IMAGES, strict=True):
        boxes = detections["boxes"]
        assert (
            boxes.isfinite().all()
            and (boxes >= 0).all()
            and (boxes <= torch.tensor([w, h, w, h]) + 1e-3).all()
        )
    return Seen(tuple(kept["x"].shape[2:]), list(kept["maps"].values()), kept["anchors"])


def check_anchors(seen: Seen, looks: Sequence[ss.MapGeometry], per_cell: Sequence[int]) -> None:
    """As many as cells times boxes, in the maps' order; all on the geometry and inside the image."""
    grids = [m.shape[2:] for m in seen.maps]
    counts = [n * h * w for n, (h, w) in zip(per_cell, grids, strict=True)]
    for anchors in seen.anchors:
        assert len(anchors) == sum(counts)
        assert torch.equal(anchors, seen.anchors[0])  # they know the batch, not the image
        for part, n, grid, geometry in zip(
            anchors.split(counts), per_cell, grids, looks, strict=True
        ):
            rows_, columns = geometry.centres(grid)
            expected = torch.stack(torch.meshgrid(columns, rows_, indexing="xy"), dim=-1)[
                ..., None, :
            ]
            torch.testing.assert_close(
                middles(part).view(*grid, n, 2), expected.expand(*grid, n, 2), rtol=0, atol=1e-4
            )
            assert rows_.min() >= 0 and rows_.max() <= seen.image[0]
            assert columns.min() >= 0 and columns.max() <= seen.image[1]


def check_losses(model: nn.Module) -> None:
    """In train mode with targets every loss is finite, and every backbone parameter that learns gets a gradient."""
    torch.manual_seed(0)
    losses = model.train()(images(), [target(h, w) for h, w in IMAGES])
    model.eval()
    assert all(value.isfinite() for value in losses.values()), losses
    sum(losses.values()).backward()
    gradients = [p.grad for p in model.get_submodule("backbone").parameters() if p.requires_grad]
    assert gradients and all(g is not None and g.isfinite().all() for g in gradients)
    model.zero_grad()
