"""A COCO detector finds more small objects with one stride less, without any training.

    STRIDESURGERY_DATA=folder python -m examples.training_free              # all photographs, some ten minutes
    STRIDESURGERY_DATA=folder python -m examples.training_free --images 40  # a taste

The folder holds a COCO-trained SSD (`weights/`) and annotated photographs (`coco_public/`). Prints a table of the
detector as it is, with one stride less (by hand and by the library), with two paths, and on an enlarged image;
saves the table and a photograph with the objects that only the two paths find. Nothing is trained.
"""

import argparse
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from pycocotools.coco import COCO  # type: ignore[import-untyped]
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from examples.ssd.evaluate import Summary, evaluate, load_truth
from examples.study.stock import INPUT_SIZE, StockSSD, load_stock
from examples.study.stock_boxes import (
    Candidates,
    anchors,
    as_results,
    below,
    candidates,
    learned_centres,
    looking_centres,
    merged,
    six_layers,
    suppress,
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
from examples.study.stock_picture import choose, draw

SURGERY = "S1L0"
DOUBLED = 2 * INPUT_SIZE
FINER = 0.5  # a cell of the finer views is half as large, and so is what its predictor takes an object for

AS_IS, DUAL, PYRAMID, SAME_PIXELS = (
    "as is",
    "dual path",
    "image pyramid",
    "pyramid of the same pixels",
)

# The view whose boxes join the original's where they are small, and below which side (the square root of the area, in
# pixels of the photograph). The bounds are those of TRIED that have the best AP on every other photograph, which is
# what `--choose-bounds` prints; the other photographs have no say in it.
JOINED = {DUAL: "fine", PYRAMID: "doubled", SAME_PIXELS: "enlarged"}
BOUNDS: Mapping[str, float] = {DUAL: 192, PYRAMID: 192, SAME_PIXELS: 160}
TRIED = (48, 64, 96, 128, 160, 192, 224, 256)

Views = Mapping[str, Candidates]  # what each view of a photograph finds, before any suppression
Find = Callable[[Views], Candidates]
Results = list[dict[str, Any]]  # COCO's results format


# ---- the networks


class Detectors:
    """Every view of a photograph that the table compares, all with the weights of one detector."""

    def __init__(self, net: StockSSD) -> None:
        self.net, self.patched, self.operated = (
            net,
            with_stride_patched(net),
            with_stride_eliminated(net, SURGERY),
        )
        self.both = TwoPaths(net, SURGERY)
        self.anchors = self.anchors_by_view()

    def anchors_by_view(self) -> dict[str, Tensor]:
        """The anchors (A, 4) of each view; those of "fine" are placed in three ways, to compare them."""
        finer = partial(anchors, scale=FINER)
        trained, patched, fine = (
            six_layers(net, INPUT_SIZE) for net in (self.net, self.patched, self.operated)
        )
        doubled = finer(
            learned_centres(six_layers(self.net, DOUBLED), DOUBLED, trained, INPUT_SIZE)
        )
        return {
            "original": anchors(usual_centres(trained)),
            "patched": finer(usual_centres(patched)),
            "fine, usual": finer(usual_centres(fine)),
            "fine, looking": finer(looking_centres(fine, INPUT_SIZE)),
            "fine": finer(learned_centres(fine, INPUT_SIZE, trained, INPUT_SIZE)),
            "doubled": doubled,
            "enlarged": doubled,
        }

    def views(self, photograph: Image.Image) -> Views:
        """What each view finds, in pixels of the photograph."""
        seen = resized(photograph, INPUT_SIZE)
        small, large = self.both(as_input(seen))
        said = {
            "original": large,
            "patched": self.patched(as_input(seen)),
            "doubled": self.net(as_input(resized(photograph, DOUBLED))),
            "enlarged": self.net(
                as_input(enlarged(photograph, DOUBLED))
            ),  # knows no more than the dual path
            **dict.fromkeys(("fine", "fine, usual", "fine, looking"), small),
        }
        size = (photograph.height, photograph.width)
        return {name: candidates(said[name], places, size) for name, places in self.anchors.items()}

    def check(self, photograph: Image.Image) -> float:
        """Both paths must say what the two networks alone say; returns the largest difference of a score.

        Raises:
            AssertionError: they do not.
        """
        image = as_input(resized(photograph, INPUT_SIZE))
        differences = []
        for path, alone in zip(
            self.both(image), (self.operated(image), self.net(image)), strict=True
        ):
            torch.testing.assert_close(path.scores, alone.scores)
            torch.testing.assert_close(path.boxes, alone.boxes)
            differences.append(float((path.scores - alone.scores).abs().max()))
        return max(differences)


# ---- the rows


@dataclass(frozen=True)
class Row:
    """One way of detecting."""

    title: str
    find: Find
    run: Callable[[Detectors], object]  # the computation, for counting


def rows(bounds: Mapping[str, float]) -> dict[str, Row]:
    """The table's rows by name. bounds: see JOINED."""
    image, doubled = torch.zeros(1, 3, INPUT_SIZE, INPUT_SIZE), torch.zeros(1, 3, DOUBLED, DOUBLED)
    library = f"{SURGERY} by the library, anchors"

    def joined(name: str, title: str, run: Callable[[Detectors], object]) -> Row:
        return Row(
            f"{title} below {bounds[name]:g} px", partial(_joined, JOINED[name], bounds[name]), run
        )

    return {
        AS_IS: Row("as is", itemgetter("original"), lambda d: d.net(image)),
        "by hand": Row(
            f"{SURGERY} by hand, anchors in mid-cell",
            itemgetter("patched"),
            lambda d: d.patched(image),
        ),
        "mid-cell": Row(
            f"{library} in mid-cell", itemgetter("fine, usual"), lambda d: d.operated(image)
        ),
        "looking": Row(
            f"{library} where cells look", itemgetter("fine, looking"), lambda d: d.operated(image)
        ),
        "geometry": Row(
            f"{library} on the geometry, as learned",
            itemgetter("fine"),
            lambda d: d.operated(image),
        ),
        DUAL: joined(DUAL, "dual path, fine boxes", lambda d: d.both(image)),
        "doubled": Row(
            f"as is, photograph at {DOUBLED}x{DOUBLED}",
            itemgetter("doubled"),
            lambda d: d.net(doubled),
        ),
        PYRAMID: joined(
            PYRAMID,
            "image pyramid of the photograph, boxes",
            lambda d: (d.net(image), d.net(doubled)),
        ),
        SAME_PIXELS: joined(
            SAME_PIXELS,
            f"image pyramid of its {INPUT_SIZE}x{INPUT_SIZE}, boxes",
            lambda d: (d.net(image), d.net(doubled)),
        ),
    }


def _joined(view: str, bound: float, views: Views) -> Candidates:
    return merged(views["original"], below(views[view], bound))


def multiply_accumulates(row: Row, detectors: Detectors) -> int:
    """Of one photograph, pre- and post-processing left out."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        row.run(detectors)
    return counter.get_total_flops() // 2


def detect(
    detectors: Detectors,
    truth: COCO,
    folder: Path,
    ids: Sequence[int],
    finds: Mapping[str, Find],
) -> dict[str, Results]:
    """Every row's detections on the photographs."""
    results: dict[str, Results] = {name: [] for name in finds}
    for image_id in tqdm(ids, unit="photograph", disable=None):
        with torch.inference_mode():
            views = detectors.views(read(truth, folder, image_id))
            for name, find in finds.items():
                results[name] += as_results(suppress(find(views)), image_id)
    return results


def read(truth: COCO, folder: Path, image_id: int) -> Image.Image:
    with Image.open(folder / truth.imgs[image_id]["file_name"]) as photograph:
        return photograph.convert("RGB")


# ---- the table


@dataclass(frozen=True)
class Line:
    """One row, measured."""

    name: str
    title: str
    giga_macs: float  # 10^9 multiply-accumulates a photograph
    all: Summary
    held_out: Summary  # on the photographs that had no say in the bounds


def measure(
    detectors: Detectors,
    truth: COCO,
    bounds: Mapping[str, float],
    results: Mapping[str, Results],
    ids: Sequence[int],
) -> list[Line]:
    return [
        Line(
            name=name,
            title=row.title,
            giga_macs=multiply_accumulates(row, detectors) / 1e9,
            all=evaluate(truth, results[name], ids),
            held_out=evaluate(truth, results[name], held_out(ids)),
        )
        for name, row in rows(bounds).items()
    ]


def choosing(ids: Sequence[int]) -> Sequence[int]:
    """The photographs that the bounds were chosen on: every other one."""
    return ids[::2]


def held_out(ids: Sequence[int]) -> Sequence[int]:
    return ids[1::2] or ids


KEYS = ("ap", "ap_small", "ap_medium", "ap_large", "ar_small")


def as_table(lines: Sequence[Line]) -> str:
    width = max(len(line.title) for line in lines)
    heads = ("AP", "small", "medium", "large", "AR small", "held out", "GMAC")
    text = [" " * width + "".join(f"{head:>10}" for head in heads)]
    for line in lines:
        s = line.all
        values = (*(s.figures[k] for k in KEYS), line.held_out.figures["ap"])
        text.append(
            line.title.ljust(width)
            + "".join(f"{value:10.1f}" for value in values)
            + f"{line.giga_macs:10.2f}"
        )
    return "\n".join(text)


def about(truth: COCO, ids: Sequence[int]) -> str:
    """Where the photographs and their boxes come from."""
    recovered = sum(truth.imgs[i].get("gt", "official") != "official" for i in ids)
    return (
        f"AP on {len(ids)} photographs of COCO ({recovered} with boxes recovered from another list: areas estimated, "
        f"crowds mostly unmarked); held out: AP on the {len(held_out(ids))} that had no say in the bounds."
    )


# ---- choosing the bounds


def print_choice(detectors: Detectors, truth: COCO, folder: Path, ids: Sequence[int]) -> None:
    """AP (small / medium / large) by bound, on the photographs for choosing only."""
    ids = choosing(ids)
    tried = {f"{name}, {bound} px": (name, bound) for name in JOINED for bound in TRIED}
    finds = {key: partial(_joined, JOINED[name], bound) for key, (name, bound) in tried.items()}
    results = detect(detectors, truth, folder, ids, finds)
    summaries = {key: evaluate(truth, found, ids) for key, found in results.items()}
    print(f"AP (small / medium / large) on {len(ids)} photographs by bound:")
    for key, s in summaries.items():
        small, medium, large = (s.figures[f"ap_{size}"] for size in ("small", "medium", "large"))
        print(f"{key:<36}{s.figures['ap']:6.2f} ({small:.1f} / {medium:.1f} / {large:.1f})")
    for name in JOINED:
        print(
            "best:",
            max(
                (key for key in tried if tried[key][0] == name),
                key=lambda key: summaries[key].figures["ap"],
            ),
        )


# ---- the main job


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--images", type=positive, help="only the first so many photographs (default: all)"
    )
    parser.add_argument(
        "--size-bound", type=pixels, metavar="PX", help="keep a finer view's boxes below this side"
    )
    parser.add_argument(
        "--choose-bounds",
        action="store_true",
        help="show AP by bound on every other photograph, and end",
    )
    parser.add_argument(
        "--output", type=Path, default=Path("training_free"), help="a folder (default: %(default)s)"
    )
    return parser.parse_args(argv)


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)


