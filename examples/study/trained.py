"""Every row of a comparison trained at equal images and steps, evaluated, and recorded.

    python -m examples.study.trained coco --work runs         # fine_tuning.ROWS, from COCO weights
    python -m examples.study.trained aerial_cars --work runs  # the paper's, from ImageNet weights
    python -m examples.study.trained bccd --work runs --rows mobilenet_v2:S1L0 --seeds 0 --epochs 16

`coco` trains on `coco_train` and evaluates on `coco_public`; with --epochs 0 it records what a row
finds before training. The small sets have images of their own for both. A run that was stopped goes
on with the same command; a row whose record is there is skipped.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from examples.ssd import counting
from examples.ssd import train as ssd_train
from examples.ssd.configurations import ROWS, find
from examples.ssd.data import CocoImages, Split, find_split
from examples.ssd.evaluate import detect_all, load_truth, write_results
from examples.ssd.model import Detector, Network
from examples.ssd.processes import Processes, Stop
from examples.ssd.programs import natural, number, positive, run, wanted_device
from examples.ssd.training import AMP, Options, Training, detector
from examples.study import bootstrap, fine_tuning, records, stock
from examples.study.stock import data_folder

SMALL_ROWS: tuple[str, ...] = (
    "SSDMnetv1",
    "SSDMnetv1-Anchor10-45",  # the base with the boxes of S1L0
    "SSDMnetv1-Size600",
    "SSDMnetv1-S1L0",
    "SSDMnetv1-S1L0-DualPath19-10-S",
)
WEIGHTS = "mobilenet_v1_100_imagenet1001_timm_dequant.safetensors"  # of the small sets' backbone
RECIPE = ("epochs", "batch", "lr", "warmup", "amp", "workers")
DETECTIONS = "detections.json"  # of a run, in its folder of --work


def training(
    name: str, images: CocoImages, everyone: Processes, options: Options, folder: Path
) -> Training:
    """Return the training of a row of `coco`, from its checkpoint on if there is one."""
    row, parts = fine_tuning.ROWS[name], stock.load_parts(data_folder() / "weights")
    about = replace(find("SSDMnetv1"), name=f"stock {name}", size=row.size, surgery=row.surgery)
    ssd = fine_tuning.build(row, parts, list(images.categories))
    run = Training(ssd, about, images, everyone, options, folder, Stop())
    if run.path.is_file():
        run.resume()
    return run


def fine_tuned(
    name: str, images: CocoImages, a: argparse.Namespace, seed: int, folder: Path
) -> Detector:
    """Return the network of a row of `coco` after its training."""
    chosen = {key: vars(a)[key] for key in RECIPE}
    options = Options(augment=not a.no_augment, seed=seed, **chosen)
    run = training(name, images, Processes(wanted_device(a.device)), options, folder)
    with run.stop:
        while not run.finished:
            if not run.run_epoch():
                sys.exit("Stopped; the same command goes on.")
    return run.ssd


def from_imagenet(
    name: str, images: CocoImages, a: argparse.Namespace, seed: int, folder: Path
) -> Detector:
    """Return a network after `examples.ssd.train`, from the weights of its backbone."""
    told: dict[str, Any] = {key: vars(a)[key] for key in (*RECIPE, "device", "weights")}
    told |= {"data": data_folder() / "smallobj" / a.set, "seed": seed, "out": folder}
    told |= {"first": a.first} if a.first else {}
    more = ["--resume", *["--no-augment"] * a.no_augment]
    ssd_train.main([*named(name), *(f"--{key}={value}" for key, value in told.items()), *more])
    return detector(folder / "last.pt")[0]


def named(row: str) -> list[str]:
    """Return the arguments of `train` for a configuration, or for BACKBONE:SURGERY:dual."""
    if row in ROWS:
        return ["--config", row]
    name, surgery, dual = (*row.split(":"), "", "")[:3]
    surgeries = ["--surgery", surgery] if surgery else []
    return ["--backbone", name, *surgeries, *(["--dual"] if dual else [])]


def record(
    ssd: Detector, val: Split, folder: Path, rivals: Sequence[str], a: argparse.Namespace
) -> Mapping[str, Any]:
    """Look for the objects of a set, and return the part of a record that says what was found.

    folder: of the run; those of its rivals are beside it.
    """
    everyone = Processes(wanted_device(a.device))
    images, truth = CocoImages(val, first=a.images), load_truth(val.annotations)
    if not (folder / DETECTIONS).is_file():
        found = detect_all(ssd.to(everyone.device), images, everyone)
        write_results(folder / DETECTIONS, found)

    def matched(run: Path) -> bootstrap.Matches:
        found = json.loads((run / DETECTIONS).read_text())
        return bootstrap.matches(truth, found, images.ids, least=1 if a.set == "coco" else 20)

    others = {}
    for name in rivals:
        if (folder.parent / name / DETECTIONS).is_file():
            others[name.rsplit("-", 1)[0]] = bootstrap.evaluated(matched(folder.parent / name))[0]
    return {
        "gmacs": counting.compute(Network(ssd), ssd.transform.fixed_size[0]) / 1e9,
        "parameters": counting.parameters(ssd),
        "evaluated": len(images),
        **bootstrap.evaluated(matched(folder), others)[1],
        "hardware": records.hardware(everyone.device),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Train, evaluate, record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("set", choices=("coco", "aerial_cars", "bccd", "deeppcb"))
    add("--rows", nargs="+", help="(default: all); of the small sets also BACKBONE:SURGERY:dual")
    add("--seeds", nargs="+", type=natural, default=[0, 1, 2])
    add("--epochs", type=natural, default=20, help="(default: %(default)s)")
    add("--batch", type=positive, default=32, help="images a step (32)")
    add("--lr", type=number(float, 0), default=1e-3, help="(0.001)")
    add("--warmup", type=natural, default=0, help="epochs (0)")
    add("--amp", choices=tuple(AMP), default="off", help="mixed precision (off)")
    add("--no-augment", action="store_true", help="resize only")
    add("--first", type=positive, help="train on so many images only")
    add("--images", type=positive, help="evaluate on so many images only")
    add("--device", default="cpu", help="(default: %(default)s)")
    add("--workers", type=natural, default=0, help="processes that read images (0)")
    add("--weights", type=Path, help=f"of a small set's backbone (default: {WEIGHTS})")
    add("--work", type=Path, required=True, help="folder for checkpoints and detections")
    add("--results", type=Path, default=records.RESULTS, help="(default: docs/results)")
    a = parser.parse_args(argv)
    a.weights = a.weights or data_folder() / "weights" / WEIGHTS
    own = data_folder() / "smallobj" / a.set
    train, val, where, make = own, own, f"small_objects/{a.set}", from_imagenet
    rows, more = SMALL_ROWS, {"set": a.set, "weights": a.weights.name}
    if a.set == "coco":
        train, val = (data_folder() / name for name in ("coco_train", "coco_public"))
        rows, more, where, make = tuple(fine_tuning.ROWS), {}, "fine_tuning", fine_tuned
        if not set(a.rows or ()) <= set(rows):
            parser.error(f"--rows are {', '.join(rows)}")
    images = CocoImages(find_split(train, "train"), with_objects=True, first=a.first)
    same = {**settings(a, len(images)), **more}
    for seed in a.seeds if a.epochs else a.seeds[:1]:
        kind = f"seed{seed}" if a.epochs else "untrained"
        runs = {row: f"{row.replace(':', '-')}-{kind}" for row in a.rows or rows}
        for place, (row, name) in enumerate(runs.items()):
            path, folder = a.results / where / f"{name}.json", a.work / where / name
            if records.is_done(path, same):
                continue
            ssd = make(row, images, a, seed, folder)
            found = record(ssd, find_split(val, "val"), folder, [*runs.values()][:place], a)
            records.write(path, {"row": row, "seed": seed, "settings": same, **found})
            print(f"{path}: AP {found['figures']['ap'][0]:.1f}", flush=True)


def settings(a: argparse.Namespace, images: int) -> dict[str, Any]:
    """Return what a record must have been measured with. images: that are trained on."""
    chosen = {name: vars(a)[name] for name in ("epochs", "batch", "warmup", "amp")}
    steps = a.epochs * (images // min(a.batch, images))
    told = {"images": images, "steps": steps, "rate": a.lr, "augmented": not a.no_augment}
    return {**chosen, **told, **({"evaluated": a.images} if a.images else {})}


if __name__ == "__main__":
    run(main)
