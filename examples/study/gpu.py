"""Latency of every row, then fine-tuning, in so many minutes of a GPU; resumable.

    python -m examples.study.gpu --work runs --minutes 12     # --device cpu --dtypes fp32

Latency gets half of the time: the paper's Table 4 and the stock detector's rows, eager and
compiled, without reading, resizing or suppressing. The networks take turns, and each is compared
with the first of its group in the same round. Then base, S1L0, split and Size600 take as many steps
as fit, all the same number, one seed after the other. What was recorded is skipped.
"""

import argparse
import itertools
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import nn

from examples.ssd import counting
from examples.ssd.configurations import find
from examples.ssd.data import CocoImages, find_split
from examples.ssd.model import Network, build
from examples.ssd.paper import TABLE_4
from examples.ssd.processes import Processes
from examples.ssd.programs import natural, number, positive, run, wanted_device
from examples.ssd.tables import caller, measure
from examples.ssd.training import Options
from examples.study import records, stock, trained
from examples.study.training_free import Computed, networks

DTYPES, MOST_RUNS = {"fp32": torch.float32, "bf16": torch.bfloat16}, 1000  # as in the paper
ROWS, SEEDS = ("base", "S1L0", "S1L0-Split", "Size600"), (0, 1, 2)
SHARE = 0.7  # of the time for steps; the rest is for evaluation
TIMED = 6  # steps of each row, to find out how many fit


def paper_rows() -> dict[str, tuple[nn.Module, int]]:
    rows = [find(name) for name in (*TABLE_4, "SSDMnetv1-Size600")]
    return {row.name: (Network(build(row)), row.size) for row in rows}


def stock_rows() -> dict[str, tuple[nn.Module, int]]:
    nets = networks(stock.load_parts(stock.data_folder() / "weights"))
    return {k: (Computed(net), size) for k, (net, size) in nets.items() if "hand" not in k}


GROUPS = {"paper": paper_rows, "stock": stock_rows}


def latency(group: str, like: torch.Tensor, compiled: bool, seconds: float) -> dict[str, Any]:
    """Time a group's networks in turn, for so many seconds. like: (N, 3, 1, 1), images' kind."""
    networks, calls = GROUPS[group](), {}
    # Counted before `caller` brings weights, which some share, to the images' type.
    rows: dict[str, Any] = {k: {"gmacs": counting.compute(*n) / 1e9} for k, n in networks.items()}
    for name, (net, size) in networks.items():
        calls[name] = caller(net, like.repeat(1, 1, size, size), compiled)
    once = sum(ms[0] for ms in measure(calls, 1).values()) / 1e3
    runs = int(min(max(1, seconds / once), MOST_RUNS))
    times = {name: np.array(ms) for name, ms in measure(calls, runs).items()}
    first = next(iter(times.values()))
    for name, ms in times.items():  # the median, and the ends of the middle half
        for key, values in (("ms", ms), ("ratio", ms / first)):
            rows[name][key] = np.quantile(values, (0.5, 0.25, 0.75)).tolist()
    return {"runs": runs, "rows": rows}


def time_all(a: argparse.Namespace, device: torch.device, end: float) -> None:
    """Record the latency of every group in every way, until the time is over."""
    ways = [*itertools.product((False, True), a.batches, a.dtypes, GROUPS)]
    for place, (compiled, batch, dtype, group) in enumerate(ways):
        how = f"{device.type}-{dtype}-batch{batch}{'-compiled' * compiled}"
        path, settings = a.results / "latency" / f"{group}-{how}.json", {"batch": batch}
        left = (end - time.monotonic()) / (len(ways) - place)
        if records.is_done(path, settings):
            continue
        if left <= 0:
            print(f"No time left for {group}, {how}; the same command goes on.")
            continue
        like = torch.rand(batch, 3, 1, 1, device=device, dtype=DTYPES[dtype])
        found = latency(group, like, compiled, left)
        about = {"note": f"torch {torch.__version__}", "hardware": records.hardware(device)}
        records.write(path, {"settings": settings, **found, **about})
        print(path, flush=True)


def plan(a: argparse.Namespace, device: torch.device, seconds: float) -> dict[str, int]:
    """Return epochs and images with which all runs end in time; what was planned once stays."""
    path = a.work / "plan.json"
    if not path.is_file():
        train = find_split(stock.data_folder() / "coco_train", "train")
        images, spent = CocoImages(train, with_objects=True), 0.0
        options = Options(lr=0.0, batch=a.batch, workers=a.workers, max_steps=TIMED)
        for name in ROWS:
            with TemporaryDirectory() as folder:
                run = trained.training(name, images, Processes(device), options, Path(folder))
                start = time.monotonic()
                run.run_epoch()
            spent += (time.monotonic() - start) / TIMED
        steps = max(1, int(SHARE * seconds / spent / len(SEEDS)))
        fit = {"epochs": max(1, steps * a.batch // len(images))}
        records.write(path, {**fit, "first": min(len(images), steps * a.batch)})
    return records.read(path)


def main(argv: Sequence[str] | None = None) -> None:
    """Time, then train."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--minutes", type=number(float, 0), default=12, help="(12)")
    add("--device", help="cpu, cuda, ... (default: the GPU if there is one)")
    add("--batches", nargs="+", type=positive, default=[1, 16], help="images at once (1 16)")
    add("--dtypes", nargs="+", choices=tuple(DTYPES), default=list(DTYPES), help="(all)")
    add("--batch", type=positive, default=32, help="images a training step (32)")
    add("--workers", type=natural, default=0, help="processes that read images (0)")
    add("--images", type=positive, default=452, help="evaluate on so many photographs (452)")
    add("--work", type=Path, required=True, help="folder for checkpoints and detections")
    add("--results", type=Path, default=records.RESULTS / "gpu", help="(docs/results/gpu)")
    a = parser.parse_args(argv)
    stock.data_folder()  # refuses before anything is timed
    device, end = wanted_device(a.device), time.monotonic() + 60 * a.minutes
    time_all(a, device, end - 30 * a.minutes)
    told = {**plan(a, device, end - time.monotonic()), "device": device}
    told |= {name: vars(a)[name] for name in ("batch", "workers", "images", "work", "results")}
    recipe = [f"--{name}={value}" for name, value in told.items()]
    for seed in SEEDS:
        begun = time.monotonic()
        trained.main(["coco", *recipe, "--seeds", str(seed), "--rows", *ROWS])
        if end - time.monotonic() < time.monotonic() - begun:
            print(f"No time left after seed {seed}; the same command goes on.")
            break


if __name__ == "__main__":
    run(main)
