"""COCO images as batches; the same whatever the number of workers and processes.

python -m examples.ssd.data COCO_FOLDER              # reads everything, and says what is wrong
"""

import argparse
import hashlib
import io
import json
import signal
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from pycocotools.coco import COCO  # type: ignore[import-untyped]
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import tv_tensors
from torchvision.datasets import CocoDetection, VisionDataset
from torchvision.transforms import v2
from tqdm import tqdm

from examples.ssd.programs import DetectionError, existing, read_image, run

GREY = [124, 116, 104]  # ImageNet's mean, around images that are made smaller
LEAST_SIDE = 1.0  # pixels; a box that is narrower has no area to learn from
Batch = tuple[Tensor, list[dict[str, Tensor]], list[int]]  # images, targets, positions in the set
Ticket = tuple[int, int]  # which image to draw, and the seed of its augmentation
Entry = Mapping[str, Any]


# ---- annotation files


class Split(NamedTuple):
    """Folder and annotation file of a set of images."""

    annotations: Path
    images: Path


def find_split(folder: Path, name: str) -> Split:
    """Return a set (train or val) inside a folder: COCO's layout, `name`/, or the folder itself."""
    candidates = [
        Split(folder / "annotations" / f"instances_{name}2017.json", folder / f"{name}2017"),
        Split(folder / name / "instances.json", folder / name / "images"),
        Split(folder / "instances.json", folder / "images"),
    ]
    for split in candidates:
        if split.annotations.is_file():
            return split
    looked = ", ".join(str(split.annotations.relative_to(folder)) for split in candidates)
    raise DetectionError(f"{folder} holds no annotations for {name}; looked for {looked}.")


def split_from(arguments: argparse.Namespace, name: str) -> Split:
    """Return the set that --json and --images name, or the one in --data."""
    own = (arguments.json, arguments.images)
    if (None in own) == (arguments.data is None):
        raise DetectionError("name the images: --data FOLDER, or --json FILE and --images FOLDER.")
    return Split(*own) if arguments.data is None else find_split(arguments.data, name)


def _numbers(values: list[Any]) -> bool:
    """Return True if they are numbers of pixels; nan and infinity are not."""
    return all(type(v) in (int, float) and abs(v) < 1e9 for v in values)


# What an entry must have, by the words for who lacks it.
NEEDS: Mapping[str, Mapping[str, Callable[[Entry, Mapping[str, Any]], bool]]] = {
    "images": {
        "a whole number as id": lambda e, ids: type(e["id"]) is int,
        "a width and height in pixels": lambda e, ids: (
            _numbers([e["width"], e["height"]]) and min(e["width"], e["height"]) >= 1
        ),
        "a file_name": lambda e, ids: "\0" not in str.strip(e["file_name"]),
    },
    "categories": {
        "a whole number as id": lambda e, ids: type(e["id"]) is int,
        "a name": lambda e, ids: type(e["name"]) is str,
    },
    "annotations": {
        "an image_id among the images": lambda e, ids: e["image_id"] in ids["images"],
        "a category_id among the categories": lambda e, ids: e["category_id"] in ids["categories"],
        "a bbox of four numbers": lambda e, ids: len(e["bbox"]) == 4 and _numbers(e["bbox"]),
        "an iscrowd of 0 or 1": lambda e, ids: e.get("iscrowd", 0) in (0, 1),
    },
}


def read_coco(path: Path) -> dict[str, list[Any]]:
    """Return what a file in COCO's format holds; each entry has what boxes need."""
    try:
        whole = json.loads(path.read_text(encoding="utf-8"))
        content = {part: list(whole[part]) for part in NEEDS}
        ids = {part: [e["id"] for e in content[part]] for part in ("images", "categories")}
        known = {part: dict.fromkeys(numbers) for part, numbers in ids.items()}
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as problem:
        what = f"{type(problem).__name__}: {str(problem)[:200]}"
        raise DetectionError(f"{path} cannot be read as COCO's JSON ({what}).") from problem
    for part, needs in NEEDS.items():
        if part in ids and (not ids[part] or len(known[part]) < len(ids[part])):
            raise DetectionError(f"{path} has no {part}, or two with one id.")
        for place, entry in enumerate(content[part]):
            for what, is_there in needs.items():
                try:
                    fits = is_there(entry, known)
                except (KeyError, TypeError, AttributeError):
                    fits = False
                if not fits:
                    shown = ascii(entry)[:150]
                    raise DetectionError(f"{path}: {part}[{place}] needs {what}: {shown}")
    return content


def indexed(content: Mapping[str, Any]) -> COCO:
    """Return pycocotools' index, without its printing."""
    coco = COCO()
    coco.dataset = content
    with redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


# ---- images


