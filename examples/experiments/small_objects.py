"""Sets of small objects, learned from ImageNet weights: the paper's networks at equal images, steps and augmentation.

    python -m examples.experiments.small_objects aerial_cars --work runs          # all rows, three seeds: for a GPU
    python -m examples.experiments.small_objects aerial_cars --work runs --seeds 0 --epochs 16 --device cpu

Every row is trained by `examples.ssd.train` and evaluated on the set's own validation images. A run that was stopped
goes on with the same command; a row whose result is there is skipped.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from examples.experiments import records, trained
from examples.ssd import train
from examples.ssd.annotations import find_split, read_annotations
from examples.ssd.checkpoint import detector
from examples.ssd.configurations import ROWS as CONFIGURATIONS
from examples.ssd.configurations import find
from examples.ssd.programs import existing_file, run
from examples.training_free import data_folder

SETS = ("aerial_cars", "bccd", "deeppcb")
ROWS = (
    "SSDMnetv1",
    "SSDMnetv1-Anchor10-45",  # the base with the boxes of S1L0: its own smallest ones are of 45 pixels, these of 10
    "SSDMnetv1-Size600",
    "SSDMnetv1-S1L0",
    "SSDMnetv1-S1L0-DualPath19-10-S",
)
RIVALS = ROWS[:4]  # what a row is compared with, if it comes later
WEIGHTS = "mobilenet_v1_100_imagenet1001_timm_dequant.safetensors"


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("set", choices=SETS)
    parser.add_argument(
        "--rows",
        nargs="+",
        default=list(ROWS),
        help="configurations, or resnet18, resnet18:S1L0, ...",
    )
    trained.add_recipe(parser, epochs=100)
    parser.add_argument(
        "--weights", type=existing_file, help=f"of the backbone (default: {WEIGHTS})"
    )
    return parser.parse_args(argv)


def weights(arguments: argparse.Namespace) -> Path:
    """Of the backbone."""
    return Path(arguments.weights or arguments.data / "weights" / WEIGHTS)


def named(row: str) -> list[str]:
    """The arguments of `train` for a configuration, or for BACKBONE, BACKBONE:SURGERY, BACKBONE:SURGERY:dual."""
    if row in CONFIGURATIONS:
        return ["--config", row]
    name, surgery, dual = (*row.split(":"), "", "")[:3]
    return [
        "--backbone",
        name,
        *(["--surgery", surgery] if surgery else []),
        *(["--dual"] if dual else []),
    ]


def train_row(row: str, seed: int, arguments: argparse.Namespace, folder: Path) -> Path:
    """The checkpoint of a finished run; one that was stopped goes on."""
    data = arguments.data / "smallobj" / arguments.set
    recipe = ["--epochs", arguments.epochs, "--batch", arguments.batch, "--lr", arguments.lr]
    recipe += ["--warmup", arguments.warmup, "--amp", arguments.amp]
    how = [
        "--seed",
        seed,
        "--device",
        arguments.device,
        "--workers",
        arguments.workers,
        "--eval-every",
        0,
    ]
    flags = ["--channels-last"] + ["--no-augment"] * arguments.no_augment
    flags += ["--first", arguments.first] * (arguments.first is not None)
    flags += ["--resume"] * (folder / "last.pt").is_file()
    split = find_split(data, "train")
    images = [
        "--train-json",
        split.annotations,
        "--train-images",
        split.images,
        "--weights",
        weights(arguments),
    ]
    images += ["--out", folder]
    train.main([str(word) for word in (*named(row), *recipe, *how, *flags, *images)])
    return folder / "last.pt"


def backbone(row: str) -> str:
    """Whose weights a row starts from."""
    return find(row).backbone if row in CONFIGURATIONS else row.partition(":")[0]


def rivals(row: str) -> Sequence[str]:
    """What a row is compared with: of another backbone, that backbone as it is and with one path."""
    return trained.rivals(
        row, RIVALS if row in CONFIGURATIONS else (backbone(row), f"{backbone(row)}:S1L0")
    )


def file_name(row: str, seed: int) -> str:
    return f"{row.replace(':', '-')}-seed{seed}"


def images_in(data: Path) -> int:
    """That there are to train on."""
    return len(read_annotations(find_split(data, "train")).with_objects().records)


def settings(arguments: argparse.Namespace, images: int) -> dict[str, Any]:
    """What a record must have been measured with. images: that there are to train on."""
    return {
        "set": arguments.set,
        "weights": weights(arguments).name,
        **trained.settings(arguments, images),
    }


def kept(row: str, seed: int, arguments: argparse.Namespace) -> Path:
    """What a row finds on the validation images, beside its checkpoint."""
    return Path(
        arguments.work / "small_objects" / arguments.set / file_name(row, seed) / trained.DETECTIONS
    )


def detect(row: str, seed: int, arguments: argparse.Namespace) -> None:
    """Train a row and look for the objects, unless that was done."""
    data, found = arguments.data / "smallobj" / arguments.set, kept(row, seed, arguments)
    records.claim(found.parent, settings(arguments, images_in(data)))
    if not found.is_file():
        known = detector(train_row(row, seed, arguments, found.parent))
        trained.detect(known.ssd, find_split(data, "val"), arguments.device, found)


def write_record(row: str, seed: int, arguments: argparse.Namespace, path: Path) -> None:
    data, found = arguments.data / "smallobj" / arguments.set, kept(row, seed, arguments)
    known = detector(found.parent / "last.pt")
    others = {other: kept(other, seed, arguments) for other in rivals(row)}
    judge = trained.Judge(find_split(data, "val"), trained.FEW, known.categories.names)
    facts = trained.facts(known.ssd, known.row.size, arguments.device, found, judge, others)
    about = {
        "row": row,
        "backbone": backbone(row),
        "seed": seed,
        "settings": settings(arguments, images_in(data)),
    }
    records.write(path, {**about, **facts})
    print(f"{path}: AP {facts['figures']['ap'][0]:.1f}", flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    arguments.data = data_folder()
    same = settings(arguments, images_in(arguments.data / "smallobj" / arguments.set))
    results = arguments.results / "small_objects" / arguments.set
    runs = {
        results / f"{file_name(row, seed)}.json": (row, seed)
        for seed in arguments.seeds
        for row in arguments.rows
    }
    todo = {path: pair for path, pair in runs.items() if not records.is_done(path, same)}
    for row, seed in todo.values():
        detect(row, seed, arguments)
    for path, (
        row,
        seed,
    ) in todo.items():  # once all have been looked at, so that each is compared with its rivals
        write_record(row, seed, arguments, path)


if __name__ == "__main__":
    run(main)
