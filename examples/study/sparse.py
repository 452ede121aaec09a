"""The stock COCO SSD on a sparse path: the finer network only in tiles where the detector sees something small.

    python -m examples.study.sparse --work runs                       # 300 pixels, every other photograph
    python -m examples.study.sparse --work runs --size 600 --every 4

Nothing is trained. A tile is wanted if a box of the coarse path has its middle there, is smaller than a third of the
image and scores more than a threshold. Of the fine path's first two maps the boxes in wanted tiles and below a bound on
their size join those of the coarse path. The bound is chosen on every other of the photographs and used on the rest,
and the other way round. Compute is counted: it is a line in the number of tiles that run.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

import stridesurgery as ss
from examples.ssd.evaluate import load_truth
from examples.ssd.programs import positive, run, write_atomically
from examples.study import bootstrap, records
from examples.study.stock import HIGH_TAP, INPUT_SIZE, LOW_TAP, Predictions, StockSSD, load_stock
from examples.study.stock_boxes import (
    Candidates,
    anchors,
    as_results,
    below,
    candidates,
    decode,
    learned_centres,
    merged,
    six_layers,
    suppress,
    usual_centres,
)
from examples.study.stock_networks import TwoPaths, as_input, resized, with_stride_eliminated
from examples.training_free import FINER, data_folder, read

TAPS, FINE_STEPS = (LOW_TAP, HIGH_TAP), (8, 16)  # steps of S1L0's maps, pixels
SMALL = 1 / 3  # of the image's side: a box that asks for a tile is smaller
GRID = 96  # cells a side on which boxes ask
LAYOUTS: Mapping[
    int, Sequence[tuple[int, int, float]]
] = {  # by input size: tile, margin, threshold
    300: (
        *((32, 0, t) for t in (0.2, 0.3, 0.4)),
        *((32, 32, t) for t in (0.2, 0.25, 0.3, 0.4)),
        *((48, 48, t) for t in (0.3, 0.4)),
        *((64, 0, t) for t in (0.2, 0.3)),
    ),
    600: ((64, 0, 0.2), (64, 0, 0.3)),
}
BOUNDS = (128, 160, 192, 224)  # pixels of the photograph
MOST = 4000  # boxes of a view that are kept, surest first
TIMED = 16  # photographs


class Sparse(nn.Module):
    """The detector on a sparse path."""

    def __init__(self, net: StockSSD, size: int, tile: int, margin: int, threshold: float) -> None:
        super().__init__()
        self.net, self.tile, self.margin, self.threshold = net, tile, margin, threshold
        self.coarse_anchors, self.fine_anchors = anchors_of(net, size)
        both = ss.dual_path(net.backbone, "S1L0", taps=TAPS, share=False, input_size=size)
        self.backbone = ss.sparse_path(both, self.ask, tile=tile, margin=margin)
        self.said: Predictions  # by the coarse path, of the last image
        self.wanted: Tensor  # tiles of the last image, (rows, columns)

    def forward(self, image: Tensor) -> tuple[Predictions, Tensor]:
        """Return what the fine path says of one image in the wanted tiles, and the anchors, (A, 4)."""
        maps = self.backbone(image)
        self.wanted = maps["tiles"][0]
        boxes, scores, places, start = [], [], [], 0
        for tap, step, head in zip(TAPS, FINE_STEPS, self.net.heads, strict=False):
            found, cells = maps[f"small.{tap}"][0].permute(1, 2, 0), self.tile // step
            inside = self.wanted.repeat_interleave(cells, 0).repeat_interleave(cells, 1)
            inside = inside[: found.shape[0], : found.shape[1]]
            chosen = found[inside][:, :, None, None]  # (cells, C, 1, 1)
            offsets, logits = (head.get_submodule(part)(chosen) for part in ("box", "cls"))
            kinds = offsets.shape[1] // 4
            boxes.append(offsets.reshape(-1, 4))
            scores.append(logits.reshape(len(boxes[-1]), logits.shape[1] // kinds).sigmoid()[:, 1:])
            level = self.fine_anchors[start : start + inside.numel() * kinds]
            places.append(level.view(inside.numel(), kinds, 4)[inside.flatten()].flatten(0, 1))
            start += len(level)
        return Predictions(torch.cat(boxes)[None], torch.cat(scores)[None]), torch.cat(places)

    def ask(self, maps: Mapping[str, Tensor]) -> Tensor:
        """Return where the coarse path sees something small, (1, GRID, GRID)."""
        self.said = said = self.net.predict(*(maps[f"large.{tap}"] for tap in TAPS))
        corners = decode(said.boxes[0], self.coarse_anchors)
        small = (corners[:, 2:] - corners[:, :2]).prod(1) < SMALL**2
        sure = said.scores[0].amax(1) > self.threshold
        middles = (corners[:, :2] + corners[:, 2:])[sure & small] / 2
        row, column = (middles * GRID).long().clamp(max=GRID - 1).T
        asked = torch.zeros(1, GRID, GRID, dtype=torch.bool)
        asked[0, row, column] = True
        return asked

    def ran(self) -> int:
        """Return how many tiles of the last image have run."""
        ring = -(-self.margin // self.tile)
        around = max_pool2d(self.wanted[None].float(), 2 * ring + 1, 1, ring)
        return int(around.sum())


def anchors_of(net: StockSSD, size: int) -> tuple[Tensor, Tensor]:
    """Return the anchors (A, 4) of the coarse and of the fine path at an input size."""
    trained, scale = six_layers(net, INPUT_SIZE), INPUT_SIZE / size
    coarse = learned_centres(six_layers(net, size), size, trained, INPUT_SIZE)
    fine = six_layers(with_stride_eliminated(net), size)
    return (
        anchors(usual_centres(trained) if size == INPUT_SIZE else coarse, scale),
        anchors(learned_centres(fine, size, trained, INPUT_SIZE), FINER * scale),
    )


def macs(net: nn.Module, image: Tensor) -> float:
    """Return the multiply-accumulates of one image, 10^9."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(image)
    return counter.get_total_flops() / 2e9


