"""A detection data set that needs no download: shapes of controlled sizes on textures.

COCO's layout: train2017/, val2017/ and annotations/. Small, medium and large are COCO's: less than
32^2, less than 96^2, and more pixels of area. The same arguments give the same images.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

from examples.ssd.programs import write_atomically

SIDE = 320  # of the square images, pixels
SIZES = {"small": (10, 28), "medium": (36, 88), "large": (104, 160)}  # square root of the area
TURN = np.linspace(0, 2 * np.pi, 32, endpoint=False)
SHAPES: Mapping[str, Any] = {  # corners
    "disc": np.stack([np.cos(TURN), np.sin(TURN)], axis=1),
    "square": [(-1, -1), (1, -1), (1, 1), (-1, 1)],
    "triangle": [(0, -1), (0.9, 0.6), (-0.9, 0.6)],
    "arrow": [(0, -1), (0.9, 0.8), (0, 0.2), (-0.9, 0.8)],
    "bar": [(-1, -0.3), (1, -0.3), (1, 0.3), (-1, 0.3)],
}


def draw(seed: Sequence[int]) -> tuple[Image.Image, list[dict[str, Any]]]:
    """Return an image and its objects, in COCO's words."""
    rng = np.random.default_rng(seed)
    texture = Image.fromarray(rng.integers(60, 196, (24, 24, 3), dtype=np.uint8))
    image = texture.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    pencil = ImageDraw.Draw(image)
    objects: list[dict[str, Any]] = []
    for _ in range(rng.integers(3, 10)):
        kind, size = rng.choice(list(SHAPES)), rng.choice(list(SIZES))
        angle, root = rng.uniform(0, 2 * np.pi), np.exp(rng.uniform(*np.log(SIZES[size])))
        corners = turned(np.array(SHAPES[kind]), angle, root)
        sides = corners.max(axis=0)
        place = rng.uniform(0, SIDE - 1 - sides)
        box = [*place.tolist(), *sides.tolist()]
        if any(touch(box, other["bbox"]) for other in objects):
            continue
        colour = tuple(rng.choice([0, 255], 3).tolist())
        pencil.polygon([tuple(p) for p in corners + place], fill=colour)
        number = 1 + list(SHAPES).index(kind)
        objects.append({"category_id": number, "bbox": box, "area": float(root**2), "iscrowd": 0})
    return image, objects


def turned(corners: Any, angle: float, root_area: float) -> Any:
    """Return the corners (K, 2) of a turned shape of that area, the smallest coordinates 0."""
    x, y = corners.T
    area = abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2
    rotation = np.array([(np.cos(angle), np.sin(angle)), (-np.sin(angle), np.cos(angle))])
    corners = corners @ rotation * (root_area / np.sqrt(area))
    return corners - corners.min(axis=0)


def touch(a: Sequence[float], b: Sequence[float]) -> bool:
    """Return True if two boxes (x, y, width, height) share a part."""
    return all(a[i] < b[i] + b[i + 2] and b[i] < a[i] + a[i + 2] for i in (0, 1))


def write(folder: Path, counts: Mapping[str, int], seed: int = 0) -> None:
    """Write the data set; each annotation file comes last, whole or not at all."""
    kinds = [{"id": i, "name": kind} for i, kind in enumerate(SHAPES, start=1)]
    for split, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True, exist_ok=True)
        images: list[Any] = []
        marks: list[Any] = []
        for number in tqdm(range(1, count + 1), desc=name, leave=False):
            image, objects = draw((seed, split, number))
            entry = {"id": number, "file_name": f"{number:06d}.jpg", "width": SIDE, "height": SIDE}
            image.save(folder / name / f"{number:06d}.jpg", quality=92)
            images.append(entry)
            for one in objects:
                marks.append({"id": len(marks) + 1, "image_id": number, **one})
        content = {"images": images, "annotations": marks, "categories": kinds}
        with write_atomically(folder / "annotations" / f"instances_{name}.json") as part:
            part.write_text(json.dumps(content))
