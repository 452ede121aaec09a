"""The stock COCO SSD with strides eliminated and nothing trained, beside its equal-cost rivals, on `coco_public`.

    python -m examples.experiments.training_free --work runs             # about an hour on two CPU cores
    python -m examples.experiments.training_free --work runs --images 40 --results elsewhere

What each view of the photographs finds is kept in --work, and each row's result in docs/results: a run that was
stopped goes on with the same command.

Where boxes of a finer view join those of the original below a bound, the bound is chosen on every other photograph and
used on the rest, and the other way round: no photograph has a say in its own bound.
"""

import argparse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools.coco import COCO  # type: ignore[import-untyped]
from tqdm import tqdm

from examples.experiments import bootstrap, records
from examples.experiments.views import (
    AS_IS,
    LARGE,
    SURGERIES,
    View,
    largest_difference,
    rows,
    seen,
    views,
)
from examples.ssd.errors import RequestError
from examples.ssd.evaluation import Detection, load_truth
from examples.ssd.files import write_atomically
from examples.ssd.programs import positive, run
from examples.ssd.stock import load_stock
from examples.ssd.stock_boxes import Candidates, as_results, below, merged, suppress
from examples.training_free import TRIED, data_folder, read

APART = ("person", "car")  # the paper's Figure 1
BOUNDS = (0, *TRIED)  # 0: none of the finer view's boxes


# ---- what the views find


def all_seen(
    view: View, truth: COCO, folder: Path, ids: Sequence[int], kept: Path
) -> list[Candidates]:
    """What a view finds on every photograph; read from `kept` if it was looked at before."""
    if not kept.is_file():
        looked = tqdm(ids, desc=kept.stem, disable=None)
        found = [seen(view, read(truth, folder, i)) for i in looked]
        with write_atomically(kept) as part:
            torch.save([(c.boxes, c.scores, c.categories) for c in found], part)
    return [Candidates(*fields) for fields in torch.load(kept, weights_only=True)]


def detections(found: Iterable[Candidates], ids: Sequence[int]) -> list[list[Detection]]:
    """Of each photograph, in COCO's format."""
    return [list(as_results(suppress(c), i)) for c, i in zip(found, ids, strict=True)]


def joined(
    original: Sequence[Candidates], finer: Sequence[Candidates], bounds: Sequence[float]
) -> Iterator[Candidates]:
    """Of each photograph the original's boxes, and the finer view's below the photograph's bound."""
    return (merged(a, below(b, bound)) for a, b, bound in zip(original, finer, bounds, strict=True))


def flat(parts: Iterable[Sequence[Detection]]) -> list[Detection]:
    return [d for part in parts for d in part]


# ---- the size bound


def sweep(
    original: Sequence[Candidates], finer: Sequence[Candidates], truth: COCO, ids: Sequence[int]
) -> dict[float, list[float]]:
    """AP by the bound on the finer view's boxes: on the even photographs, on the odd ones, on all."""
    halves = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    weights = halves[:, np.arange(len(ids)) % 2]
    result = {}
    for bound in BOUNDS:
        found = flat(detections(joined(original, finer, [bound] * len(ids)), ids))
        values = bootstrap.figures(bootstrap.matches(truth, found, ids), weights)["ap"]
        result[float(bound)] = [float(v) for v in values]
    return result


def crossed(swept: Mapping[float, Sequence[float]], count: int) -> list[float]:
    """The bound of each photograph: the one that is best on the other half."""
    even, odd = best(swept)
    return [even if number % 2 else odd for number in range(count)]


def best(swept: Mapping[float, Sequence[float]]) -> tuple[float, float]:
    """The bounds that the even and the odd photographs choose."""
    even, odd = (max(swept, key=lambda bound, half=half: swept[bound][half]) for half in (0, 1))  # type: ignore[misc]
    return even, odd


# ---- the experiment


@dataclass(frozen=True)
class Measured:
    """One row's detections, and how the bound was found if it has one."""

    detections: list[Detection]
    facts: Mapping[str, Any]


