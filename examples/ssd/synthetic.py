"""A detection data set that needs no download: shapes of controlled sizes on textures or photographs.

    python -m examples.ssd.synthetic shapes                       # 600 images to train on, 120 to evaluate on
    python -m examples.ssd.synthetic shapes --sizes small medium  # no large objects
    python -m examples.ssd.synthetic shapes --backgrounds photographs/

COCO's layout: train2017/, val2017/ and annotations/. Small, medium and large are COCO's: less than 32^2, less than
96^2, and more pixels of area. The same arguments give the same images, whatever their number.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from tqdm import tqdm

from examples.ssd.errors import DataError, RequestError
from examples.ssd.files import IMAGE_SUFFIXES, read_image, write_atomically
from examples.ssd.programs import existing_folder, natural, new_folder, positive, run

Floats = npt.NDArray[np.float32]
Shape = Callable[[Floats, Floats], npt.NDArray[np.bool_]]  # u, v in -1..1 to what is inside

SHAPES: Mapping[str, Shape] = {
    "disc": lambda u, v: u**2 + v**2 < 0.9,
    "square": lambda u, v: np.maximum(abs(u), abs(v)) < 0.66,
    "triangle": lambda u, v: (v < 0.5) & (v > 1.75 * abs(u) - 0.95),
    "ring": lambda u, v: (u**2 + v**2 < 0.9) & (u**2 + v**2 > 0.35),
    "cross": lambda u, v: (np.minimum(abs(u), abs(v)) < 0.25) & (np.maximum(abs(u), abs(v)) < 0.9),
    "bar": lambda u, v: (abs(u) < 0.9) & (abs(v) < 0.3),
}
SIZES: Mapping[str, tuple[float, float]] = {
    "small": (10, 28),
    "medium": (36, 88),
    "large": (104, 160),
}  # sqrt(area)
SUBPIXELS = 3  # drawn this much finer along each axis, then averaged
LARGEST_OVERLAP = 0.1  # of a new object's box, by any object before


@dataclass(frozen=True)
class Scene:
    """What the images of a data set have in common."""

    side: int = 320  # of the square images, pixels
    sizes: tuple[str, ...] = tuple(SIZES)
    objects: tuple[int, int] = (2, 7)  # per image, fewest and most
    backgrounds: tuple[Path, ...] = ()  # photographs; empty: textures
    seed: int = 0

    def __post_init__(self) -> None:
        largest = max(SIZES[size][1] for size in self.sizes)
        if self.side < 2 * largest:
            raise RequestError(
                f"images of {self.side} pixels have no room for objects of {largest:g}; try 320."
            )


@dataclass(frozen=True)
class Drawn:
    """One object in an image."""

    kind: str
    box: tuple[int, int, int, int]  # x, y, width, height
    area: float  # pixels covered


def draw(scene: Scene, split: int, index: int) -> tuple[Floats, list[Drawn]]:
    """Image `index` of a split: (side, side, 3) in 0..255, and its objects."""
    rng = np.random.default_rng([scene.seed, split, index])
    canvas = background(scene, rng)
    objects: list[Drawn] = []
    for _ in range(rng.integers(scene.objects[0], scene.objects[1] + 1)):
        kind, size = str(rng.choice(list(SHAPES))), str(rng.choice(scene.sizes))
        mask = shape_mask(
            SHAPES[kind], np.exp(rng.uniform(*np.log(SIZES[size]))), rng.uniform(0, 2 * np.pi)
        )
        corner = free_corner(mask, objects, scene.side, rng)
        if corner is not None:
            paint(canvas, mask, corner, rng)
            x, y = corner
            objects.append(Drawn(kind, (x, y, mask.shape[1], mask.shape[0]), float(mask.sum())))
    noise = rng.normal(0, 4, canvas.shape).astype(np.float32)
    return np.clip(canvas + noise, 0, 255), objects


def shape_mask(shape: Shape, root_area: float, angle: float) -> Floats:
    """(height, width) in 0..1, cut to the shape: how much of each pixel it covers, root_area^2 pixels in all."""
    inside = turned(shape, 64, angle).mean() * 4  # area on the square -1..1
    half = root_area / np.sqrt(inside) + 1
    fine = turned(
        shape, int(np.ceil(2 * half)) * SUBPIXELS, angle, reach=half * np.sqrt(inside) / root_area
    )
    pixels = fine.shape[0] // SUBPIXELS
    mask = fine.reshape(pixels, SUBPIXELS, pixels, SUBPIXELS).mean(axis=(1, 3)).astype(np.float32)
    rows, columns = (np.flatnonzero(mask.max(axis=axis)) for axis in (1, 0))
    return mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def turned(shape: Shape, cells: int, angle: float, reach: float = 1.0) -> npt.NDArray[np.bool_]:
    """(cells, cells): the shape, rotated, on the square from -reach to reach."""
    line = (np.arange(cells, dtype=np.float32) + 0.5) / cells * 2 * reach - reach
    u, v = np.meshgrid(line, line)
    return shape(np.cos(angle) * u - np.sin(angle) * v, np.sin(angle) * u + np.cos(angle) * v)


def free_corner(
    mask: Floats, objects: Sequence[Drawn], side: int, rng: np.random.Generator
) -> tuple[int, int] | None:
    """A place (x, y) for a mask that hides little of the objects so far; None: none was found."""
    height, width = mask.shape
    for _ in range(30):
        x, y = int(rng.integers(0, side - width + 1)), int(rng.integers(0, side - height + 1))
        if all(shared(o.box, (x, y, width, height)) <= LARGEST_OVERLAP for o in objects):
            return x, y
    return None


def shared(a: Sequence[int], b: Sequence[int]) -> float:
    """What two boxes share, as a part of the smaller one."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    return max(0, width) * max(0, height) / min(a[2] * a[3], b[2] * b[3])


