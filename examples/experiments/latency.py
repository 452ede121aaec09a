"""How long one image takes, beside the compute: the paper's Table 4 and the stock detector's views.

    python -m examples.experiments.latency                                # 1000 runs of each, as in the paper
    python -m examples.experiments.latency --runs 20 --threads 1 --processor-time    # on a machine with other work
    python -m examples.experiments.latency --device cuda --batch 16 --dtype bf16 --compile

The network alone, without reading, resizing or suppressing. The networks take turns, and each is compared with the
first one of its group in the same round, so that a machine that slows down slows both.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from examples.experiments import records
from examples.experiments.views import AS_IS, DILATED, LARGE, SURGERIES, views
from examples.ssd import counting
from examples.ssd.benchmark import WARMUP, clock
from examples.ssd.configurations import find
from examples.ssd.errors import RequestError
from examples.ssd.model import build
from examples.ssd.paper import TABLE_4
from examples.ssd.programs import positive, run, wanted_device
from examples.ssd.stock import INPUT_SIZE, load_stock
from examples.ssd.stock_networks import TwoPaths
from examples.training_free import DOUBLED, data_folder

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Candidate:
    """One network to time."""

    net: nn.Module
    size: int  # pixels
    paper_ms: float | None = None


def paper_rows() -> dict[str, Candidate]:
    names = [*TABLE_4, "SSDMnetv1-Size600"]
    return {
        name: Candidate(build(find(name)), find(name).size, TABLE_4.get(name)) for name in names
    }


def stock_rows() -> dict[str, Candidate]:
    """The detector of `training_free`: what is patched by hand takes as long as what is operated, a pyramid as two."""
    net = load_stock(data_folder() / "weights")
    known = views(net)
    return {
        AS_IS: Candidate(net, INPUT_SIZE),
        **{name: Candidate(known[name].net, INPUT_SIZE) for name in (*SURGERIES, DILATED)},
        **{f"{name} dual path": Candidate(TwoPaths(net, name), INPUT_SIZE) for name in SURGERIES},
        LARGE: Candidate(net, DOUBLED),
    }


GROUPS: Mapping[str, Callable[[], dict[str, Candidate]]] = {
    "paper": paper_rows,
    "stock": stock_rows,
}


@dataclass(frozen=True)
class How:
    """The same for all networks that are compared."""

    device: torch.device
    dtype: str
    batch: int
    compiled: bool
    processor: bool  # the processor's time instead of the clock's

    @property
    def name(self) -> str:
        return f"{self.device.type}-{self.dtype}-batch{self.batch}{'-compiled' * self.compiled}"

    def time(self, call: Callable[[], object]) -> float:
        """Milliseconds of one call."""
        if not self.processor:
            return clock(call, self.device)
        started = time.process_time()
        call()
        return (time.process_time() - started) * 1e3

    def call(self, candidate: Candidate) -> Callable[[], object]:
        net = candidate.net.eval().to(self.device, DTYPES[self.dtype])
        called = torch.compile(net) if self.compiled else net
        shape = (self.batch, 3, candidate.size, candidate.size)
        images = torch.rand(shape, device=self.device, dtype=DTYPES[self.dtype])

        def call() -> object:
            with torch.inference_mode():
                return called(images)

        return call


def rounds(
    calls: Mapping[str, Callable[[], object]], how: How, count: int
) -> dict[str, list[float]]:
    """Milliseconds of each call in every round, after a few rounds that do not count."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    warmup = min(WARMUP, count)
    for number in tqdm(range(warmup + count), desc="rounds", disable=None):
        for name, call in calls.items():
            taken = how.time(call)
            if number >= warmup:
                times[name].append(taken)
    return times


def quartiles(values: Sequence[float]) -> list[float]:
    """The median, and the ends of the middle half."""
    if len(values) == 1:
        return [values[0]] * 3
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return [middle, low, high]


def measure(group: str, how: How, runs: int) -> dict[str, Any]:
    candidates = GROUPS[group]()
    compute = {name: counting.compute(c.net, c.size) / 1e9 for name, c in candidates.items()}
    times = rounds({name: how.call(c) for name, c in candidates.items()}, how, runs)
    first = next(iter(times))
    return {
        name: {
            "gmacs": compute[name],
            "ms": quartiles(times[name]),
            "ratio": quartiles([a / b for a, b in zip(times[name], times[first], strict=True)]),
            "paper ms": candidates[name].paper_ms,
        }
        for name in times
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--groups", nargs="+", choices=tuple(GROUPS), default=list(GROUPS))
    parser.add_argument(
        "--runs", type=positive, default=1000, help="of each network (default: %(default)s)"
    )
    parser.add_argument("--device", default="cpu", help="(default: %(default)s)")
    parser.add_argument(
        "--dtype", choices=tuple(DTYPES), default="fp32", help="(default: %(default)s)"
    )
    parser.add_argument(
        "--batch", type=positive, default=1, help="images at once (default: %(default)s)"
    )
    parser.add_argument("--compile", action="store_true", help="torch.compile")
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="count the processor's time, not the clock's: on one CPU thread",
    )
    parser.add_argument("--threads", type=positive, help="on a CPU (default: torch's)")
    parser.add_argument("--note", help="for the page: what else runs on the machine")
    parser.add_argument(
        "--results", type=Path, default=records.RESULTS, help="(default: docs/results)"
    )
    arguments = parser.parse_args(argv)
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    device, processor = wanted_device(arguments.device), arguments.processor_time
    if processor and (device.type != "cpu" or torch.get_num_threads() > 1):
        raise RequestError(
            "--processor-time is how long an image takes on one thread of a CPU only: --threads 1."
        )
    how = How(device, arguments.dtype, arguments.batch, arguments.compile, processor)
    for group in arguments.groups:
        path = arguments.results / "latency" / f"{group}-{how.name}.json"
        settings = {
            "runs": arguments.runs,
            "threads": torch.get_num_threads(),
            "processor time": processor,
        }
        if records.is_done(path, settings):
            print(f"{path} is there.")
            continue
        rows = measure(group, how, arguments.runs)
        note = "; ".join(filter(None, (arguments.note, f"torch {torch.__version__}")))
        kept = {
            "settings": settings,
            "note": note,
            "rows": rows,
            "hardware": records.hardware(how.device),
        }
        records.write(path, kept)
        print(path)


if __name__ == "__main__":
    run(main)
