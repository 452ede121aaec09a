"""Draw a detector's boxes on photographs; several detectors side by side.

    python -m examples.ssd.detect run/last.pt photo.jpg
    python -m examples.ssd.detect base/last.pt S1L0/last.pt photographs/*.jpg --out drawn

Drawings keep the sizes of images; with several checkpoints each is as many times as wide.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torchvision.models.detection.ssd import SSD
from torchvision.transforms.v2 import functional as VF
from torchvision.utils import draw_bounding_boxes
from tqdm import tqdm

from examples.ssd.programs import DetectionError, read_image, run, share, wanted_device
from examples.ssd.training import detector

# Told apart by everyone.
COLOURS = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7")


@torch.inference_mode()
def drawn(pixels: Tensor, ssd: SSD, names: Sequence[str], threshold: float) -> Tensor:
    """Return (3, H, W), uint8: the image with the boxes above a score. names: of the labels 1.."""
    size, (height, width) = ssd.transform.fixed_size[0], pixels.shape[1:]
    device = next(ssd.parameters()).device
    [found] = ssd([VF.resize(pixels, [size, size], antialias=True).to(device).float() / 255])
    boxes = found["boxes"].cpu() * torch.tensor([width, height] * 2) / size
    boxes[:, 2:] = torch.maximum(boxes[:, 2:], boxes[:, :2] + 1)  # a thinner one is not drawn
    sure = int((found["scores"] > threshold).sum())  # the best come first
    labels, scores = found["labels"][:sure].tolist(), found["scores"][:sure].tolist()
    said = [f"{names[label - 1]} {score:.2f}" for label, score in zip(labels, scores, strict=True)]
    colours = [COLOURS[label % len(COLOURS)] for label in labels]
    line = max(1, min(height, width) // 200)
    return draw_bounding_boxes(pixels, boxes[:sure], said, colours, width=line)


def main(argv: Sequence[str] | None = None) -> None:
    """Detect and draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("paths", nargs="+", type=Path, help="checkpoints (.pt), then images")
    # The paper's threshold, in its Figures 4 and 7.
    add("--threshold", type=share, default=0.2, help="least score (0.2)")
    add("--out", type=Path, default=Path("detections"), help="of the drawings (detections)")
    add("--device", help="cpu, cuda, ... (default: the GPU if there is one)")
    arguments = parser.parse_args(argv)
    device = wanted_device(arguments.device)
    known = [detector(path) for path in arguments.paths if path.suffix == ".pt"]
    images = [path for path in arguments.paths if path.suffix != ".pt"]
    if not known or not images:
        raise DetectionError("give at least one checkpoint (a .pt file) and one image.")
    arguments.out.mkdir(parents=True, exist_ok=True)
    for path in tqdm(images, desc="detecting", leave=False):
        drawing = arguments.out / f"{path.stem}.png"
        if drawing.exists():
            raise DetectionError(f"{drawing} is there already; give another folder with --out.")
        pixels, parts = VF.pil_to_tensor(read_image(path)), []
        for ssd, _, categories in known:
            names = list(categories.values())
            parts.append(drawn(pixels, ssd.to(device), names, arguments.threshold))
        VF.to_pil_image(torch.cat(parts, dim=2)).save(drawing)
    print(f"Drew {len(images)} images in {arguments.out}: {' | '.join(k[1].name for k in known)}")


if __name__ == "__main__":
    run(main)
