"""The stock COCO SSD with strides eliminated and nothing trained, beside its equal-cost rivals.

    python -m examples.study.training_free --work runs             # an hour on two CPU cores
    python -m examples.study.training_free --work runs --images 40 --results elsewhere

What each view of the photographs of `coco_public` finds is kept in --work, and each row's result in
docs/results: a run that was stopped goes on with the same command. Where boxes of a finer view join
those of the original below a bound, the bound is chosen on every other photograph and used on the
rest, and the other way round: no photograph has a say in its own bound.
"""

import argparse
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

import stridesurgery as ss
from examples.ssd import counting
from examples.ssd.evaluate import Detection, load_truth
from examples.ssd.programs import DetectionError, positive, read_image, run, write_atomically
from examples.study import bootstrap, records, stock_boxes
from examples.study.stock import HIGH_TAP, INPUT_SIZE, LOW_TAP, Predictions, StockSSD, load_stock
from examples.study.stock_boxes import (
    Candidates,
    Centres,
    anchors,
    learned_centres,
    six_layers,
    usual_centres,
)
from examples.study.stock_networks import (
    TwoPaths,
    as_input,
    enlarged,
    resized,
    with_stride_eliminated,
    with_stride_patched,
)

SURGERIES = {"S1L0": (0,), "S1L4": (4,), "S1L6": (6,), "S2L4-6": (4, 6)}
AS_IS, LARGE, ENLARGED, DILATED = "as is", "600 pixels", "300 pixels enlarged", "S1L12 dilated"
DOUBLED = 2 * INPUT_SIZE
FINER = 0.5  # a cell of the finer views is half as large, and so is what its predictor says
APART = ("person", "car")  # the paper's Figure 1
BOUNDS = (0, 48, 64, 96, 128, 160, 192, 224, 256)  # pixels; 0: none of the finer view's boxes


def data_folder() -> Path:
    """Return the folder with weights and photographs."""
    folder = os.environ.get("STRIDESURGERY_DATA")
    if folder is None:
        raise DetectionError("STRIDESURGERY_DATA names no folder with weights and photographs.")
    return Path(folder)


# ---- the networks


@dataclass(frozen=True)
class View:
    """One network on one size of photograph."""

    net: nn.Module  # gives Predictions
    anchors: Tensor  # (A, 4)
    see: Callable[[Image.Image, int], Image.Image]  # the photograph as the network gets it
    size: int = INPUT_SIZE

    @torch.inference_mode()
    def seen(self, photograph: Image.Image) -> Candidates:
        """Return every box that is worth a look, before any suppression."""
        said = self.net(as_input(self.see(photograph, self.size)))
        shape = (photograph.height, photograph.width)
        return stock_boxes.candidates(said, self.anchors, shape)


def views(net: StockSSD) -> dict[str, View]:
    """Return every network that is compared; all have the weights of one."""

    def learned(finer: StockSSD, size: int = INPUT_SIZE, scale: float = FINER) -> Tensor:
        where = learned_centres(six_layers(finer, size), size, trained, INPUT_SIZE)
        return anchors(where, scale)

    trained = six_layers(net, INPUT_SIZE)
    found = {
        AS_IS: View(net, anchors(usual_centres(trained)), resized),
        LARGE: View(net, learned(net, DOUBLED), resized, DOUBLED),
        ENLARGED: View(net, learned(net, DOUBLED), enlarged, DOUBLED),
    }
    for surgery, layers in SURGERIES.items():
        scale = FINER ** len(layers)
        patched, operated = with_stride_patched(net, layers), with_stride_eliminated(net, surgery)
        in_middle = anchors(usual_centres(six_layers(patched, INPUT_SIZE)), scale)
        found[f"{surgery} by hand"] = View(patched, in_middle, resized)
        found[surgery] = View(operated, learned(operated, scale=scale), resized)
    dilated = Dilated(net)
    return {**found, DILATED: View(dilated, dilated.anchors(), resized)}


class Dilated(nn.Module):
    """The detector's own maps, the backbone's last one with cells between its cells.

    Only after the last stride do the cells in between look halfway: those of an earlier layer look
    one cell of that layer aside, however many strides follow.
    """

    def __init__(self, net: StockSSD) -> None:
        super().__init__()
        self.net = net
        operated = ss.eliminate(net.backbone, "S1L12", dilate=True, input_size=INPUT_SIZE)
        self.features = ss.features(operated, (str(LOW_TAP), str(HIGH_TAP)), input_size=INPUT_SIZE)

    def forward(self, images: Tensor) -> Predictions:
        low, high = self.features(images).values()
        others = self.net.six_maps(low, high[..., ::2, ::2])[2:]
        return self.net.predict_from([low, high, *others])

    def anchors(self) -> Tensor:
        """Return the detector's own, on the second map also halfway between them."""
        low, high, *others = usual_centres(six_layers(self.net, INPUT_SIZE))
        with torch.inference_mode():
            _, dense = self.features(torch.zeros(1, 3, INPUT_SIZE, INPUT_SIZE)).values()
        pairs = zip((high.rows, high.columns), dense.shape[-2:], strict=True)
        half = [old[0] + (old[1] - old[0]) / 2 * torch.arange(count) for old, count in pairs]
        return anchors([low, Centres(*half), *others])


# ---- the size bound


def detections(found: Iterator[Candidates], ids: Sequence[int]) -> list[Detection]:
    """Return them in COCO's format."""
    pairs = zip(found, ids, strict=True)
    return [d for c, i in pairs for d in stock_boxes.as_results(stock_boxes.suppress(c), i)]


