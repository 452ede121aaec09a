"""A detection data set that needs no download: shapes of controlled sizes on textures.

    python -m examples.ssd.synthetic shapes                       # 600 images to train on, 120 more
    python -m examples.ssd.synthetic shapes --sizes small medium  # no large objects

COCO's layout: train2017/, val2017/ and annotations/. Small, medium and large are COCO's: less than
32^2, less than 96^2, and more pixels of area. The same arguments give the same images.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from math import pi
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

from examples.ssd.programs import natural, positive, run, write_atomically

SIDE = 320  # of the square images, pixels
SIZES = {"small": (10, 28), "medium": (36, 88), "large": (104, 160)}  # square root of the area
BAR = [(-1, -0.3), (1, -0.3), (1, 0.3), (-1, 0.3)]
SHAPES: Mapping[str, Sequence[tuple[float, float]]] = {
    "disc": [(np.cos(a), np.sin(a)) for a in np.arange(0, 2 * pi, pi / 16)],
    "square": [(-1, -1), (1, -1), (1, 1), (-1, 1)],
    "triangle": [(0, -1), (0.9, 0.6), (-0.9, 0.6)],
    "arrow": [(0, -1), (0.9, 0.8), (0, 0.2), (-0.9, 0.8)],
    "cross": [(-0.3, -1), (0.3, -1), (0.3, -0.3), *BAR[1:3], (0.3, 0.3), (0.3, 1), (-0.3, 1),
              (-0.3, 0.3), BAR[3], BAR[0], (-0.3, -0.3)],
    "bar": BAR,
}  # fmt: skip
FINER = 4  # drawn so much larger, then reduced


def draw(sizes: Sequence[str], seed: Sequence[int]) -> tuple[Image.Image, list[dict[str, Any]]]:
    """Return an image and its objects, in COCO's words."""
    rng = np.random.default_rng(seed)
    coarse = [rng.integers(40, 216, (n, n, 3), dtype=np.uint8) for n in (3, 24)]
    ground = [Image.fromarray(c).resize((SIDE, SIDE), Image.Resampling.BICUBIC) for c in coarse]
    image = Image.blend(ground[0], ground[1], 0.3)
    objects: list[dict[str, Any]] = []
    for _ in range(rng.integers(2, 8)):
        kind, size = int(rng.integers(len(SHAPES))), str(rng.choice(list(sizes)))
        root, angle = np.exp(rng.uniform(*np.log(SIZES[size]))), rng.uniform(0, 2 * pi)
        mask = shape_mask([*SHAPES.values()][kind], root, angle)
        for _ in range(30):  # a place that hides little of the objects so far
            x, y = (int(rng.integers(0, SIDE - side + 1)) for side in mask.size)
            if all(shared(o["bbox"], [x, y, *mask.size]) < 0.1 for o in objects):
                image.paste(tuple(map(int, rng.choice([0, 255], 3))), (x, y), mask)
                area = float(np.asarray(mask, dtype=np.float32).sum() / 255)
                one = {"category_id": 1 + kind, "bbox": [x, y, *mask.size]}
                objects.append({**one, "area": area, "iscrowd": 0})
                break
    return image, objects


def shape_mask(
    points: Sequence[tuple[float, float]], root_area: float, angle: float
) -> Image.Image:
    """Return how much of each pixel a turned shape of that area covers, cut to the shape."""
    corners = np.array(points)
    x, y = corners.T
    area = abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2
    turn = np.array([(np.cos(angle), np.sin(angle)), (-np.sin(angle), np.cos(angle))])
    corners = corners @ turn * (root_area / np.sqrt(area))
    corners -= corners.min(axis=0)
    columns, rows = np.ceil(corners.max(axis=0)).astype(int).tolist()
    fine = Image.new("L", (columns * FINER, rows * FINER))
    ImageDraw.Draw(fine).polygon([tuple(p) for p in corners * FINER], fill=255)
    return fine.reduce(FINER)


def shared(a: Sequence[float], b: Sequence[float]) -> float:
    """Return what two boxes (x, y, width, height) share, as a part of the smaller one."""
    sides = [min(a[i] + a[i + 2], b[i] + b[i + 2]) - max(a[i], b[i]) for i in (0, 1)]
    return max(0, sides[0]) * max(0, sides[1]) / min(a[2] * a[3], b[2] * b[3])


def write(
    folder: Path, counts: Mapping[str, int], sizes: Sequence[str] = tuple(SIZES), seed: int = 0
) -> None:
    """Write the data set; each annotation file comes last, whole or not at all."""
    for split, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True, exist_ok=True)
        images: list[dict[str, Any]] = []
        marks: list[dict[str, Any]] = []
        for index in tqdm(range(count), desc=name, leave=False):
            image, objects = draw(sizes, (seed, split, index))
            file_name = f"{index:06d}.jpg"
            image.save(folder / name / file_name, quality=92)
            sides = {"width": SIDE, "height": SIDE}
            images.append({"id": index + 1, "file_name": file_name, **sides})
            for one in objects:
                marks.append({"id": len(marks) + 1, "image_id": index + 1, **one})
        kinds = [{"id": i, "name": kind} for i, kind in enumerate(SHAPES, start=1)]
        content = {"images": images, "annotations": marks, "categories": kinds}
        with write_atomically(folder / "annotations" / f"instances_{name}.json") as part:
            part.write_text(json.dumps(content))


def main(argv: Sequence[str] | None = None) -> None:
    """Draw a data set."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("folder", type=Path, help="where to write; it is made")
    add("--train", type=positive, default=600, help="images to train on (600)")
    add("--val", type=positive, default=120, help="images to evaluate on (120)")
    add("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES), help="(default: all)")
    add("--seed", type=natural, default=0)
    arguments = parser.parse_args(argv)
    counts = {"train2017": arguments.train, "val2017": arguments.val}
    write(arguments.folder, counts, arguments.sizes, arguments.seed)


if __name__ == "__main__":
    run(main)
