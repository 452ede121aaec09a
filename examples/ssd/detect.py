"""Draw a detector's boxes on photographs; two detectors side by side.

    python -m examples.ssd.detect run/last.pt photo.jpg
    python -m examples.ssd.detect base/last.pt S1L0/last.pt photographs/ --out drawn

Images keep their names and sizes; with several checkpoints each drawing is as many times as wide, in their order.
"""

import argparse
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as VF
from torchvision.utils import draw_bounding_boxes
from tqdm import tqdm

from examples.ssd import augment
from examples.ssd.checkpoint import Detector, detector
from examples.ssd.errors import DataError, RequestError
from examples.ssd.files import IMAGE_SUFFIXES, read_image
from examples.ssd.postprocess import Detections, detections
from examples.ssd.programs import new_folder, run, wanted_device

JPEG = {"quality": 95, "subsampling": 0}  # thin lines stay sharp
THRESHOLD = 0.2  # the paper's, in its Figures 4 and 7
COLOURS = (
    "#e69f00",
    "#56b4e9",
    "#009e73",
    "#f0e442",
    "#0072b2",
    "#d55e00",
    "#cc79a7",
)  # told apart by everyone


@torch.inference_mode()
def detect(known: Detector, picture: Image.Image, device: torch.device) -> Detections:
    """What a detector finds in one image; boxes are shares of the image."""
    pixels = augment.for_testing(known.row.size)(VF.pil_to_tensor(picture))
    offsets, logits = known.ssd(known.ssd.prepare(pixels[None].to(device)))
    return detections(offsets, known.ssd.scores(logits), known.ssd.priors)[0]


def drawn(
    picture: Image.Image, found: Detections, names: Sequence[str], threshold: float
) -> Tensor:
    """(3, H, W), uint8: the image with the boxes above a score, each with its class and score."""
    pixels = VF.pil_to_tensor(picture)
    sure = found.scores > threshold
    if not sure.any():
        return pixels
    boxes, labels, scores = (
        found.boxes[sure].cpu(),
        found.labels[sure].tolist(),
        found.scores[sure].tolist(),
    )
    scale = torch.tensor([picture.width, picture.height, picture.width, picture.height])
    return draw_bounding_boxes(
        pixels,
        at_least_a_pixel(boxes * scale),
        labels=[
            f"{names[label - 1]} {score:.2f}" for label, score in zip(labels, scores, strict=True)
        ],
        colors=[COLOURS[label % len(COLOURS)] for label in labels],
        width=max(1, min(picture.size) // 200),
    )


def at_least_a_pixel(boxes: Tensor) -> Tensor:
    """boxes: (K, 4) corners. A box thinner than a pixel is not drawn by torchvision."""
    return torch.cat([boxes[:, :2], torch.maximum(boxes[:, 2:], boxes[:, :2] + 1)], dim=1)


def images_in(paths: Iterable[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            found = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
            if not found:
                raise DataError(f"{path} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))}).")
            yield from found
        elif path.is_file():
            yield path
        else:
            raise DataError(f"there is no image or folder {path}.")


def drawings(images: Iterable[Path], out: Path) -> dict[Path, Path]:
    """The file that each image is drawn to: one of its name; what is no usual kind of image becomes a PNG.

    Raises:
        RequestError: two images have one name, or an image would be overwritten.
    """
    sources = {path.resolve(): path for path in images}
    found: dict[Path, Path] = {}  # drawing to image
    for path in sources.values():
        drawing = out / (path.name if path.suffix.lower() in IMAGE_SUFFIXES else f"{path.name}.png")
        if drawing in found:
            raise RequestError(
                f"{found[drawing]} and {path} have one name; give them to two runs, each with an --out."
            )
        if drawing.resolve() in sources:
            raise RequestError(f"{drawing} is one of the images; give another folder with --out.")
        found[drawing] = path
    return {path: drawing for drawing, path in found.items()}


def score(text: str) -> float:
    """For argparse."""
    number = float(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return number


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "paths", nargs="+", type=Path, help="checkpoints (.pt), then images or folders of images"
    )
    parser.add_argument(
        "--threshold", type=score, default=THRESHOLD, help="least score (default: %(default)s)"
    )
    parser.add_argument(
        "--out",
        type=new_folder,
        default=Path("detections"),
        help="folder of the drawings (default: %(default)s)",
    )
    parser.add_argument("--device", help="cpu, cuda, ... (default: the GPU if there is one)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    checkpoints = [path for path in arguments.paths if path.suffix == ".pt"]
    images = drawings(
        images_in(path for path in arguments.paths if path.suffix != ".pt"), arguments.out
    )
    if not checkpoints or not images:
        raise RequestError("give at least one checkpoint (a .pt file) and one image.")
    device = wanted_device(arguments.device)
    known = [detector(path) for path in checkpoints]
    for one in known:
        one.ssd.to(device)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for path, drawing in tqdm(images.items(), desc="detecting", leave=False):
        picture = read_image(path)
        parts = [
            drawn(picture, detect(k, picture, device), k.categories.names, arguments.threshold)
            for k in known
        ]
        VF.to_pil_image(torch.cat(parts, dim=2)).save(drawing, **JPEG)
    order = " | ".join(k.row.name for k in known)
    print(f"Drew {len(images)} images in {arguments.out}: {order}")


if __name__ == "__main__":
    run(main)
