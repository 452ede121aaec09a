"""Sets of small objects, learned from ImageNet weights: the paper's networks at equal images and steps.

    python -m examples.study.small_objects aerial_cars --work runs          # all rows, three seeds
    python -m examples.study.small_objects aerial_cars --work runs --seeds 0 --epochs 16

Every row is trained by `examples.ssd.train` and evaluated on the set's own validation images. A run
that was stopped goes on with the same command; a row whose record is there is skipped.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from examples.ssd import train
from examples.ssd.configurations import ROWS as CONFIGURATIONS
from examples.ssd.data import CocoImages, find_split
from examples.ssd.programs import run
from examples.ssd.training import detector
from examples.study import records, trained
from examples.study.stock import data_folder

ROWS = (
    "SSDMnetv1",
    "SSDMnetv1-Anchor10-45",  # the base with the boxes of S1L0
    "SSDMnetv1-Size600",
    "SSDMnetv1-S1L0",
    "SSDMnetv1-S1L0-DualPath19-10-S",
)
WEIGHTS = "mobilenet_v1_100_imagenet1001_timm_dequant.safetensors"


def named(row: str) -> list[str]:
    """Return the arguments of `train` for a configuration, or for BACKBONE:SURGERY:dual."""
    if row in CONFIGURATIONS:
        return ["--config", row]
    name, surgery, dual = (*row.split(":"), "", "")[:3]
    surgeries = ["--surgery", surgery] if surgery else []
    return ["--backbone", name, *surgeries, *(["--dual"] if dual else [])]


def main(argv: Sequence[str] | None = None) -> None:
    """Train, evaluate, record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("set", choices=("aerial_cars", "bccd", "deeppcb"))
    parser.add_argument("--rows", nargs="+", default=list(ROWS), help="or BACKBONE:SURGERY:dual")
    trained.add_recipe(parser, epochs=100)
    parser.add_argument("--weights", type=Path, help=f"of the backbone (default: {WEIGHTS})")
    a = parser.parse_args(argv)
    data = data_folder() / "smallobj" / a.set
    weights = a.weights or data_folder() / "weights" / WEIGHTS
    images = CocoImages(find_split(data, "train"), with_objects=True, first=a.first)
    same = {"set": a.set, "weights": weights.name, **trained.settings(a, len(images))}
    names = ("epochs", "batch", "lr", "warmup", "amp", "device", "workers")
    recipe = [f"--{name}={vars(a)[name]}" for name in names]
    recipe += [f"--weights={weights}", f"--data={data}", *["--no-augment"] * a.no_augment]
    recipe += [f"--first={a.first}"] if a.first else []
    for seed in a.seeds:
        runs = {row: f"{row.replace(':', '-')}-seed{seed}" for row in a.rows}
        for number, (row, name) in enumerate(runs.items()):
            folder = a.work / "small_objects" / a.set / name
            path = a.results / "small_objects" / a.set / f"{name}.json"
            if records.is_done(path, same):
                continue
            more = [f"--seed={seed}", f"--out={folder}", "--resume"]
            train.main([*named(row), *recipe, *more])
            (ssd, _, _), val = detector(folder / "last.pt"), find_split(data, "val")
            found = trained.record(ssd, val, folder, [*runs.values()][:number], a, least=20)
            about = {"row": row, "backbone": named(row)[1], "seed": seed, "settings": same}
            records.write(path, {**about, **found})
            print(f"{path}: AP {found['figures']['ap'][0]:.1f}", flush=True)


if __name__ == "__main__":
    run(main)
