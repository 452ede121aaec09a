"""COCO detectors that are not trained further, on `coco_public`: a record for each row.

What each view finds is kept in --work: a run that was stopped goes on with the same command. Where
boxes of a finer view join those of the original below a bound, the bound is chosen on every other
photograph and used on the rest, and the other way round: none has a say in its own bound.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.ops import box_convert
from tqdm import tqdm

from examples.ssd.evaluate import Detection, load_truth
from examples.ssd.programs import DetectionError, positive, read_image, write_atomically
from examples.study import bootstrap, records
from examples.study.stock import data_folder

BOUNDS = (0, 48, 64, 96, 128, 160, 192, 224, 256)  # pixels; 0: none of the finer view's boxes
AS_IS = "as is"
# Of one photograph, as torchvision's detectors return it; scalars are facts, to be averaged.
Found = dict[str, Tensor]
View = Callable[[Image.Image], Found]


class Row(NamedTuple):
    """A line of a table."""

    view: str
    gmacs: float | None = None  # None: each photograph has its own
    joins: bool = False  # its boxes join those of AS_IS below a bound


Rows = Mapping[str, Row]  # by title
Views = Mapping[str, View]  # by name
# Joins the boxes of two views of photographs, the second's below a bound, and suppresses.
Merge = Callable[[list[Found], list[Found], float], list[Found]]


class Experiment:
    """Photographs, views of them, and what was found already."""

    def __init__(self, name: str, rows: Rows, views: Views, merge: Merge, arguments: Any) -> None:
        """Read what there is to find. name: of the folder of records."""
        data, self.results = data_folder() / "coco_public", arguments.results / name
        self.folder, self.work = data / "images", arguments.work / name
        self.rows, self.views, self.merge = rows, views, merge
        self.truth = load_truth(data / "instances.json")
        self.ids = sorted(self.truth.imgs)[: arguments.images]
        self.wanted = arguments.rows or list(rows)
        if not set(self.wanted) <= set(rows):
            raise DetectionError(f"the rows are {', '.join(map(repr, rows))}.")
        entries = [self.truth.imgs[i] for i in self.ids]
        self.settings = {
            "images": len(self.ids),
            "with recovered boxes": sum(e.get("gt", "official") != "official" for e in entries),
            "of train2017": sum(e.get("split") == "train2017" for e in entries),
            "resamples": bootstrap.RESAMPLES,
        }

    @torch.inference_mode()
    def seen(self, name: str) -> list[Found]:
        """Return what a view finds on every photograph; kept in the work folder."""
        kept = self.work / f"{name}, {len(self.ids)}.pt"
        if not kept.is_file():
            found = []
            for number in tqdm(self.ids, desc=name, disable=None):
                photograph = read_image(self.folder / self.truth.imgs[number]["file_name"])
                found.append(self.views[name](photograph))
            with write_atomically(kept) as part:
                torch.save(found, part)
        return list(torch.load(kept, weights_only=True))

    def matched(self, row: Row, bounds: Sequence[float]) -> bootstrap.Matches:
        """Return the matches of a row. bounds: of each photograph, if the row is joined."""
        finer, found = self.seen(row.view), list[Detection]()
        original = self.seen(AS_IS) if row.joins else finer
        for number, *pair, bound in zip(self.ids, original, finer, bounds, strict=True):
            large, small = ({k: v for k, v in one.items() if v.ndim} for one in pair)
            [one] = self.merge([large], [small], bound)
            found += as_results(one, number)
        return bootstrap.matches(self.truth, found, self.ids)

    def sweep(self, row: Row) -> dict[float, list[float]]:
        """Return AP on the even photographs, the odd ones and all, by bound."""
        count, swept = len(self.ids), {}
        halves = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])[:, np.arange(count) % 2]
        for bound in BOUNDS:
            matched = self.matched(row, [bound] * count)
            swept[float(bound)] = bootstrap.figures(matched, halves)["ap"].tolist()
        return swept

    def record(
        self, title: str, rivals: Mapping[str, bootstrap.Figures]
    ) -> tuple[bootstrap.Figures, dict[str, Any]]:
        """Return the figures of a row on every resample, and its record."""
        row = self.rows[title]
        swept = self.sweep(row) if row.joins else {0.0: [0.0] * 3}
        matched = self.matched(row, crossed(best(swept), len(self.ids)))
        own, told = bootstrap.evaluated(matched, rivals)
        seen = self.seen(row.view)
        facts = [key for key, value in seen[0].items() if not value.ndim]
        means = {key: float(np.mean([one[key] for one in seen])) for key in facts}
        about = {"row": title, "settings": self.settings, "gmacs": row.gmacs}
        bounds = {"bounds": best(swept), "sweep": swept} if row.joins else {}
        return own, {**about, **means, **told, **bounds, "hardware": records.hardware()}

    def run(self) -> None:
        """Write the records that are not there; a difference is to an earlier row."""
        paths = {title: self.results / f"{title}.json" for title in self.wanted}
        new = [t for t, path in paths.items() if not records.is_done(path, self.settings)]
        known: dict[str, bootstrap.Figures] = {}
        for title in self.wanted if new else ():
            known[title], record = self.record(title, known)
            if title in new:
                records.write(paths[title], record)
            print(f"{title}: AP {record['figures']['ap'][0]:.1f}", flush=True)


def best(swept: Mapping[float, Sequence[float]]) -> list[float]:
    """Return the bounds that the even and the odd photographs choose; of equals, the smallest."""
    return [max(swept, key=lambda bound, half=half: swept[bound][half]) for half in (0, 1)]  # type: ignore[misc]


def crossed(bounds: Sequence[float], count: int) -> list[float]:
    """Return the bound of each photograph: the one that is best on the other half."""
    even, odd = bounds
    return [even if number % 2 else odd for number in range(count)]


def as_results(found: Found, image_id: int) -> list[Detection]:
    """Return detections in COCO's results format."""
    boxes = box_convert(found["boxes"], "xyxy", "xywh").tolist()
    triples = zip(boxes, found["scores"].tolist(), found["labels"].tolist(), strict=True)
    own = {"image_id": image_id}
    return [{**own, "bbox": b, "score": score, "category_id": k} for b, score, k in triples]


def arguments(
    doc: str | None, argv: Sequence[str] | None, sizes: Sequence[int] = ()
) -> argparse.Namespace:
    """Return what every experiment is asked for. sizes: of the input, where there is a choice."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    add = parser.add_argument
    add("--images", type=positive, help="only the first so many (default: all)")
    add("--rows", nargs="+", help="only these; a difference is to an earlier one")
    add("--work", type=Path, required=True, help="folder for what the views find")
    add("--results", type=Path, default=records.RESULTS, help="(docs/results)")
    if sizes:
        add("--size", type=int, default=sizes[0], choices=sizes, help="pixels (%(default)s)")
    return parser.parse_args(argv)
