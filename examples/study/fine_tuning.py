"""The stock COCO detector under each surgery, trained further: same images, steps and augmentation.

    python -m examples.study.fine_tuning --work runs                      # all rows, three seeds
    python -m examples.study.fine_tuning --work runs --rows base S1L0 --seeds 0 --first 300 --epochs 3

Trains on `coco_train`, evaluates on `coco_public`. A run that was stopped goes on with the same command;
a row whose record is there is skipped. Before the first step a row finds what the detector finds
without training: the boxes that its predictors were trained with are exchanged for the row's own, and
the predictors with them, so that they say the same boxes. With --epochs 0 that is recorded.
"""

import argparse
import copy
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

import stridesurgery as ss
from examples.ssd.configurations import find
from examples.ssd.data import CocoImages, Split
from examples.ssd.processes import Processes, Stop
from examples.ssd.programs import run, wanted_device
from examples.ssd.training import Options, Training
from examples.study import records, stock, trained
from examples.study.stock import SCALES, SIZE, TAPS, StockDetector, data_folder
from stridesurgery.detection import GeometryBoxes, Stand, levels

# The paper's rule: a map of a step has the boxes of that step; split: the maps after the second are
# those of the original.
FINE = (0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95)
SPLIT = (0.1, 0.2, 0.5, 0.65, 0.8, 0.95, 1.0)
SIDE = 5.0  # an offset of 1 is a fifth of a factor e


class Row(NamedTuple):
    """One network to train."""

    surgery: str | None = None
    size: int = SIZE  # pixels
    scales: tuple[float, ...] = FINE  # of the boxes, shares of the image
    finer_maps: int = 6  # of the six maps, that have twice the cells the predictors were trained on
    combine: str | None = None  # two paths: "split" or "concat"


ROWS = {
    "base": Row(scales=SCALES, finer_maps=0),
    "Size600": Row(size=2 * SIZE),
    "S1L6": Row("S1L6"),
    "S1L4": Row("S1L4"),
    "S1L0": Row("S1L0"),
    "S1L0-Split": Row("S1L0", scales=SPLIT, finer_maps=2, combine="split"),
    "S1L0-Concat": Row("S1L0", combine="concat"),
}


# ---- the network


def build(row: Row, parts: nn.ModuleDict, categories: Sequence[int]) -> StockDetector:
    """Return the network of a row with the stock detector's weights; `parts` are left alone."""
    parts = copy.deepcopy(parts)
    whole: Any = stock.at_size(parts, row.size, row.scales)
    if row.surgery is not None:
        whole = ss.eliminate(whole, row.surgery, centres="carried", sizes="stay")
    where = list(getattr(whole.anchor_generator, "where", ()))
    features, extras, heads = whole.backbone.features, parts["extras"], cast(Any, parts["heads"])
    root, backbone = None, parts["backbone"]
    if row.combine == "split":
        root, chosen = f"large.{TAPS[1]}", {"small": TAPS, "large": TAPS[1:]}
        features = ss.dual_path(backbone, row.surgery, taps=chosen, input_size=SIZE)
        old = levels(stock.detector(parts).backbone, SIZE)
        where[row.finer_maps :] = [Stand(stock.middles(level)) for level in old[row.finer_maps :]]
    if row.combine == "concat":
        features = ss.dual_path(backbone, row.surgery, taps=TAPS, combine="concat", input_size=SIZE)
        more = cast(Any, features).feature_info.channels()[1] - heads[1].box.in_channels
        for conv in (cast(Any, extras)[0].reduce, heads[1].box, heads[1].cls):
            _widen(conv, more)
    for level, head in enumerate(heads):
        _rebase(head.box, level, row)
    boxes = stock.Boxes(row.scales)
    boxes = GeometryBoxes(boxes, where) if where else boxes
    how: dict[str, Any] = {"size": row.size, "root": root, "categories": categories}
    return stock.detector(parts, features, boxes, **how)


def _rebase(box: nn.Conv2d, level: int, row: Row) -> None:
    """Change what a box predictor says so that it means the same boxes from the row's anchors.

    On a map with twice the cells it takes objects for twice as large: what it says is meant from
    anchors half as large.
    """
    meant, own = (stock.Boxes(scales)._wh_pairs[level] for scales in (SCALES, row.scales))
    factor = (meant / own).flip(1) * (0.5 if level < row.finer_maps else 1.0)  # height, width
    weights = box.weight.data.unflatten(0, (-1, 4))
    biases = cast(Tensor, box.bias).data.view(-1, 4)
    weights[:, :2] *= factor[:, :, None, None, None]
    biases[:, :2] *= factor
    biases[:, 2:] += SIDE * factor.log()


def _widen(conv: nn.Conv2d, more: int) -> None:
    """Add input channels, which count nothing before they are trained."""
    out, _, *kernel = conv.weight.shape
    new = conv.weight.new_zeros(out, more, *kernel)
    conv.weight = nn.Parameter(torch.cat([conv.weight.data, new], dim=1))
    conv.in_channels += more


# ---- the program


def main(argv: Sequence[str] | None = None) -> None:
    """Train, evaluate, record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS), metavar="ROW")
    trained.add_recipe(parser, epochs=20)
    a = parser.parse_args(argv)
    images = CocoImages(split("coco_train"), with_objects=True, first=a.first)
    same, everyone = trained.settings(a, len(images)), Processes(wanted_device(a.device))
    names = ("lr", "epochs", "batch", "warmup", "amp", "workers")
    options = Options(augment=not a.no_augment, **{name: vars(a)[name] for name in names})
    for seed in a.seeds if a.epochs else a.seeds[:1]:
        kind = f"seed{seed}" if a.epochs else "untrained"
        for name in a.rows:
            path = a.results / "fine_tuning" / f"{name}-{kind}.json"
            if records.is_done(path, same):
                continue
            folder = a.work / "fine_tuning" / f"{name}-{kind}"
            run = training(name, images, everyone, replace(options, seed=seed), folder)
            with run.stop:
                while not run.finished:
                    if not run.run_epoch():
                        sys.exit("Stopped; the same command goes on.")
            rivals = [f"{other}-{kind}" for other in a.rows[: a.rows.index(name)]]
            found = trained.record(run.ssd, split("coco_public"), folder, rivals, a)
            records.write(path, {"row": name, "seed": seed, "settings": same, **found})
            print(f"{path}: AP {found['figures']['ap'][0]:.1f}", flush=True)


def training(
    name: str, images: CocoImages, everyone: Processes, options: Options, folder: Path
) -> Training:
    """Return the training of a row, from its checkpoint on if there is one."""
    row, parts = ROWS[name], stock.load_parts(data_folder() / "weights")
    about = replace(find("SSDMnetv1"), name=f"stock {name}", size=row.size, surgery=row.surgery)
    ssd = build(row, parts, list(images.categories))
    run = Training(ssd, about, images, everyone, options, folder, Stop())
    if run.path.is_file():
        run.resume()
    return run


def split(name: str) -> Split:
    """Return a set of the data folder."""
    return Split(data_folder() / name / "instances.json", data_folder() / name / "images")


if __name__ == "__main__":
    run(main)