class Experiment:
    """Photographs, networks, and what was found already."""

    def __init__(self, data: Path, work: Path, results: Path, images: int | None) -> None:
        self.folder, self.work, self.results = data / "coco_public" / "images", work, results
        self.truth = load_truth(data / "coco_public" / "instances.json")
        self.ids = sorted(self.truth.imgs)[:images]
        self.net = load_stock(data / "weights")
        self.views = views(self.net)
        self.rows = rows(self.net, self.views)

    @cached_property
    def kept_in(self) -> Path:
        """The folder for what was found, once it is known to be of the same photographs and bounds."""
        folder = self.work / "training_free"
        records.claim(folder, {**self.settings, "bounds": BOUNDS})
        return folder

    @property
    def settings(self) -> dict[str, Any]:
        recovered = sum(self.truth.imgs[i].get("gt", "official") != "official" for i in self.ids)
        trained_on = sum(self.truth.imgs[i].get("split") == "train2017" for i in self.ids)
        return {
            "images": len(self.ids),
            "with recovered boxes": recovered,
            "of train2017": trained_on,
            "resamples": bootstrap.RESAMPLES,
        }

    def candidates(self, name: str) -> list[Candidates]:
        return all_seen(
            self.views[name], self.truth, self.folder, self.ids, self.kept_in / f"{name}.pt"
        )

    def measured(self, title: str) -> Measured:
        row = self.rows[title]
        if not row.joined:
            return Measured(flat(detections(self.candidates(row.view), self.ids)), {})
        original, finer = self.candidates(AS_IS), self.candidates(row.view)
        swept = sweep(original, finer, self.truth, self.ids)
        found = flat(detections(joined(original, finer, crossed(swept, len(self.ids))), self.ids))
        facts: dict[str, Any] = {"bounds": best(swept), "sweep": swept}
        if row.view in SURGERIES:
            photographs = (read(self.truth, self.folder, i) for i in self.ids[:3])
            alone = self.views[row.view].net
            facts["difference"] = largest_difference(self.net, alone, row.view, photographs)
        return Measured(found, facts)

    def figures(self, found: Sequence[Detection]) -> bootstrap.Figures:
        matches = bootstrap.matches(self.truth, found, self.ids)
        return bootstrap.figures(matches, bootstrap.resamples(matches.images), APART)

    def kept(self, title: str) -> dict[str, Any]:
        """A row's detections, its figures on every resample and its facts; from the work folder if they are there."""
        path = self.kept_in / f"{title} figures.pt"
        if not path.is_file():
            measured = self.measured(title)
            figures = {
                name: torch.from_numpy(v) for name, v in self.figures(measured.detections).items()
            }
            with write_atomically(path) as part:
                torch.save(
                    {
                        "figures": figures,
                        "facts": dict(measured.facts),
                        "found": measured.detections,
                    },
                    part,
                )
        return dict(torch.load(path, weights_only=True))

    def found(self, title: str) -> list[Detection]:
        return list(self.kept(title)["found"])

    def resampled(self, title: str) -> bootstrap.Figures:
        return {name: v.numpy() for name, v in self.kept(title)["figures"].items()}

    def record(self, title: str) -> None:
        """Measure a row, unless its record is there."""
        path = self.results / "training_free" / f"{title}.json"
        if records.is_done(path, self.settings):
            print(f"{path} is there.")
            return
        figures, facts = self.resampled(title), self.kept(title)["facts"]
        against = {base: self.resampled(base) for base in self.rivals(title)}
        intervals = bootstrap.intervals(figures)
        matches = bootstrap.matches(self.truth, self.found(title), self.ids)
        split = self.by_split(matches)
        content = {
            "row": title,
            "settings": self.settings,
            "gmacs": self.rows[title].gmacs,
            "figures": intervals,
            "objects": bootstrap.objects(matches, APART),
            "differences": {
                base: bootstrap.differences(figures, other) for base, other in against.items()
            },
            "splits": bootstrap.intervals(split),
            "splits against as is": bootstrap.differences(split, self.base_by_split),
            **facts,
            "hardware": records.hardware(),
        }
        records.write(path, content)
        print(f"{path}: AP {intervals['ap'][0]:.1f}", flush=True)

    @cached_property
    def base_by_split(self) -> dict[str, bootstrap.Floats]:
        return self.by_split(bootstrap.matches(self.truth, self.found(AS_IS), self.ids))

    def by_split(self, matches: bootstrap.Matches) -> dict[str, bootstrap.Floats]:
        """AP on every resample of the photographs of each of COCO's sets."""
        splits = np.array([self.truth.imgs[i].get("split", "") for i in self.ids])
        drawn = bootstrap.resamples(matches.images)
        return {
            s: bootstrap.figures(matches, drawn * (splits == s))["ap"]
            for s in sorted(set(splits.tolist()))
        }

    def rivals(self, title: str) -> list[str]:
        """What a row is compared with on the same photographs: the detector as it is, and what it might be instead."""
        pyramids = [other for other in self.rows if other.startswith("pyramid")]
        if title == AS_IS:
            return []
        if title in SURGERIES:
            return [AS_IS, f"{title} by hand", LARGE]
        if title in pyramids:
            return [AS_IS, LARGE, *pyramids[: pyramids.index(title)]]
        if title.endswith("dual path"):
            return [AS_IS, self.rows[title].view, LARGE, *pyramids]
        return [AS_IS]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", nargs="+", help="some only")
    parser.add_argument("--images", type=positive, help="only the first so many (default: all)")
    parser.add_argument("--work", type=Path, required=True, help="folder for what the views find")
    parser.add_argument(
        "--results", type=Path, default=records.RESULTS, help="(default: docs/results)"
    )
    arguments = parser.parse_args(argv)
    experiment = Experiment(data_folder(), arguments.work, arguments.results, arguments.images)
    unknown = [title for title in arguments.rows or () if title not in experiment.rows]
    if unknown:
        raise RequestError(
            f"there is no row {unknown[0]!r}. There are: {', '.join(experiment.rows)}."
        )
    for title in arguments.rows or experiment.rows:
        experiment.record(title)


if __name__ == "__main__":
    run(main)
