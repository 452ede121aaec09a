"""How long one image takes: the paper's Table 4, for every row, on this machine.

    python -m examples.ssd.benchmark                                  # Table 4's rows, 1000 runs each
    python -m examples.ssd.benchmark --rows all --runs 50 --device cpu
    python -m examples.ssd.benchmark --json times.json

The network alone, without reading, resizing or suppressing, one image at a time, as in the paper. The rows take turns,
so that a machine that slows down slows all of them; what is compared is the ratio to the first row.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from examples.ssd.configurations import ROWS, find
from examples.ssd.files import write_atomically
from examples.ssd.formatting import as_table
from examples.ssd.model import build
from examples.ssd.paper import TABLE_4
from examples.ssd.programs import positive, run, wanted_device

WARMUP = 5  # runs that are not counted


@dataclass(frozen=True)
class Times:
    """Milliseconds for one image."""

    median: float
    quartiles: tuple[float, float]
    runs: int


def clock(call: Callable[[], object], device: torch.device) -> float:
    """Milliseconds of one call, waiting for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - started) * 1e3


def measure(calls: Mapping[str, Callable[[], object]], device: torch.device, runs: int) -> dict[str, Times]:
    """Each call `runs` times, in turn."""
    for call in calls.values():
        for _ in range(min(WARMUP, runs)):
            call()
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _ in tqdm(range(runs), desc="rounds", leave=False):
        for name, call in calls.items():
            samples[name].append(clock(call, device))
    return {name: summarised(values) for name, values in samples.items()}


def summarised(values: Sequence[float]) -> Times:
    if len(values) == 1:
        return Times(values[0], (values[0], values[0]), 1)
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return Times(middle, (low, high), len(values))


def network_call(name: str, device: torch.device, channels_last: bool, compiled: bool) -> Callable[[], object]:
    row = find(name)
    memory = torch.channels_last if channels_last else torch.contiguous_format
    net: nn.Module = build(row).eval().to(device, memory_format=memory)  # type: ignore[call-overload]
    net = torch.compile(net) if compiled else net  # type: ignore[assignment]
    image = torch.rand(1, 3, row.size, row.size, device=device).contiguous(memory_format=memory)

    def call() -> object:
        with torch.inference_mode():
            return net(image)

    return call


def as_text(times: Mapping[str, Times]) -> str:
    first = next(iter(times))
    lines = [
        (
            name,
            f"{t.median:.2f}",
            f"{t.quartiles[0]:.2f} to {t.quartiles[1]:.2f}",
            f"{t.median / times[first].median:.2f}",
            f"{TABLE_4[name]:.1f}" if name in TABLE_4 else "",
            f"{TABLE_4[name] / TABLE_4[first]:.2f}" if name in TABLE_4 and first in TABLE_4 else "",
        )
        for name, t in times.items()
    ]
    return as_table(("network", "ms", "half of the runs", "ratio", "paper ms", "paper ratio"), lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", nargs="+", default=list(TABLE_4), help="names, or all (default: Table 4's)")
    parser.add_argument("--runs", type=positive, default=1000, help="of each (default: %(default)s)")
    parser.add_argument("--device", help="cpu, cuda, ... (default: the GPU if there is one)")
    parser.add_argument("--threads", type=positive, help="on a CPU (default: torch's)")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--compile", action="store_true", help="torch.compile")
    parser.add_argument("--json", type=Path, help="write the times there too")
    arguments = parser.parse_args(argv)
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    device = wanted_device(arguments.device)
    names = list(ROWS) if arguments.rows == ["all"] else [find(name).name for name in arguments.rows]
    calls = {name: network_call(name, device, arguments.channels_last, arguments.compile) for name in names}
    times = measure(calls, device, arguments.runs)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"One image, network alone, {arguments.runs} runs each; {where}\n{as_text(times)}")
    if arguments.json is not None:
        with write_atomically(arguments.json) as part:
            part.write_text(json.dumps({name: asdict(t) for name, t in times.items()}, indent=2))


if __name__ == "__main__":
    run(main)
