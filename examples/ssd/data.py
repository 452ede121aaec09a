"""COCO images as batches: decoded, augmented, stacked; the same whatever the number of workers and processes.

python -m examples.ssd.data COCO_FOLDER              # reads annotations and images, and says what is wrong
"""

import argparse
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as VF
from tqdm import tqdm

from examples.ssd.annotations import Annotations, Record, find_split, read_annotations
from examples.ssd.augment import random_from, seeded
from examples.ssd.errors import DataError, DetectionError
from examples.ssd.files import read_image
from examples.ssd.programs import existing_folder, run
from examples.ssd.stop import left_to_parent


@dataclass(frozen=True)
class Ticket:
    """Which image to draw, and the seed of its augmentation."""

    position: int
    seed: int


@dataclass(frozen=True)
class Sample:
    """One image as the network gets it."""

    image: Tensor  # (3, S, S), uint8
    boxes: Tensor  # (M, 4): left, top, right, bottom as shares of the image
    labels: Tensor  # (M,): 1..
    position: int  # in the data set


@dataclass(frozen=True)
class Batch:
    """N images; the objects of all of them in one row, image by image."""

    images: Tensor  # (N, 3, S, S), uint8
    boxes: Tensor  # (M, 4): corners as shares of the image
    labels: Tensor  # (M,): 1..
    counts: tuple[int, ...]  # objects of each image
    positions: tuple[int, ...]  # in the data set

    def to(self, device: torch.device) -> "Batch":
        moved = {
            k: getattr(self, k).to(device, non_blocking=True) for k in ("images", "boxes", "labels")
        }
        return replace(self, **moved)

    def pin_memory(self) -> "Batch":
        return replace(
            self, **{k: getattr(self, k).pin_memory() for k in ("images", "boxes", "labels")}
        )


class Images(Dataset[Sample]):
    """The images of a set, each transformed with a seed of its own."""

    def __init__(self, annotations: Annotations, transform: v2.Transform) -> None:
        self.annotations, self.transform = annotations, transform

    def __len__(self) -> int:
        return len(self.annotations.records)

    def __getitem__(self, ticket: int | Ticket) -> Sample:
        position, seed = (
            (ticket.position, ticket.seed) if isinstance(ticket, Ticket) else (ticket, 0)
        )
        record = self.annotations.records[position]
        image, target = load(record)
        with random_from(seed):
            image, target = self.transform(image, target)
        height, width = image.shape[-2:]
        shares = target["boxes"].as_subclass(Tensor) / torch.tensor([width, height, width, height])
        return Sample(image.as_subclass(Tensor), shares, target["labels"], position)


def load(record: Record) -> tuple[tv_tensors.Image, dict[str, Tensor]]:
    """The decoded image (3, H, W) and its boxes and labels.

    Raises:
        DataError: it does not decode, or has another size than annotated.
    """
    picture = read_image(record.path)
    if picture.size != (record.width, record.height):
        annotated = f"{record.width} x {record.height}"
        raise DataError(
            f"{record.path} has {picture.width} x {picture.height} pixels, its annotations say {annotated}."
        )
    boxes = tv_tensors.BoundingBoxes(
        torch.tensor(record.boxes, dtype=torch.float32).reshape(-1, 4),
        format="XYXY",
        canvas_size=(record.height, record.width),
    )
    return tv_tensors.Image(VF.pil_to_tensor(picture)), {
        "boxes": boxes,
        "labels": torch.tensor(record.labels).long(),
    }


def stack(samples: Sequence[Sample]) -> Batch:
    return Batch(
        images=torch.stack([s.image for s in samples]),
        boxes=torch.cat([s.boxes for s in samples]),
        labels=torch.cat([s.labels for s in samples]),
        counts=tuple(len(s.labels) for s in samples),
        positions=tuple(s.position for s in samples),
    )


@dataclass(frozen=True)
class Share:
    """Which part of every batch this process takes."""

    rank: int = 0
    world: int = 1


class Epoch(Sampler[list[Ticket]]):
    """One epoch's batches in a random order that depends on seed and epoch alone; a batch is dealt to the processes.

    batch: images over all processes; what is left at the end is dropped, unless there is less than one batch.
    first: batches to skip, to go on where a run was stopped.
    """

    def __init__(
        self,
        images: int,
        batch: int,
        seed: int,
        epoch: int,
        first: int = 0,
        share: Share | None = None,
    ) -> None:
        self.images, self.batch, self.seed, self.epoch, self.first = (
            images,
            min(batch, images),
            seed,
            epoch,
            first,
        )
        self.share = share or Share()

    @property
    def batches(self) -> int:
        """Of the whole epoch."""
        return self.images // self.batch

    def __len__(self) -> int:
        return self.batches - self.first

    def __iter__(self) -> Iterator[list[Ticket]]:
        generator = torch.Generator().manual_seed(seeded(self.seed, self.epoch))
        order = torch.randperm(self.images, generator=generator).tolist()
        for number in range(self.first, self.batches):
            positions = order[number * self.batch : (number + 1) * self.batch]
            yield [self._ticket(p) for p in positions[self.share.rank :: self.share.world]]

    def _ticket(self, position: int) -> Ticket:
        return Ticket(position, seeded(self.seed, self.epoch, position))


def training_batches(images: Images, epoch: Epoch, workers: int, pin: bool) -> DataLoader[Batch]:
    return _loader(images, epoch, workers, pin)


def every_image(
    images: Images, batch: int, workers: int, pin: bool, share: Share | None = None
) -> DataLoader[Batch]:
    """All images in order, those of this process."""
    share = share or Share()
    positions = range(share.rank, len(images), share.world)
    chunks = [list(positions[i : i + batch]) for i in range(0, len(positions), batch)]
    return _loader(images, chunks, workers, pin)


def _loader(
    images: Images, batches: Iterable[list[Any]], workers: int, pin: bool
) -> DataLoader[Batch]:
    return DataLoader(
        images,  # type: ignore[arg-type]
        batch_sampler=batches,
        collate_fn=stack,
        num_workers=workers,
        pin_memory=pin,
        worker_init_fn=left_to_parent,
    )


# ---- the program


def faults(annotations: Annotations) -> Iterator[DetectionError]:
    for record in tqdm(annotations.records, desc="decoding", leave=False):
        try:
            load(record)
        except DataError as fault:
            yield fault


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description="Read annotations and decode every image; say what is wrong."
    )
    parser.add_argument("folder", type=existing_folder)
    parser.add_argument("--split", choices=("train", "val"), default="train")
    arguments = parser.parse_args(argv)
    annotations = read_annotations(find_split(Path(arguments.folder), arguments.split))
    print(annotations.said())
    objects = Counter(label for record in annotations.records for label in record.labels)
    for label, name in enumerate(annotations.categories.names, start=1):
        print(f"{objects[label]:8} {name}")
    found = list(faults(annotations))
    for fault in found:
        print(fault)
    if found:
        raise DataError(f"{len(found)} of {len(annotations.records)} images cannot be used.")


if __name__ == "__main__":
    run(main)
