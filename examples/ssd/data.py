"""Make a small set, instances.json and images/, of any in COCO's format.

    python -m examples.ssd.data COCO_FOLDER --images 200 --out small  # then --data small

The other programs import this file: images as batches, the same whatever the number of workers and
processes.
"""

import argparse
import hashlib
import io
import json
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
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

from examples.ssd.programs import DetectionError, positive, read_image, run, write_atomically

GREY = [124, 116, 104]  # ImageNet's mean, around images that are made smaller
LEAST_SIDE = 1.0  # pixels; a box that is narrower has no area to learn from
Batch = tuple[Tensor, list[dict[str, Tensor]], list[int]]  # images, targets, positions in the set
Ticket = tuple[int, int]  # which image to draw, and the seed of its augmentation


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


def add_images(add: Callable[..., Any], name: str) -> None:
    """Add the arguments that `split_from` reads. name: of the set, train or val."""
    add("--data", type=Path, help=f"COCO's layout, or {name}/ with instances.json and images/")
    add("--json", type=Path, help="instead: an annotation file")
    add("--images", type=Path, help="and its images")


def split_from(arguments: argparse.Namespace, name: str) -> Split:
    """Return the set that --json and --images name, or the one in --data."""
    own = (arguments.json, arguments.images)
    if (None in own) == (arguments.data is None):
        raise DetectionError("name the images: --data FOLDER, or --json FILE and --images FOLDER.")
    return Split(*own) if arguments.data is None else find_split(arguments.data, name)


def numbers(*values: Any) -> bool:
    """Return True if they are numbers of pixels; nan and infinity are not."""
    return all(type(v) in (int, float) and abs(v) < 1e9 for v in values)


# What each entry of a part must have: words, and a test of the entry and the ids of each part.
NEEDS: Sequence[tuple[str, str, Callable[[Any, Any], bool]]] = (
    ("images", "a whole number as id", lambda e, _: type(e["id"]) is int),
    ("images", "a file_name", lambda e, _: "\0" not in str.strip(e["file_name"])),
    ("images", "a width and height above 0",
     lambda e, _: numbers(e["width"], e["height"]) and min(e["width"], e["height"]) >= 1),
    ("categories", "a whole number as id", lambda e, _: type(e["id"]) is int),
    ("categories", "a name", lambda e, _: type(e["name"]) is str),
    ("annotations", "an image_id among the images", lambda e, ids: e["image_id"] in ids["images"]),
    ("annotations", "a category_id among the categories",
     lambda e, ids: e["category_id"] in ids["categories"]),
    ("annotations", "a bbox of four numbers",
     lambda e, _: len(e["bbox"]) == 4 and numbers(*e["bbox"])),
    ("annotations", "an iscrowd of 0 or 1", lambda e, _: e.get("iscrowd", 0) in (0, 1)),
)  # fmt: skip


def read_coco(path: Path) -> dict[str, list[Any]]:
    """Return what a file in COCO's format holds; each entry has what boxes need."""
    try:
        whole = json.loads(path.read_text(encoding="utf-8"))
        content = {part: list(whole[part]) for part in ("images", "categories", "annotations")}
        ids = {part: {e["id"] for e in content[part]} for part in ("images", "categories")}
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as problem:
        what = f"{type(problem).__name__}: {str(problem)[:200]}"
        raise DetectionError(f"{path} cannot be read as COCO's JSON ({what}).") from problem
    for part, found in ids.items():
        if not found or len(found) < len(content[part]):
            raise DetectionError(f"{path} has no {part}, or two with one id.")
    for part, what, is_there in NEEDS:
        for place, entry in enumerate(content[part]):
            try:
                fits = is_there(entry, ids)
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
        names = [image["file_name"] for image in images.values()]
        missing = [name for name in names if not (split.images / name).is_file()]
        if missing:
            told = f"{len(missing)} of {len(names)} images are not in {split.images}"
            raise DetectionError(f"{told}, the first is {missing[0][:100]!r}.")
        self.categories = dict(sorted((c["id"], c["name"]) for c in content["categories"]))
        labels = {number: label for label, number in enumerate(self.categories, start=1)}
        left_out, marks = Counter[str](), []
        for number, mark in enumerate(content["annotations"], start=1):
            box = inside(mark["bbox"], images[mark["image_id"]])
            if mark.get("iscrowd"):
                left_out["crowds"] += 1
            elif min(box[2:]) < LEAST_SIDE:
                left_out["boxes narrower than a pixel inside the image"] += 1
            else:
                own = {"category_id": labels[mark["category_id"]], "bbox": box}
                marks.append({"id": number, "image_id": mark["image_id"], **own})
        self.coco = indexed({"images": content["images"], "annotations": marks})
        self.ids = [i for i in sorted(images) if self.coco.imgToAnns[i] or not with_objects]
        left_out["images without objects"] = len(images) - len(self.ids)
        self.ids = self.ids[:first]
        objects = sum(len(self.coco.imgToAnns[i]) for i in self.ids)
        self.said = f"{len(self.ids)} images, {objects} objects, {len(labels)} categories"
        self.said += "".join(f"; left out: {n} {what}" for what, n in left_out.items() if n)
        if not self.ids:
            raise DetectionError(f"{split.annotations} has nothing to train on: {self.said}.")

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