def line(net: StockSSD, size: int, tile: int) -> tuple[float, float, float]:
    """Return the 10^9 multiply-accumulates without a tile, of each tile that runs, and of its heads."""
    image, (none, some) = (
        torch.zeros(1, 3, size, size),
        (Sparse(net, size, tile, 0, threshold) for threshold in (1.0, -1.0)),
    )
    least, most = macs(none, image), macs(some, image)
    tiles = some.ran()
    each = (macs(some.backbone, image) - macs(none.backbone, image)) / tiles
    return least, each, (most - least) / tiles - each


# ---- what is found


def look(net: StockSSD, size: int, every: int, kept: Path) -> dict[str, Any]:
    """Return what each path finds on every so-many-th photograph; from `kept` if it is there."""
    if kept.is_file():
        return dict(torch.load(kept, weights_only=True))
    data = data_folder() / "coco_public"
    truth = load_truth(data / "instances.json")
    ids = sorted(truth.imgs)[::every]
    nets = {title(*layout): Sparse(net, size, *layout) for layout in LAYOUTS[size]}
    whole, (coarse, fine) = TwoPaths(net, "S1L0"), anchors_of(net, size)
    found: dict[str, list[Any]] = {name: [] for name in ("coarse", "fine", *nets)}
    tiles: dict[str, list[Any]] = {name: [] for name in nets}
    for number in tqdm(ids, disable=None):
        photograph = read(truth, data / "images", number)
        pixels, image = (photograph.height, photograph.width), as_input(resized(photograph, size))
        with torch.inference_mode():
            small, large = whole(image)
            found["coarse"].append(_plain(candidates(large, coarse, pixels)))
            found["fine"].append(_plain(candidates(small, fine, pixels)))
            for name, sparse in nets.items():
                said, places = sparse(image)
                found[name].append(_plain(candidates(said, places, pixels)))
                wanted = sparse.wanted
                tiles[name].append((int(wanted.sum()), sparse.ran(), wanted.numel()))
    result = {"ids": ids, "res": found, "info": tiles}
    with write_atomically(kept) as part:
        torch.save(result, part)
    return result


def title(tile: int, margin: int, threshold: float) -> str:
    return f"{tile} {margin} {threshold}"


def _plain(found: Candidates) -> tuple[Tensor, Tensor, Tensor]:
    return found.boxes, found.scores, found.categories


def _best(found: Sequence[Any]) -> list[Candidates]:
    views = [Candidates(*fields) for fields in found]
    return [view[view.scores.topk(min(MOST, len(view.scores))).indices] for view in views]


# ---- figures


