"""What a stride costs small objects, shown in minutes on a CPU, without a download.

    python -m examples.ssd.demonstration                  # base and S1L0 on drawn shapes
    python -m examples.ssd.demonstration --surgeries S1L0 S1L2 --out shown

Draws a data set of small, medium and large shapes, trains a small detector with and without the surgery from the same
random weights, in the same number of steps, and prints AP and AR by size of object beside the compute.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from examples.ssd import counting, synthetic, train
from examples.ssd.annotations import find_split, read_annotations
from examples.ssd.checkpoint import detector
from examples.ssd.custom import configuration_for
from examples.ssd.data import Share
from examples.ssd.evaluate import TITLES, as_row, detect_all, evaluated
from examples.ssd.formatting import as_table
from examples.ssd.processes import Processes
from examples.ssd.programs import new_folder, positive, run, wanted_device

SIZE = 160  # pixels; the shapes are drawn on 320


def shapes(folder: Path, train_images: int, val_images: int) -> Path:
    """The data set, drawn unless it is there."""
    if not (folder / "annotations" / "instances_val2017.json").is_file():
        synthetic.write(
            synthetic.Scene(),
            folder,
            {"train2017": train_images, "val2017": val_images},
            progress=True,
        )
    return folder


def trained(name: str, surgery: str | None, arguments: argparse.Namespace, data: Path) -> Path:
    """The checkpoint of a run."""
    out = arguments.out / name
    detector_of = [
        "--backbone",
        arguments.backbone,
        "--size",
        str(SIZE),
        *(["--surgery", surgery] if surgery else []),
    ]
    # The shapes are drawn with random sizes and places: what SSD's augmentation would add, costs more steps.
    recipe = [
        "--epochs",
        str(arguments.epochs),
        "--batch",
        "8",
        "--lr",
        "0.02",
        "--warmup",
        "1",
        "--no-augment",
    ]
    how = ["--weights", "none", "--workers", "0", "--device", arguments.device, "--train-json"]
    split = find_split(data, "train")
    train.main(
        [
            *detector_of,
            *recipe,
            *how,
            str(split.annotations),
            "--train-images",
            str(split.images),
            "--out",
            str(out),
        ]
    )
    return out / "last.pt"


def row(name: str, checkpoint: Path, data: Path, everyone: Processes) -> tuple[str, ...]:
    known = detector(checkpoint)
    split = find_split(data, "val")
    found = detect_all(
        known.ssd.to(everyone.device), read_annotations(split), everyone, progress=True
    )
    compute = counting.compute(known.ssd.cpu(), SIZE) / 1e9
    return (*as_row(name, evaluated(split, found)), f"{compute:.2f}")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--surgeries", nargs="+", default=["S1L0"], help="(default: S1L0)")
    parser.add_argument(
        "--backbone",
        default="test_resnet",
        help="timm or torchvision (default: %(default)s, small)",
    )
    parser.add_argument("--epochs", type=positive, default=12, help="(default: %(default)s)")
    parser.add_argument(
        "--images", type=positive, default=600, help="to train on (default: %(default)s)"
    )
    parser.add_argument("--device", default="cpu", help="(default: %(default)s)")
    parser.add_argument(
        "--out",
        type=new_folder,
        default=Path("demonstration"),
        help="folder (default: %(default)s)",
    )
    arguments = parser.parse_args(argv)
    everyone = Processes(Share(), wanted_device(arguments.device))
    for surgery in arguments.surgeries:
        configuration_for(
            arguments.backbone, surgery, SIZE
        )  # what cannot be built is told before minutes of training
    data = shapes(arguments.out / "shapes", arguments.images, max(1, arguments.images // 6))
    rows = []
    for name, surgery in [("base", None), *((s, s) for s in arguments.surgeries)]:
        rows.append(row(name, trained(name, surgery, arguments, data), data, everyone))
    print("\n" + as_table(("network", *TITLES, "compute"), rows))


if __name__ == "__main__":
    run(main)
