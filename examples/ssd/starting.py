"""The network before the first step: on a pretrained backbone, or with what fits of another detector."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from examples.ssd import augment, checkpoint
from examples.ssd.annotations import Annotations, Categories
from examples.ssd.configurations import Configuration
from examples.ssd.data import Images
from examples.ssd.errors import CheckpointError
from examples.ssd.model import SSD, build
from examples.ssd.weights import load_backbone, wake_norms

WAKING_IMAGES = 32


def new_detector(
    arguments: argparse.Namespace, row: Configuration, annotations: Annotations, say: bool
) -> SSD:
    """With the weights that the arguments of `train` ask for; a run that is resumed brings its own later."""
    torch.manual_seed(arguments.seed)
    classes = annotations.categories.classes
    if arguments.resume:
        return build(row, classes)
    if arguments.init_from is not None:
        ssd = build(row, classes)
        told = take_over(ssd, annotations.categories, arguments.init_from)
    else:
        ssd, told = on_backbone(row, annotations, arguments.weights)
    if say:
        print(told)
    return ssd


def on_backbone(row: Configuration, annotations: Annotations, weights: str) -> tuple[SSD, str]:
    """A detector that expects the pixels of its backbone's weights, and what was loaded."""
    backbone = load_backbone(row.backbone, weights)
    woken = 0
    if weights != "none":
        woken = wake_norms(backbone.net, example(row, annotations, backbone.mean, backbone.std))
    ssd = build(row, annotations.categories.classes, backbone.net)
    ssd.mean.copy_(255 * torch.tensor(backbone.mean).view(3, 1, 1))
    ssd.std.copy_(255 * torch.tensor(backbone.std).view(3, 1, 1))
    return ssd, f"Backbone: {row.backbone}, {backbone.source}" + (
        f"; {woken} folded batch norms woken" if woken else ""
    )


def example(
    row: Configuration, annotations: Annotations, mean: Sequence[float], std: Sequence[float]
) -> Tensor:
    """A few images as the backbone takes them: (N, 3, size, size)."""
    images = Images(annotations, augment.for_testing(row.size))
    pixels = (
        torch.stack([images[i].image for i in range(min(WAKING_IMAGES, len(images)))]).float() / 255
    )
    return (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def take_over(ssd: SSD, categories: Categories, path: Path) -> str:
    """Start from another detector's weights where name and shape agree; says what was and was not taken.

    categories: of the new detector. The class scores of other categories are left: they would mean other things.
    """
    content = checkpoint.load(path)
    weights: Mapping[str, Tensor] = content.get("average") or content["model"]
    own, known = ssd.state_dict(), checkpoint.categories_in(content)
    foreign = (
        set()
        if known.names == categories.names
        else {k for k in own if k.startswith("heads.scores.")}
    )
    same_shape = {k for k in own.keys() & weights.keys() if own[k].shape == weights[k].shape}
    taken = same_shape - foreign
    if not taken:
        raise CheckpointError(
            f"no weight of {path} has the name and shape of one of this network's."
        )
    ssd.load_state_dict({k: weights[k] for k in taken}, strict=False)
    left = {
        "not in this network": weights.keys() - own.keys(),
        "of another shape": weights.keys() & own.keys() - same_shape,
        f"of other categories ({_some(known.names)}; now {_some(categories.names)})": same_shape
        & foreign,
        "new in this network, left as they were": own.keys() - weights.keys(),
    }
    lines = [f"{len(taken)} of {len(own)} tensors taken from {path}."]
    lines += [
        f"  {len(keys)} {what}: {_some(sorted(keys), 6)}" for what, keys in left.items() if keys
    ]
    return "\n".join(lines)


def _some(keys: Sequence[str], most: int = 3) -> str:
    return ", ".join(keys[:most]) + (", ..." if len(keys) > most else "")
