"""What a stride costs small objects, shown in minutes on a CPU, without a download.

    python -m examples.ssd.demonstration                  # base and S1L0 on drawn shapes
    python -m examples.ssd.demonstration --surgeries S1L0 S1L2 --out shown

Draws small, medium and large shapes, in COCO's layout (in --out/shapes, for other programs too),
trains a small detector with and without the surgery from the same weights and evaluates both.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

from examples.ssd import evaluate, model, train
from examples.ssd.backbones import configuration_for
from examples.ssd.programs import positive, run, write_atomically

# The shapes are drawn with random sizes and places: what SSD's augmentation would add, costs steps.
RECIPE = "--size 160 --batch 8 --lr 0.02 --warmup 1 --no-augment --weights none --workers 0"
SIDE = 320  # of the square images, pixels
# Sides of the shapes: COCO's small objects cover less than 32^2 pixels, medium ones than 96^2.
SIZES = {"small": (12, 30), "medium": (64, 92), "large": (140, 180)}
TURN = np.linspace(0, 2 * np.pi, 32, endpoint=False)
SHAPES: Mapping[str, tuple[Any, float]] = {  # corners and area of each, on a side of 1
    "disc": (np.stack([np.cos(TURN), np.sin(TURN)], axis=1) / 2 + 0.5, np.pi / 4),
    "square": ([(0, 0), (1, 0), (1, 1), (0, 1)], 1.0),
    "triangle": ([(0.5, 0), (1, 1), (0, 1)], 0.5),
    "diamond": ([(0.5, 0), (1, 0.5), (0.5, 1), (0, 0.5)], 0.5),
}


def draw(seed: Sequence[int]) -> tuple[Image.Image, list[dict[str, Any]]]:
    """Return an image and its objects, in COCO's words."""
    rng = np.random.default_rng(seed)
    texture = Image.fromarray(rng.integers(60, 196, (24, 24, 3), dtype=np.uint8))
    image = texture.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    pencil = ImageDraw.Draw(image)
    objects: list[dict[str, Any]] = []
    for _ in range(rng.integers(3, 10)):
        kind, size = int(rng.integers(len(SHAPES))), str(rng.choice(list(SIZES)))
        corners, area = list(SHAPES.values())[kind]
        side = rng.uniform(*SIZES[size])
        x, y = rng.uniform(0, SIDE - 1 - side, 2).tolist()
        boxes = [other["bbox"] for other in objects]
        if any(max(abs(x - b[0]), abs(y - b[1])) < max(side, b[2]) for b in boxes):
            continue  # it might hide another one
        places = np.array(corners) * side + (x, y)
        colour = tuple(rng.choice([0, 255], 3).tolist())
        pencil.polygon([tuple(place) for place in places], fill=colour)
        one = {"category_id": 1 + kind, "bbox": [x, y, side, side]}
        objects.append({**one, "area": area * side**2, "iscrowd": 0})
    return image, objects


def write(folder: Path, counts: Mapping[str, int], seed: int = 0) -> None:
    """Write the data set; each annotation file comes last, whole or not at all."""
    kinds = [{"id": i, "name": kind} for i, kind in enumerate(SHAPES, start=1)]
    for split, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True, exist_ok=True)
        content: dict[str, list[Any]] = {"images": [], "annotations": [], "categories": kinds}
        for number in tqdm(range(1, count + 1), desc=name, leave=False):
            image, objects = draw((seed, split, number))
            entry = {"id": number, "file_name": f"{number:06d}.jpg", "width": SIDE, "height": SIDE}
            image.save(folder / name / f"{number:06d}.jpg", quality=92)
            content["images"].append(entry)
            for one in objects:
                own = {"id": len(content["annotations"]) + 1, "image_id": number}
                content["annotations"].append({**own, **one})
        with write_atomically(folder / "annotations" / f"instances_{name}.json") as part:
            part.write_text(json.dumps(content))


def main(argv: Sequence[str] | None = None) -> None:
    """Draw, train and evaluate."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--surgeries", nargs="+", default=["S1L0"], help="(default: S1L0)")
    add("--backbone", default="test_resnet", help="timm or torchvision (test_resnet, small)")
    add("--epochs", type=positive, default=12, help="(12)")
    add("--images", type=positive, default=600, help="to train on (600)")
    add("--device", default="cpu", help="(default: %(default)s)")
    add("--out", type=Path, default=Path("demonstration"), help="folder (demonstration)")
    arguments = parser.parse_args(argv)
    for surgery in arguments.surgeries:  # what cannot be built is told before minutes of training
        model.build(configuration_for(arguments.backbone, surgery, 160))
    shapes, checkpoints = arguments.out / "shapes", []
    if not (shapes / "annotations" / "instances_val2017.json").is_file():
        counts = {"train2017": arguments.images, "val2017": max(1, arguments.images // 6)}
        write(shapes, counts)
    where = ["--data", shapes, "--device", arguments.device]
    for surgery in (None, *arguments.surgeries):
        out = arguments.out / (surgery or "base")
        words = [*RECIPE.split(), "--backbone", arguments.backbone, *where, "--out", out]
        words += ["--surgery", surgery] if surgery else []
        words += ["--epochs", arguments.epochs, "--resume"]
        train.main(list(map(str, words)))
        checkpoints.append(out / "last.pt")
    words = [*checkpoints, *where, "--workers", "0", "--out", arguments.out]
    evaluate.main(list(map(str, words)))


if __name__ == "__main__":
    run(main)