def crossed(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return AP of every row where each half of the photographs uses the bound that the other has chosen."""
    truth, ids = load_truth(data_folder() / "coco_public" / "instances.json"), found["ids"]
    halves = np.array([[1.0, 0.0], [0.0, 1.0]])[:, np.arange(len(ids)) % 2]
    original = _best(found["res"]["coarse"])

    def figures(views: Sequence[Candidates]) -> bootstrap.Figures:
        results = [r for v, i in zip(views, ids, strict=True) for r in as_results(suppress(v), i)]
        return bootstrap.figures(bootstrap.matches(truth, results, ids), halves)

    plain = figures(original)
    rows: dict[str, dict[str, Any]] = {
        "as is": {name: float(np.mean(plain[name])) for name in NAMES}
    }
    for name in found["res"]:
        if name == "coarse":
            continue
        fine = _best(found["res"][name])
        by_bound = {
            b: figures([merged(o, below(f, b)) for o, f in zip(original, fine, strict=True)])
            for b in BOUNDS
        }
        chosen = [max(BOUNDS, key=lambda b, half=half: by_bound[b]["ap"][half]) for half in (1, 0)]  # type: ignore[misc]
        of_half = {n: [float(by_bound[b][n][half]) for half, b in enumerate(chosen)] for n in NAMES}
        rows[name] = {n: float(np.mean(values)) for n, values in of_half.items()}
        rows[name] |= {"bounds": chosen, "of each half": of_half}
        print(name, rows[name], flush=True)
    return rows


NAMES = ("ap", "ap_small", "ap_medium", "ap_large")


def seconds(net: StockSSD, size: int, layouts: Sequence[tuple[int, int, float]]) -> dict[str, Any]:
    """Return the processor seconds of a photograph: means of TIMED without the extremes, measured in turn."""
    data = data_folder() / "coco_public"
    truth = load_truth(data / "instances.json")
    ids = sorted(truth.imgs)[:: len(truth.imgs) // TIMED][:TIMED]
    nets: dict[str, nn.Module] = {"as is": net, "fine": TwoPaths(net, "S1L0")}
    nets |= {title(*layout): Sparse(net, size, *layout) for layout in layouts}
    spent: dict[str, list[float]] = {name: [] for name in nets}
    for number in ids:
        image = as_input(resized(read(truth, data / "images", number), size))
        with torch.inference_mode():
            for name, other in nets.items():
                start = time.process_time()
                other(image)
                spent[name].append(time.process_time() - start)
    return {name: float(np.mean(sorted(each)[1:-1])) for name, each in spent.items()}


def table(record: Mapping[str, Any]) -> str:
    """Return a record as the table of docs/sparse.md."""
    named = {"as is": "as is", "fine": "dual path, whole"}
    lines = [
        "| | AP | small | medium | large | tiles that run | compute | processor time |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    spent = record["processor seconds"]
    for name, row in record["rows"].items():
        shown = named.get(name) or "tile {}, margin {}, threshold {}".format(*name.split())
        aps = " | ".join(f"{row[n]:.1f}" for n in NAMES)
        ran = f"{row['ran']:.2f}" if "ran" in row else "1.00" if name == "fine" else "0"
        times = f"{row['compute']:.2f} | {spent[name] / spent['as is']:.2f}"
        lines.append(f"| {shown} | {aps} | {ran} | {times} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", type=int, default=INPUT_SIZE, choices=LAYOUTS, help="pixels")
    parser.add_argument("--every", type=positive, default=2, help="of so many photographs one")
    parser.add_argument("--work", type=Path, required=True, help="folder for what is found")
    arguments = parser.parse_args(argv)
    net, size = load_stock(data_folder() / "weights"), arguments.size
    found = look(net, size, arguments.every, arguments.work / f"sparse {size}.pt")
    rows, image = crossed(found), torch.zeros(1, 3, size, size)
    base = macs(net, image)
    rows["as is"]["compute"], rows["fine"]["compute"] = (
        1.0,
        macs(TwoPaths(net, "S1L0"), image) / base,
    )
    lines = {tile: line(net, size, tile) for tile in {layout[0] for layout in LAYOUTS[size]}}
    for layout in LAYOUTS[size]:
        tiles = np.array(found["info"][title(*layout)], dtype=float)
        none, each, heads = lines[layout[0]]
        wanted, ran, count = tiles.mean(0)
        rows[title(*layout)] |= {
            "compute": (none + each * ran + heads * wanted) / base,
            "wanted": wanted / count,
            "ran": ran / count,
        }
    record = {
        "settings": {"size": size, "photographs": len(found["ids"])},
        "base gmacs": base,
        "rows": rows,
        "processor seconds": seconds(net, size, LAYOUTS[size]),
        "hardware": f"{records.hardware()}; the machine was shared",
    }
    records.write(records.RESULTS / "sparse" / f"{size} pixels.json", record)


if __name__ == "__main__":
    run(main)