def joined(
    original: Sequence[Candidates], finer: Sequence[Candidates], bounds: Sequence[float]
) -> Iterator[Candidates]:
    """Yield of each photograph the original's boxes, and the finer view's below its bound."""
    for a, b, bound in zip(original, finer, bounds, strict=True):
        yield stock_boxes.merged(a, stock_boxes.below(b, bound))


def best(swept: Mapping[float, Sequence[float]]) -> list[float]:
    """Return the bounds that the even and the odd photographs choose; of equals, the smallest."""
    return [max(swept, key=lambda bound, half=half: swept[bound][half]) for half in (0, 1)]  # type: ignore[misc]


def crossed(swept: Mapping[float, Sequence[float]], count: int) -> list[float]:
    """Return the bound of each photograph: the one that is best on the other half."""
    even, odd = best(swept)
    return [even if number % 2 else odd for number in range(count)]


# ---- the experiment


class Experiment:
    """Photographs, networks, and what was found already."""

    def __init__(self, work: Path, images: int | None) -> None:
        data = data_folder()
        self.folder, self.work = data / "coco_public" / "images", work / "training_free"
        self.truth = load_truth(data / "coco_public" / "instances.json")
        self.ids = sorted(self.truth.imgs)[:images]
        self.net = load_stock(data / "weights")
        entries = [self.truth.imgs[i] for i in self.ids]
        self.settings = {
            "images": len(self.ids),
            "with recovered boxes": sum(e.get("gt", "official") != "official" for e in entries),
            "of train2017": sum(e.get("split") == "train2017" for e in entries),
            "resamples": bootstrap.RESAMPLES,
        }

    @cached_property
    def views(self) -> dict[str, View]:
        return views(self.net)

    @cached_property
    def rows(self) -> dict[str, tuple[str, bool, float]]:
        """By title: the view, whether its boxes join the original's, and compute (GMAC)."""
        alone = {
            name: counting.compute(view.net, view.size) / 1e9 for name, view in self.views.items()
        }
        found = {name: (name, False, gmacs) for name, gmacs in alone.items() if name != ENLARGED}
        for name in (LARGE, ENLARGED):
            found[f"pyramid, {name}"] = (name, True, alone[AS_IS] + alone[name])
        for name in SURGERIES:
            both = counting.compute(TwoPaths(self.net, name), INPUT_SIZE) / 1e9
            found[f"{name} dual path"] = (name, True, both)
        return found

    def candidates(self, name: str) -> list[Candidates]:
        """Return what a view finds on every photograph; kept in the work folder."""
        kept = self.work / f"{name}, {len(self.ids)}.pt"
        if not kept.is_file():
            found = []
            for number in tqdm(self.ids, desc=name, disable=None):
                photograph = read_image(self.folder / self.truth.imgs[number]["file_name"])
                found.append(self.views[name].seen(photograph))
            with write_atomically(kept) as part:
                torch.save([(c.boxes, c.scores, c.categories) for c in found], part)
        return [Candidates(*fields) for fields in torch.load(kept, weights_only=True)]

    def found(self, title: str) -> tuple[list[Detection], dict[str, Any]]:
        """Return the detections of a row, and how the bound was found if it has one."""
        view, is_joined, _ = self.rows[title]
        finer = self.candidates(view)
        if not is_joined:
            return detections(iter(finer), self.ids), {}
        original, count, swept = self.candidates(AS_IS), len(self.ids), {}
        halves = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])[:, np.arange(count) % 2]
        for bound in BOUNDS:
            found = detections(joined(original, finer, [bound] * count), self.ids)
            matched = bootstrap.matches(self.truth, found, self.ids)
            swept[float(bound)] = bootstrap.figures(matched, halves)["ap"].tolist()
        chosen = detections(joined(original, finer, crossed(swept, count)), self.ids)
        return chosen, {"bounds": best(swept), "sweep": swept}

    def record(self, title: str, rivals: Mapping[str, bootstrap.Figures]) -> dict[str, Any]:
        """Return the record of a row, and under "own" its figures on every resample."""
        found, facts = self.found(title)
        own = bootstrap.evaluated(bootstrap.matches(self.truth, found, self.ids), APART)
        return {
            "row": title,
            "settings": self.settings,
            "gmacs": self.rows[title][2],
            "figures": bootstrap.intervals(own.figures),
            "objects": dict(own.objects),
            "differences": {k: bootstrap.differences(own.figures, v) for k, v in rivals.items()},
            **facts,
            "hardware": records.hardware(),
            "own": own.figures,
        }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--images", type=positive, help="only the first so many (default: all)")
    add("--work", type=Path, required=True, help="folder for what the views find")
    add("--results", type=Path, default=records.RESULTS, help="(docs/results)")
    arguments = parser.parse_args(argv)
    experiment = Experiment(arguments.work, arguments.images)
    paths = {t: arguments.results / "training_free" / f"{t}.json" for t in experiment.rows}
    if all(records.is_done(path, experiment.settings) for path in paths.values()):
        return
    known: dict[str, bootstrap.Figures] = {}
    for title, path in paths.items():
        record = experiment.record(title, known)
        known[title] = record.pop("own")
        records.write(path, record)
        print(f"{path}: AP {record['figures']['ap'][0]:.1f}", flush=True)


if __name__ == "__main__":
    run(main)
