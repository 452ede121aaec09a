"""How long one image takes: the paper's Table 4, for every row, on this machine.

    python -m examples.ssd.benchmark                                    # every row, 1000 runs each
    python -m examples.ssd.benchmark --rows table4 --runs 50 --device cpu
    python -m examples.ssd.benchmark --rows SSD-VGG16 --json times.json  # and the base

The network alone, without reading, resizing or suppressing, one image at a time, as in the paper. The rows take turns,
so that a machine that slows down slows all of them; what is compared is the ratio to the base, SSDMnetv1, which always
runs. Ctrl-C ends the runs and prints what there is.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass

import torch
from torch import nn
from tqdm import tqdm

from examples.ssd.configurations import ROWS, find
from examples.ssd.errors import RequestError
from examples.ssd.files import write_atomically
from examples.ssd.formatting import as_table
from examples.ssd.model import build
from examples.ssd.paper import TABLE_4
from examples.ssd.programs import new_file, positive, run, wanted_device

BASE = "SSDMnetv1"
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


def measure(
    calls: Mapping[str, Callable[[], object]], device: torch.device, runs: int
) -> dict[str, Times]:
    """Each call `runs` times, in turn; fewer where the person at the keyboard has seen enough."""
    for call in tqdm(calls.values(), desc="warming up", leave=False):
        for _ in range(min(WARMUP, runs)):
            call()
    rounds: list[dict[str, float]] = []
    with suppress(KeyboardInterrupt):
        for _ in tqdm(range(runs), desc="rounds", leave=False):
            rounds.append({name: clock(call, device) for name, call in calls.items()})
    if not rounds:
        raise RequestError("stopped before every network has run once; --rows names fewer.")
    return {name: summarised([times[name] for times in rounds]) for name in calls}


def summarised(values: Sequence[float]) -> Times:
    if len(values) == 1:
        return Times(values[0], (values[0], values[0]), 1)
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return Times(middle, (low, high), len(values))


def network_call(
    name: str, device: torch.device, channels_last: bool, compiled: bool
) -> Callable[[], object]:
    row = find(name)
    memory = torch.channels_last if channels_last else torch.contiguous_format
    net: nn.Module = build(row).eval().to(device, memory_format=memory)  # type: ignore[call-overload]
    net = torch.compile(net) if compiled else net  # type: ignore[assignment]
    image = torch.rand(1, 3, row.size, row.size, device=device).contiguous(memory_format=memory)

    def call() -> object:
        with torch.inference_mode():
            return net(image)

    return call


def rows_named(names: Sequence[str]) -> list[str]:
    """The rows to time: the base first, then those named; `all` and `table4` name several."""
    several = {"all": tuple(ROWS), "table4": tuple(TABLE_4)}
    asked = [row for name in names for row in several.get(name) or (find(name).name,)]
    return list(dict.fromkeys([BASE, *asked]))


def as_text(times: Mapping[str, Times]) -> str:
    lines = [
        (
            name,
            f"{t.median:.2f}",
            f"{t.quartiles[0]:.2f} to {t.quartiles[1]:.2f}",
            f"{t.median / times[BASE].median:.2f}",
            f"{TABLE_4[name]:.1f}" if name in TABLE_4 else "",
            f"{TABLE_4[name] / TABLE_4[BASE]:.2f}" if name in TABLE_4 else "",
        )
        for name, t in times.items()
    ]
    return as_table(
        ("network", "ms", "half of the runs", "ratio", "paper ms", "paper ratio"), lines
    )


def as_json(times: Times, base: Times) -> dict[str, object]:
    return {**asdict(times), "ratio": times.median / base.median}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--rows", nargs="+", default=["all"], help="names, table4, or all (default)"
    )
    parser.add_argument(
        "--runs", type=positive, default=1000, help="of each (default: %(default)s)"
    )
    parser.add_argument("--device", help="cpu, cuda, ... (default: the GPU if there is one)")
    parser.add_argument("--threads", type=positive, help="on a CPU (default: torch's)")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--compile", action="store_true", help="torch.compile")
    parser.add_argument("--json", type=new_file, help="write the times there too")
    arguments = parser.parse_args(argv)
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    device = wanted_device(arguments.device)
    names = tqdm(rows_named(arguments.rows), desc="building", leave=False)
    calls = {
        name: network_call(name, device, arguments.channels_last, arguments.compile)
        for name in names
    }
    times = measure(calls, device, arguments.runs)
    where = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"CPU, {torch.get_num_threads()} threads"
    )
    print(f"One image, network alone, {times[BASE].runs} runs each; {where}\n{as_text(times)}")
    if arguments.json is not None:
        with write_atomically(arguments.json) as part:
            part.write_text(
                json.dumps({name: as_json(t, times[BASE]) for name, t in times.items()}, indent=2)
            )


if __name__ == "__main__":
    run(main)