def pixels(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of pixels")
    return value


def data_folder() -> Path:
    named = os.environ.get("STRIDESURGERY_DATA")
    if not named or not Path(named).is_dir():
        raise SystemExit(
            "Set STRIDESURGERY_DATA to the folder that holds weights/ and coco_public/."
        )
    return Path(named)


def save(output: Path, lines: Sequence[Line], bounds: Mapping[str, float], note: str) -> None:
    rows = [
        {**asdict(line), "all": dict(line.all.figures), "held_out": dict(line.held_out.figures)}
        for line in lines
    ]
    content = {"note": note, "bounds": dict(bounds), "rows": rows}
    (output / "table.json").write_text(
        json.dumps(_without_nan(content), indent=2, allow_nan=False) + "\n"
    )


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_without_nan(v) for v in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def main(argv: Sequence[str] | None = None) -> None:
    arguments, data = parse_arguments(argv), data_folder()
    folder = data / "coco_public" / "images"
    truth = load_truth(data / "coco_public" / "instances.json")
    ids = sorted(truth.imgs)[: arguments.images]
    detectors = Detectors(load_stock(data / "weights"))
    if arguments.choose_bounds:
        print_choice(detectors, truth, folder, ids)
        return

    bounds = BOUNDS if arguments.size_bound is None else dict.fromkeys(BOUNDS, arguments.size_bound)
    difference = detectors.check(read(truth, folder, ids[0]))
    print(
        f"Both paths of one graph score as the two networks alone do; largest difference {difference:.1g}."
    )
    results = detect(
        detectors, truth, folder, ids, {name: row.find for name, row in rows(bounds).items()}
    )
    lines, note = measure(detectors, truth, bounds, results, ids), about(truth, ids)
    print(f"\n{as_table(lines)}\n\n{note}")

    arguments.output.mkdir(parents=True, exist_ok=True)
    save(arguments.output, lines, bounds, note)
    comparison = choose(truth, results[AS_IS], results[DUAL])
    if comparison is not None:
        picture = arguments.output / "only_dual_path.png"
        draw(comparison, truth, folder, ("as is", "dual path, not trained further"), picture)
        print(f"\nThe photograph with most objects that only the dual path finds: {picture}")


if __name__ == "__main__":
    main()
