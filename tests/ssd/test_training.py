"""Training: stopped, killed, resumed, on two processes, on bad luck."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from examples.ssd import train, training
from examples.ssd.backbones import configuration_for
from examples.ssd.configurations import ROWS, Recipe
from examples.ssd.data import CocoImages, find_split
from examples.ssd.evaluate import detect_all, evaluate, load_truth
from examples.ssd.model import build
from examples.ssd.processes import Processes, Stop
from examples.ssd.programs import DetectionError, sentence, write_atomically
from examples.ssd.training import MAY_CHANGE, Options, Training
from tests.ssd.conftest import SMALL, arguments

ROOT = Path(__file__).parents[2]
PROGRAM = [sys.executable, "-m", "examples.ssd.train"]
TWO = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def content(folder: Path) -> dict[str, Any]:
    return training.load(folder / "last.pt")


def log(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def assert_same(a: Path, b: Path) -> None:
    """The whole state, to the bit."""

    def same(x: Any, y: Any) -> bool:
        if isinstance(x, dict):
            return x.keys() == y.keys() and all(same(x[k], y[k]) for k in x)
        if isinstance(x, (list, tuple)):
            return len(x) == len(y) and all(map(same, x, y))
        return torch.equal(x, y) if isinstance(x, Tensor) else x == y

    free = {"run"}
    both = [{k: v for k, v in content(f).items() if k not in free} for f in (a, b)]
    assert same(*both) and log(a) == log(b) and len(log(a)) == 8


@pytest.mark.parametrize("steps", ["4", "6"])
def test_a_stopped_run_ends_in_the_same_state(
    shapes: Path, trained: Path, tmp_path: Path, steps: str
) -> None:
    for _ in range(2):  # the second time the limit is already reached
        train.main(arguments(shapes, tmp_path, "--max-steps", steps, "--resume"))
        assert content(tmp_path)["steps"] == len(log(tmp_path)) == int(steps)
    train.main(arguments(shapes, tmp_path, "--resume"))
    assert_same(tmp_path, trained)


def start(*command: str) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, env=environment, cwd=ROOT, **quiet)


def wait_for_steps(folder: Path, count: int, process: subprocess.Popen) -> None:
    for _ in range(1200):
        if (folder / "log.jsonl").is_file() and len(log(folder)) >= count:
            return
        assert process.poll() is None, "the run ended too early"
        time.sleep(0.05)
    raise AssertionError("no step in a minute")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_run_resumes_to_the_same_state(
    shapes: Path, trained: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """--save-every 0: after every step, so that a kill meets checkpoints being written."""
    process = start(*PROGRAM, *arguments(shapes, tmp_path, "--resume", "--save-every", "0"))
    wait_for_steps(tmp_path, 5, process)
    process.send_signal(number)
    code = process.wait(timeout=60)
    assert code == (128 + number if number == signal.SIGTERM else -number)
    assert content(tmp_path)["steps"] >= 4
    train.main(arguments(shapes, tmp_path, "--resume"))
    assert_same(tmp_path, trained)


def test_two_processes_learn_what_one_does(shapes: Path, tmp_path: Path) -> None:
    """The same global batch; norms that stay as they are."""
    one, both = tmp_path / "one", tmp_path / "both"
    more = ("--freeze-norms", "--epochs", "1", "--lr", "0.0002")
    train.main(arguments(shapes, one, *more))
    run = [sys.executable, *TWO, *PROGRAM[1:], *arguments(shapes, both, *more)]
    assert start(*run, "--resume").wait(timeout=300) == 0
    for key, value in content(one)["model"].items():
        torch.testing.assert_close(content(both)["model"][key], value, rtol=1e-4, atol=1e-5)
    losses = [[row["loss"] for row in log(folder)] for folder in (one, both)]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=0)


def test_a_loss_that_is_no_number_stops_keeps_the_checkpoint_and_goes_on_with_a_lower_rate(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DetectionError, match="is no number any more at step .* none was saved"):
        train.main(arguments(shapes, tmp_path / "new", "--lr", "1e30"))
    train.main(arguments(shapes, tmp_path, "--max-steps", "1"))
    good = (tmp_path / "last.pt").read_bytes()
    with pytest.raises(DetectionError, match="last.pt from before is kept"):
        train.main(arguments(shapes, tmp_path, "--resume", "--lr", "1e30"))
    assert (tmp_path / "last.pt").read_bytes() == good
    train.main(arguments(shapes, tmp_path, "--resume", "--lr", "0.001", "--max-steps", "2"))
    assert "a run with lr 0.005 (now 0.001)" in capsys.readouterr().out
    assert [row["rate"] for row in log(tmp_path)] == [0.005, 0.001]


@pytest.mark.parametrize("workers", ["0", "1"])
def test_an_image_that_does_not_decode_is_named_and_the_run_goes_on_once_it_is_mended(
    shapes: Path, trained: Path, tmp_path: Path, workers: str
) -> None:
    data, out = tmp_path / "shapes", tmp_path / "run"
    shutil.copytree(shapes, data)
    train.main(arguments(data, out, "--max-steps", "5"))
    victim = data / "train2017/000003.jpg"
    whole = victim.read_bytes()
    victim.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DetectionError) as told:
        train.main(arguments(data, out, "--resume", "--workers", workers))
    assert "000003.jpg does not decode" in sentence(told.value)
    victim.write_bytes(whole)
    train.main(arguments(data, out, "--resume"))
    assert_same(out, trained)


def test_resuming_something_else_is_told(shapes: Path, trained: Path, tmp_path: Path) -> None:
    before = (trained / "last.pt").read_bytes()
    for more, message in {
        ("--resume", "--seed", "1", "--epochs", "4"): r"epochs 2 \(now 4\), seed 0 \(now 1\); re",
        ("--resume", "--surgery", "S1L3"): r"surgery S1L0 \(now S1L3\)",
        (): "holds another run: --resume goes on with it",
    }.items():
        with pytest.raises(DetectionError, match=message):
            train.main(arguments(shapes, trained, *more))
    assert (trained / "last.pt").read_bytes() == before


def test_every_option_but_those_that_may_change_is_held_against_the_checkpoint(
    shapes: Path, tmp_path: Path
) -> None:
    row, images = configuration_for("test_resnet", None, 96), CocoImages(find_split(shapes, "val"))
    alone, options = Processes(torch.device("cpu")), Options(batch=4, workers=0)

    def made(options: Options) -> Training:
        return Training(
            build(row, 1 + len(images.categories)), row, images, alone, options, tmp_path
        )

    made(options).save()
    assert made(options).resume() == ""
    for name in (f.name for f in fields(Options)):
        value = getattr(options, name)
        other = not value if isinstance(value, bool) else "bf16" if name == "amp" else value + 1
        changed = replace(options, **{name: 0.5 if name == "ema" else other})
        if name in MAY_CHANGE:
            made(changed).resume()
        else:
            with pytest.raises(DetectionError, match=f"is of a run with {name} "):
                made(changed).resume()


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_mixed_precision_trains_too(shapes: Path, trained: Path, tmp_path: Path, amp: str) -> None:
    train.main(arguments(shapes, tmp_path, "--amp", amp, "--max-steps", "2"))
    ours, others = log(tmp_path)[0]["loss"], log(trained)[0]["loss"]
    assert abs(ours - others) < 0.02 * others


def test_the_schedule_by_hand() -> None:
    recipe = Recipe(lr=1.0, epochs=14, warmup=4)
    rates = [training.rate(recipe, epoch) for epoch in (0, 1, 3, 4, 9, 14)]
    torch.testing.assert_close(rates, [0.2, 0.4, 0.8, 1.0, 0.5, 0.0])
    assert training.rate(ROWS["SSD-VGG16"].recipe, 5) == 4e-3


def test_the_average_is_the_networks_first_and_lags_behind_it_later(trained: Path) -> None:
    whole = content(trained)
    key = "backbone.neck.norm.weight"
    assert not torch.equal(whole["best"][key], whole["model"][key])
    assert 0.9 < float((whole["best"][key] / whole["model"][key]).mean()) < 1.1


def test_another_detectors_weights_are_taken_over_but_for_other_classes(
    shapes: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = ("--init-from", str(trained / "last.pt"), "--lr", "0", "--ema", "0")
    train.main(arguments(shapes, tmp_path, *start, "--freeze-norms", "--evaluate-every", "1"))
    told, own = capsys.readouterr().out, content(tmp_path)["model"]
    assert f"{len(own)} of {len(own)} tensors fit" in told
    assert all(torch.equal(own[k], v) for k, v in content(trained)["best"].items())
    ends = [row for row in log(tmp_path) if "ap50" in row]
    assert [row["step"] for row in ends] == [4, 8] and ends[0] == {**ends[1], "step": 4}
    ssd = build(training.load(trained / "last.pt")["configuration"], 3)
    assert f"{len(own) - 12} of {len(own)}" in train.take_over(ssd, trained / "last.pt")
    other = tmp_path / "other"
    shutil.copytree(shapes, other)
    val = find_split(other, "val").annotations
    val.write_text(val.read_text().replace("triangle", "wedge"))
    with pytest.raises(DetectionError, match="val2017.json has other categories than"):
        train.main(arguments(other, tmp_path / "new", "--evaluate-every", "1"))


# ---- signals and disks


def test_signals_are_noted_and_the_handlers_before_come_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Stop() as told:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)  # as a launcher passes it on
        assert told.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_full_disk_keeps_the_checkpoint_before(trained: Path, tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    shutil.copy(trained / "last.pt", path)
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(DetectionError, match="could not be written"):
            with write_atomically(path) as part:
                torch.save(torch.zeros(10**6), part)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
    (tmp_path / ".last.pt.part").write_text("half, of a killed run")
    with write_atomically(path) as part:
        part.write_text("whole")
    assert list(tmp_path.iterdir()) == [path] and path.read_text() == "whole"


def test_a_log_takes_back_what_came_after_the_checkpoint_or_was_cut_off(tmp_path: Path) -> None:
    rows = [json.dumps({"step": n, "loss": n / 2}) for n in range(1, 6)]
    (tmp_path / "log.jsonl").write_text("\n".join(rows)[:-9])
    new = train.open_log(tmp_path / "log.jsonl", 3)
    new(4, {"loss": 9.0})
    assert [row["step"] for row in log(tmp_path)] == [1, 2, 3, 4] and log(tmp_path)[3]["loss"] == 9


def test_damaged_and_other_files_are_told(trained: Path, tmp_path: Path) -> None:
    whole, path = bytearray((trained / "last.pt").read_bytes()), tmp_path / "x.pt"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DetectionError, match="x.pt cannot be read"):
        training.load(path)
    whole[len(whole) // 2] ^= 1  # in the middle of a tensor
    path.write_bytes(whole)
    with pytest.raises(DetectionError, match="x.pt cannot be read"):
        training.load(path)
    torch.save({"weight": torch.zeros(1)}, path)
    with pytest.raises(DetectionError, match="no checkpoint of these programs"):
        training.load(path)
    torch.save({"code": SMALL.join, "path": SimpleNamespace}, path)  # nothing in it is executed
    with pytest.raises(DetectionError, match="x.pt cannot be read"):
        training.load(path)


@pytest.mark.parametrize("dual", [False, True])
def test_two_images_are_learned_by_heart(shapes: Path, tmp_path: Path, dual: bool) -> None:
    """A wrong loss, matching, box or evaluation could not do it."""
    torch.manual_seed(0)
    row = configuration_for("test_resnet", "S1L0" if dual else None, 128, dual=dual)
    images = CocoImages(find_split(shapes, "train"), with_objects=True, first=2)
    alone, options = Processes(torch.device("cpu")), Options(2e-3, 80, 2, augment=False, workers=0)
    run = Training(build(row, 1 + len(images.categories)), row, images, alone, options, tmp_path)
    run.sgd = torch.optim.AdamW(run.ssd.parameters(), 2e-3)
    while not run.finished:
        run.run_epoch()
    truth = load_truth(images.split.annotations)
    found = evaluate(truth, detect_all(run.ssd, images, alone), images.ids)
    assert found.figures["ap50"] > 90
