"""What a stride costs small objects, shown in minutes on a CPU, without a download.

    python -m examples.ssd.demonstration                  # base and S1L0 on drawn shapes
    python -m examples.ssd.demonstration --surgeries S1L0 S1L2 --out shown

Draws a data set of small, medium and large shapes (in --out, for the other programs too), trains a
small detector with and without the surgery from the same random weights, in the same number of
steps, and evaluates all of them.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from examples.ssd import evaluate, model, synthetic, train
from examples.ssd.backbones import configuration_for
from examples.ssd.programs import positive, run

# The shapes are drawn with random sizes and places: what SSD's augmentation would add, costs steps.
RECIPE = "--size 160 --batch 8 --lr 0.02 --warmup 1 --no-augment --weights none --workers 0"


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
        synthetic.write(shapes, counts)
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
