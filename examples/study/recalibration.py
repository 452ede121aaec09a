"""A COCO detector with living batch norms and a stride less, with and without `stridesurgery.recalibrate`.

    python -m examples.study.recalibration

The statistics are estimated on `coco_train`, without its boxes; evaluated is on `coco_public`. The network as it is,
recalibrated on the same images, is the control: what other images do to the statistics.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from pycocotools.coco import COCO  # type: ignore[import-untyped]
from torch import Tensor
from tqdm import tqdm

import stridesurgery as ss
from examples.ssd import counting
from examples.ssd.evaluate import load_truth
from examples.ssd.programs import positive, read_image, run
from examples.study import bootstrap, fastestdet, records
from examples.study.bootstrap import Evaluated
from examples.study.fastestdet import INPUT_SIZE, FastestDet
from examples.study.stock_boxes import as_results, suppress
from examples.study.training_free import APART, data_folder

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


def batches(paths: Sequence[Path], size: int) -> Iterator[Tensor]:
    for start in range(0, len(paths), BATCH):
        part = [as_input(read_image(path), size) for path in paths[start : start + BATCH]]
        yield torch.cat(part)


def network(stock: FastestDet, row: Row, unlabelled: Sequence[Path]) -> FastestDet:
    net = deepcopy(stock)
    if row.surgery is not None:
        net.backbone = ss.eliminate(net.backbone, row.surgery, input_size=row.size)
    if row.recalibrated:
        ss.recalibrate(net, batches(unlabelled, row.size), limit=None)
    return net.eval()


@torch.inference_mode()
def evaluated(
    net: FastestDet, row: Row, folder: Path, truth: COCO, ids: Sequence[int]
) -> Evaluated:
    found = []
    for number in tqdm(ids, disable=None):
        photograph = read_image(folder / truth.imgs[number]["file_name"])
        said, scores = net(as_input(photograph, row.size))
        shape, kinds = (photograph.height, photograph.width), sorted(truth.cats)
        boxes = fastestdet.candidates(said, scores, shape, kinds, row.box_scale)
        found += as_results(suppress(boxes), number)
    return bootstrap.evaluated(bootstrap.matches(truth, found, ids), APART)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=positive, help="only the first so many (default: all)")
    parser.add_argument("--seen", type=positive, default=400, help="for the statistics (400)")
    parser.add_argument("--results", type=Path, default=records.RESULTS, help="(docs/results)")
    a = parser.parse_args(argv)
    data = data_folder()
    truth, stock = (
        load_truth(data / "coco_public/instances.json"),
        fastestdet.load(data / "weights"),
    )
    ids, files = sorted(truth.imgs)[: a.images], sorted((data / "coco_train/images").iterdir())
    unlabelled = [files[i] for i in np.random.default_rng(0).permutation(len(files))[: a.seen]]
    settings = {"images": len(ids), "seen for statistics": a.seen, "batch": BATCH}
    paths = {title: a.results / "recalibration" / f"{title}.json" for title in ROWS}
    if all(records.is_done(path, settings) for path in paths.values()):
        return
    known: dict[str, bootstrap.Figures] = {}
    for title, path in paths.items():
        row = ROWS[title]
        net = network(stock, row, unlabelled)
        own = evaluated(net, row, data / "coco_public/images", truth, ids)
        against = {k: bootstrap.differences(own.figures, v) for k, v in known.items()}
        about = {"row": title, "settings": settings, "hardware": records.hardware()}
        gmacs = counting.compute(net, row.size) / 1e9
        found = {"figures": bootstrap.intervals(own.figures), "objects": dict(own.objects)}
        records.write(path, {**about, "gmacs": gmacs, **found, "differences": against})
        known[title] = own.figures


if __name__ == "__main__":
    run(main)