class CocoImages(CocoDetection):
    """A set with labels 1.. by category id, without what cannot be learned, as `said`.

    An item is asked for by a ticket, so that neither workers nor restarts change its augmentation.
    with_objects: only the images that have an object. first: only so many of them.
    """

    def __init__(self, split: Split, *, with_objects: bool = False, first: int | None = None):
        VisionDataset.__init__(self, split.images)
        content, self.split, self.transform = read_coco(split.annotations), split, v2.Identity()
        images = {image["id"]: image for image in content["images"]}
        paths = [split.images / image["file_name"] for image in images.values()]
        missing = [path.name for path in paths if not path.is_file()]
        if missing:
            told = f"{len(missing)} of {len(paths)} images are not in {split.images}"
            raise DetectionError(f"{told}, the first is {missing[0][:100]!r}.")
        self.categories = dict(sorted((c["id"], c["name"]) for c in content["categories"]))
        labels = {number: label for label, number in enumerate(self.categories, start=1)}
        left_out, marks = Counter[str](), []
        for number, mark in enumerate(content["annotations"], start=1):
            box = inside(mark["bbox"], images[mark["image_id"]])
            if mark.get("iscrowd"):
                left_out["crowds"] += 1
            elif box is None:
                left_out["boxes narrower than a pixel inside the image"] += 1
            else:
                own = {"category_id": labels[mark["category_id"]], "bbox": box}
                marks.append({"id": number, "image_id": mark["image_id"], **own})
        self.coco, self.ids = indexed({"images": content["images"], "annotations": marks}), []
        for number in sorted(images):
            if with_objects and not self.coco.imgToAnns[number]:
                left_out["images without objects"] += 1
            else:
                self.ids.append(number)
        self.ids = self.ids[:first]
        objects = sum(len(self.coco.imgToAnns[i]) for i in self.ids)
        self.said = f"{len(self.ids)} images, {objects} objects, {len(labels)} categories"
        self.said += "".join(f"; left out: {count} {what}" for what, count in left_out.items())
        if not self.ids:
            raise DetectionError(f"{split.annotations} has nothing to train on: {self.said}.")

    def digest(self) -> str:
        """Return a short text that differs where images or objects do, wherever the folder is."""
        told = hashlib.sha256(json.dumps(self.categories).encode())
        for number in self.ids:
            told.update(json.dumps([self.coco.imgs[number], self.coco.imgToAnns[number]]).encode())
        return told.hexdigest()[:12]

    def __getitem__(self, ticket: Ticket) -> tuple[Tensor, dict[str, Tensor], int]:
        position, seed = ticket
        image, marks = self._load_image(self.ids[position]), self._load_target(self.ids[position])
        corners = torch.tensor([m["bbox"] for m in marks]).float().reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]
        boxes = tv_tensors.BoundingBoxes(corners, format="XYXY", canvas_size=image.size[::-1])
        target = {"boxes": boxes, "labels": torch.tensor([m["category_id"] for m in marks]).long()}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            pixels, target = self.transform(v2.functional.to_image(image), target)
        target = {key: value.as_subclass(Tensor) for key, value in target.items()}
        return pixels.as_subclass(Tensor), target, position

    def _load_image(self, id: int) -> Image.Image:
        entry = self.coco.imgs[id]
        path, annotated = self.split.images / entry["file_name"], (entry["width"], entry["height"])
        image = read_image(path)
        if image.size != annotated:
            turned = "; perhaps its EXIF tag turns it" if image.size == annotated[::-1] else ""
            raise DetectionError(f"{path} has {image.size} pixels, annotated {annotated}{turned}.")
        return image


def inside(box: list[float], image: Entry) -> list[float] | None:
    """Return the part of x, y, width, height inside the image; None where too little is left."""
    x, y, width, height = box
    left, top = max(0.0, x), max(0.0, y)
    width, height = min(image["width"], x + width) - left, min(image["height"], y + height) - top
    return [left, top, width, height] if min(width, height) >= LEAST_SIDE else None


def for_training(size: int, augment: bool = True) -> v2.Transform:
    """Return SSD's augmentation (distortion, expansion, a crop by IoU, mirroring), and a resize."""
    random = [v2.RandomPhotometricDistort(), v2.RandomZoomOut(fill=GREY), v2.RandomIoUCrop()]
    random += [v2.RandomHorizontalFlip()]
    last = [for_testing(size), v2.ClampBoundingBoxes(), v2.SanitizeBoundingBoxes()]
    return v2.Compose([*random, *last] if augment else last)


def for_testing(size: int) -> v2.Transform:
    """Return a plain resize: the same image gives the same input."""
    return v2.Resize((size, size), antialias=True)


# ---- batches


def seeded(*numbers: int) -> int:
    """Return one seed from several numbers: different for each, the same in every process."""
    return int.from_bytes(hashlib.sha256(repr(numbers).encode()).digest()[:7], "big")


def epoch_batches(images: int, batch: int, seed: int, epoch: int) -> list[list[Ticket]]:
    """Return an epoch's batches, in an order that depends on seed and epoch alone.

    What is left at the end is dropped, unless there is less than one batch.
    """
    batch, generator = min(batch, images), torch.Generator().manual_seed(seeded(seed, epoch))
    order = torch.randperm(images, generator=generator).tolist()
    tickets = [(position, seeded(seed, epoch, position)) for position in order]
    return [tickets[i : i + batch] for i in range(0, images - batch + 1, batch)]


def loader(
    images: CocoImages, transform: v2.Transform, batches: Iterable[Any], workers: int
) -> DataLoader[Batch]:
    """Return batches: images (N, 3, S, S) of bytes, targets in their pixels, positions."""
    images.transform = transform

    def stack(samples: list[Any]) -> Batch:
        pixels, targets, positions = zip(*samples, strict=True)
        return torch.stack(pixels), list(targets), list(positions)

    gpu = torch.cuda.is_available()
    how: dict[str, Any] = {"batch_sampler": batches, "collate_fn": stack, "pin_memory": gpu}
    return DataLoader(images, num_workers=workers, worker_init_fn=leave_signals, **how)


def leave_signals(worker: int) -> None:
    """Leave Ctrl-C, which reaches workers too, to the process that trains."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def main() -> None:
    """Read annotations and decode every image; say what is wrong."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder", type=existing)
    parser.add_argument("--split", choices=("train", "val"), default="train")
    arguments = parser.parse_args()
    images = CocoImages(find_split(arguments.folder, arguments.split))
    print(images.said)
    for number in tqdm(images.ids, desc="decoding", leave=False):
        try:
            images._load_image(number)
        except DetectionError as fault:
            print(fault)


if __name__ == "__main__":
    run(main)
