"""A COCO detector with living batch norms and a stride less, with and without `stridesurgery.recalibrate`.

    python -m examples.experiments.recalibration --work runs

The statistics are estimated on `coco_train`, without its boxes; evaluated is on `coco_public`. The network as it is,
recalibrated on the same images, is the control: what other images do to the statistics.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

import stridesurgery as ss
from examples.experiments import bootstrap, fastestdet, records
from examples.experiments.fastestdet import INPUT_SIZE, FastestDet
from examples.experiments.training_free import APART, flat
from examples.ssd import counting
from examples.ssd.evaluation import Detection, load_truth, write_results
from examples.ssd.programs import positive, run
from examples.ssd.stock_boxes import as_results, suppress
from examples.training_free import data_folder, read

BATCH = 8


@dataclass(frozen=True)
class Row:
    """One network."""

    surgery: str | None = None
    size: int = INPUT_SIZE
    recalibrated: bool = False

    @property
    def box_scale(self) -> float:
        """By which the sides that the detector says are multiplied; it says them as shares of the photograph.

        It learned them at `INPUT_SIZE` with all its strides. At twice the pixels, or with a stride of 2 less, an object
        covers twice the cells and is taken for one of twice the size.
        """
        return INPUT_SIZE / self.size / (1 if self.surgery is None else 2)


ROWS: Mapping[str, Row] = {
    "as is": Row(),
    "as is, recalibrated": Row(recalibrated=True),
    "704 pixels": Row(size=2 * INPUT_SIZE),
    "704 pixels, recalibrated": Row(size=2 * INPUT_SIZE, recalibrated=True),
    **{
        f"{surgery}{', recalibrated' * recalibrated}": Row(surgery, recalibrated=recalibrated)
        for surgery in ("S1L0", "S1L1", "S1L2")
        for recalibrated in (False, True)
    },
}


def as_input(photograph: Image.Image, size: int) -> Tensor:
    """(1, 3, size, size), BGR in 0..1."""
    pixels = torch.tensor(np.asarray(photograph.resize((size, size), Image.Resampling.BILINEAR)))
    return pixels.permute(2, 0, 1)[None].flip(1).float() / 255


class Experiment:
    """Photographs to learn statistics from and to evaluate on, and the detector."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.data, self.work, self.results = data_folder(), arguments.work, arguments.results
        self.truth = load_truth(self.data / "coco_public" / "instances.json")
        self.ids = sorted(self.truth.imgs)[: arguments.images]
        self.seen = arguments.seen
        self.stock = fastestdet.load(self.data / "weights")
        self.known: dict[str, bootstrap.Evaluated] = {}

    @property
    def settings(self) -> dict[str, Any]:
        return {"images": len(self.ids), "seen for statistics": self.seen, "batch": BATCH}

    @cached_property
    def kept_in(self) -> Path:
        """The folder for detections, once it is known to be of the same images and statistics."""
        folder = self.work / "recalibration"
        records.claim(folder, self.settings)
        return folder

    @cached_property
    def unlabelled(self) -> list[Path]:
        files = sorted((self.data / "coco_train" / "images").iterdir())
        chosen = np.random.default_rng(0).permutation(len(files))[: self.seen]
        return [files[i] for i in chosen]

    def batches(self, size: int) -> Iterator[Tensor]:
        for start in range(0, len(self.unlabelled), BATCH):
            part = []
            for path in self.unlabelled[start : start + BATCH]:
                with Image.open(path) as photograph:
                    part.append(as_input(photograph.convert("RGB"), size))
            yield torch.cat(part)

    def network(self, row: Row) -> FastestDet:
        net = deepcopy(self.stock)
        if row.surgery is not None:
            net.backbone = ss.eliminate(net.backbone, row.surgery, input_size=row.size)
        if row.recalibrated:
            ss.recalibrate(net, self.batches(row.size), limit=None)
        return net.eval()

    def detections(self, title: str, row: Row, net: Callable[[], FastestDet]) -> list[Detection]:
        """Kept in the work folder."""
        kept = self.kept_in / f"{title} {len(self.ids)}.json"
        if not kept.is_file():
            write_results(kept, self.detected(title, row, net()))
        return list(json.loads(kept.read_text()))

    @torch.inference_mode()
    def detected(self, title: str, row: Row, net: FastestDet) -> list[Detection]:
        categories, found = sorted(self.truth.cats), []
        for number in tqdm(self.ids, desc=title, disable=None):
            photograph = read(self.truth, self.data / "coco_public" / "images", number)
            said, scores = net(as_input(photograph, row.size))
            shape = photograph.height, photograph.width
            boxes = fastestdet.candidates(said, scores, shape, categories, row.box_scale)
            found.append(as_results(suppress(boxes), number))
        return flat(found)

    def evaluated(self, title: str) -> bootstrap.Evaluated:
        if title not in self.known:
            row = ROWS[title]
            found = self.detections(title, row, lambda: self.network(row))
            self.known[title] = bootstrap.evaluated(
                bootstrap.matches(self.truth, found, self.ids), APART
            )
        return self.known[title]

    def record(self, title: str) -> None:
        path = self.results / "recalibration" / f"{title}.json"
        if records.is_done(path, self.settings):
            print(f"{path} is there.")
            return
        row, own = ROWS[title], self.evaluated(title)
        intervals = bootstrap.intervals(own.figures)
        bases = [base for base in ("as is", title.removesuffix(", recalibrated")) if base != title]
        content = {
            "row": title,
            "settings": self.settings,
            "gmacs": counting.compute(self.network(Row(row.surgery, row.size)), row.size) / 1e9,
            "figures": intervals,
            "objects": dict(own.objects),
            "differences": {
                base: bootstrap.differences(own.figures, self.evaluated(base).figures)
                for base in bases
            },
            "hardware": records.hardware(),
        }
        records.write(path, content)
        print(f"{path}: AP {intervals['ap'][0]:.1f}", flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS), metavar="ROW")
    parser.add_argument("--images", type=positive, help="only the first so many (default: all)")
    parser.add_argument(
        "--seen",
        type=positive,
        default=400,
        help="images for the statistics (default: %(default)s)",
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for detections")
    parser.add_argument(
        "--results", type=Path, default=records.RESULTS, help="(default: docs/results)"
    )
    arguments = parser.parse_args(argv)
    experiment = Experiment(arguments)
    for title in arguments.rows:
        experiment.record(title)


if __name__ == "__main__":
    run(main)