def paint(canvas: Floats, mask: Floats, corner: tuple[int, int], rng: np.random.Generator) -> None:
    """Blend a shape into the canvas, in a colour that stands out where it lies."""
    x, y = corner
    under = canvas[y : y + mask.shape[0], x : x + mask.shape[1]]
    colours = rng.uniform(0, 255, (8, 3))
    colour = max(colours, key=lambda c: float(np.abs(c - under.mean(axis=(0, 1))).sum()))
    grain = texture(max(mask.shape), rng)[: mask.shape[0], : mask.shape[1], None] * 30
    under += mask[..., None] * (colour + grain - under)


# ---- backgrounds


def background(scene: Scene, rng: np.random.Generator) -> Floats:
    """(side, side, 3) in 0..255."""
    if scene.backgrounds:
        picture = read_image(scene.backgrounds[rng.integers(len(scene.backgrounds))])
        return np.asarray(picture.resize((scene.side, scene.side)), dtype=np.float32)
    light, dark = rng.uniform(40, 215, (2, 3))
    share = (texture(scene.side, rng)[..., None] + 1) / 2
    return np.asarray(dark + share * (light - dark), dtype=np.float32)


def texture(side: int, rng: np.random.Generator) -> Floats:
    """(side, side) in -1..1: smooth noise, coarse to fine."""
    total = np.zeros((side, side), dtype=np.float32)
    for cells, weight in ((3, 0.5), (8, 0.3), (24, 0.2)):
        coarse = Image.fromarray(rng.uniform(-1, 1, (cells, cells)).astype(np.float32))
        total += weight * np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC))
    return np.clip(total * 1.5, -1, 1)


# ---- the files


def write(scene: Scene, folder: Path, counts: Mapping[str, int], progress: bool = False) -> None:
    """The whole data set; the annotation files come last, whole or not at all."""
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    for split, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(exist_ok=True)
        content = dict(images=[], annotations=[], categories=categories())  # type: dict[str, list[dict[str, Any]]]
        for index in tqdm(range(count), desc=name, disable=not progress):
            pixels, objects = draw(scene, split, index)
            file_name = f"{index:06d}.jpg"
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / file_name, quality=92)
            content["images"].append(
                {"id": index + 1, "file_name": file_name, "width": scene.side, "height": scene.side}
            )
            content["annotations"] += annotations(
                objects, index + 1, first_id=len(content["annotations"]) + 1
            )
        with write_atomically(folder / "annotations" / f"instances_{name}.json") as part:
            part.write_text(json.dumps(content))


def categories() -> list[dict[str, Any]]:
    return [{"id": i, "name": name} for i, name in enumerate(SHAPES, start=1)]


def annotations(objects: Sequence[Drawn], image_id: int, first_id: int) -> Iterator[dict[str, Any]]:
    numbers = {name: i for i, name in enumerate(SHAPES, start=1)}
    for offset, drawn in enumerate(objects):
        yield {
            "id": first_id + offset,
            "image_id": image_id,
            "category_id": numbers[drawn.kind],
            "bbox": list(drawn.box),
            "area": drawn.area,
            "iscrowd": 0,
        }


def photographs_in(folder: Path) -> tuple[Path, ...]:
    found = tuple(sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES))
    if not found:
        raise DataError(f"{folder} holds no images to use as backgrounds.")
    return found


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=new_folder, help="where to write; it is made")
    parser.add_argument(
        "--train", type=positive, default=600, help="images to train on (default: %(default)s)"
    )
    parser.add_argument(
        "--val", type=positive, default=120, help="images to evaluate on (default: %(default)s)"
    )
    parser.add_argument(
        "--side", type=positive, default=320, help="of the images, pixels (default: %(default)s)"
    )
    parser.add_argument(
        "--sizes", nargs="+", choices=list(SIZES), default=list(SIZES), help="(default: all)"
    )
    parser.add_argument(
        "--backgrounds", type=existing_folder, help="photographs (default: textures)"
    )
    parser.add_argument("--seed", type=natural, default=0)
    arguments = parser.parse_args(argv)
    backgrounds = photographs_in(arguments.backgrounds) if arguments.backgrounds else ()
    scene = Scene(
        arguments.side, tuple(arguments.sizes), backgrounds=backgrounds, seed=arguments.seed
    )
    write(
        scene,
        arguments.folder,
        {"train2017": arguments.train, "val2017": arguments.val},
        progress=True,
    )
    print(f"Wrote {arguments.train} and {arguments.val} images to {arguments.folder}")


if __name__ == "__main__":
    run(main)