def inside(box: list[float], image: Mapping[str, Any]) -> list[float]:
    """Return the part of a box (x, y, width, height) inside an image; negative sides: nothing."""
    x, y, width, height = box
    left, top = max(0.0, x), max(0.0, y)
    right, bottom = min(image["width"], x + width), min(image["height"], y + height)
    return [left, top, right - left, bottom - top]


def transform(size: int, augment: bool = False) -> v2.Transform:
    """Return a resize, after SSD's augmentation: distortion, expansion, crop by IoU, mirroring."""
    random = [v2.RandomPhotometricDistort(), v2.RandomZoomOut(fill=GREY), v2.RandomIoUCrop()]
    random += [v2.RandomHorizontalFlip()]
    boxes = [v2.ClampBoundingBoxes(), v2.SanitizeBoundingBoxes()]
    return v2.Compose([*random * augment, v2.Resize((size, size), antialias=True), *boxes])


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


def loader(images: CocoImages, transform: Any, batches: Any, workers: int) -> DataLoader[Batch]:
    """Return batches: images (N, 3, S, S) of bytes, targets in their pixels, positions."""
    images.transform, gpu = transform, torch.cuda.is_available()
    how: dict[str, Any] = {"batch_sampler": batches, "collate_fn": stack, "pin_memory": gpu}
    return DataLoader(images, num_workers=workers, worker_init_fn=leave_signals, **how)


def stack(samples: list[Any]) -> Batch:
    pixels, targets, positions = zip(*samples, strict=True)
    return torch.stack(pixels), list(targets), list(positions)


def leave_signals(worker: int) -> None:
    """Leave Ctrl-C, which reaches workers too, to the process that trains."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


# ---- the program


def copy(images: CocoImages, count: int, folder: Path) -> None:
    """Copy images, evenly from the set, with all that is annotated on them."""
    content = read_coco(images.split.annotations)
    kept = set(images.ids[:: max(1, len(images.ids) // count)][:count])
    content["images"] = [entry for entry in content["images"] if entry["id"] in kept]
    content["annotations"] = [m for m in content["annotations"] if m["image_id"] in kept]
    (folder / "images").mkdir(parents=True)
    for entry in tqdm(content["images"], desc="copying", leave=False):
        path = images.split.images / entry["file_name"]
        entry["file_name"] = f"{entry['id']:012d}{path.suffix}"
        shutil.copyfile(path, folder / "images" / entry["file_name"])
    with write_atomically(folder / "instances.json") as part:
        part.write_text(json.dumps(content))


def main(argv: Sequence[str] | None = None) -> None:
    """Copy a small set."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("folder", type=Path, help="COCO's layout, or instances.json and images/")
    add("--split", choices=("train", "val"), default="val", help="(val)")
    add("--images", type=positive, default=200, help="that have objects (200)")
    add("--out", type=Path, required=True, help="the folder to make")
    arguments = parser.parse_args(argv)
    split = find_split(arguments.folder, arguments.split)
    copy(CocoImages(split, with_objects=True), arguments.images, arguments.out)
    print(CocoImages(find_split(arguments.out, arguments.split)).said)


if __name__ == "__main__":
    run(main)
