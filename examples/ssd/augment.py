"""From annotated image to network input: SSD's augmentation for training, a plain resize for everything else."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torchvision.transforms import v2

GREY = (124, 116, 104)  # ImageNet's mean, around images that are made smaller


def for_training(size: int) -> v2.Transform:
    """SSD's: photometric distortion, expansion, a crop by IoU, mirroring, resize; then boxes of no area are dropped."""
    return v2.Compose(
        [
            v2.RandomPhotometricDistort(),
            v2.RandomZoomOut(fill=list(GREY)),
            v2.RandomIoUCrop(),
            v2.RandomHorizontalFlip(),
            for_testing(size),
            v2.ClampBoundingBoxes(),
            v2.SanitizeBoundingBoxes(),
        ]
    )


def for_testing(size: int) -> v2.Transform:
    """Nothing random: the same image gives the same input."""
    return v2.Resize((size, size), interpolation=v2.InterpolationMode.BILINEAR, antialias=True)


def plain(size: int) -> v2.Transform:
    """For training without augmentation, as when a network has to learn a few images by heart."""
    return v2.Compose([for_testing(size), v2.SanitizeBoundingBoxes()])


def seeded(seed: int, *numbers: int) -> int:
    """One seed from several numbers: different for each, and the same in every process.

    An image's augmentation depends on the seed, the epoch and the image alone, so that neither the number of
    workers nor a restart changes what the network sees.
    """
    state = seed
    for number in numbers:
        state = (state * 6364136223846793005 + number + 1442695040888963407) % 2**63
        state ^= state >> 31
    return state


@contextmanager
def random_from(seed: int) -> Iterator[None]:
    """torch's generator on the CPU starts from a seed for a while, and then goes on as if nothing had been."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
