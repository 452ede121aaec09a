"""Draw a detector's boxes on photographs; several detectors side by side.

    python -m examples.ssd.detect run/last.pt photo.jpg
    python -m examples.ssd.detect base/last.pt S1L0/last.pt photographs/ --out drawn

Images keep their names and sizes; with several checkpoints each drawing is as many times as wide.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as VF
from torchvision.utils import draw_bounding_boxes
from tqdm import tqdm

from examples.ssd import programs
from examples.ssd.data import for_testing
from examples.ssd.programs import DetectionError, existing
from examples.ssd.training import Known, detector

# Told apart by everyone.
COLOURS = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7")


@torch.inference_mode()
def drawn(pixels: Tensor, known: Known, threshold: float, device: torch.device) -> Tensor:
    """Return (3, H, W), uint8: the image with the boxes above a score."""
    size, (height, width) = known.row.size, pixels.shape[1:]
    [found] = known.ssd.to(device)([for_testing(size)(pixels).to(device).float() / 255])
    sure = found["scores"] > threshold
    boxes = found["boxes"][sure].cpu() * torch.tensor([width, height] * 2) / size
    boxes[:, 2:] = torch.maximum(boxes[:, 2:], boxes[:, :2] + 1)  # a thinner one is not drawn
    labels, scores = found["labels"][sure].tolist(), found["scores"][sure].tolist()
    names = list(known.categories.values())
    said = [f"{names[label - 1]} {score:.2f}" for label, score in zip(labels, scores, strict=True)]
    colours, line = [COLOURS[label % len(COLOURS)] for label in labels], min(height, width) // 200
    return draw_bounding_boxes(pixels, boxes, said, colours, width=max(1, line))


def main(argv: Sequence[str] | None = None) -> None:
    """Detect and draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("paths", nargs="+", type=existing, help="checkpoints (.pt), then images or folders")
    # The paper's threshold, in its Figures 4 and 7.
    add("--threshold", type=programs.share, default=0.2, help="least score (0.2)")
    add("--out", type=Path, default=Path("detections"), help="of the drawings (detections)")
    add("--device", help="cpu, cuda, ... (default: the GPU if there is one)")
    arguments = parser.parse_args(argv)
    device = programs.wanted_device(arguments.device)
    checkpoints = [path for path in arguments.paths if path.suffix == ".pt"]
    images = [path for path in arguments.paths if path.suffix != ".pt"]
    images = [p for path in images for p in (programs.images_in(path) if path.is_dir() else [path])]
    if not checkpoints or not images:
        raise DetectionError("give at least one checkpoint (a .pt file) and one image.")
    if len({path.name for path in images}) < len(images):
        raise DetectionError("two images have one name; give them to two runs, each with an --out.")
    if any(path.resolve() == (arguments.out / path.name).resolve() for path in images):
        raise DetectionError("an image would be overwritten; give another folder with --out.")
    known = [detector(path) for path in checkpoints]
    arguments.out.mkdir(parents=True, exist_ok=True)
    for path in tqdm(images, desc="detecting", leave=False):
        pixels = VF.pil_to_tensor(programs.read_image(path))
        parts = [drawn(pixels, one, arguments.threshold, device) for one in known]
        usual = path.suffix.lower() in programs.IMAGE_SUFFIXES
        name = path.name if usual else f"{path.name}.png"
        VF.to_pil_image(torch.cat(parts, dim=2)).save(arguments.out / name, quality=95)
    print(f"Drew {len(images)} images in {arguments.out}: {' | '.join(k.row.name for k in known)}")


if __name__ == "__main__":
    programs.run(main)
