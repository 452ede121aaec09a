"""What the programs have in common: errors told in a sentence, a detector by name, a device."""

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path

import torch

import stridesurgery as ss
from examples.ssd.configurations import Configuration, find
from examples.ssd.custom import configuration_for
from examples.ssd.errors import DetectionError, RequestError


def run(main: Callable[[], None]) -> None:
    """Run a program; what it cannot do it says in one sentence, with exit code 1.

    Errors of the operating system name the file and the fact: a full disk, a folder that may not be written.
    """
    try:
        main()
    except (DetectionError, ss.SurgeryError, OSError) as problem:
        sys.exit(f"{type(problem).__name__}: {sentence(problem)}")


def sentence(problem: Exception) -> str:
    """The message; of one that a worker process raised the last line, without the traceback that torch puts before."""
    text = str(problem)
    return text.strip().splitlines()[-1].partition(": ")[2] if text.startswith("Caught ") else text


def add_detector(parser: argparse.ArgumentParser) -> None:
    """The arguments that name a detector."""
    group = parser.add_argument_group("the detector: a row of the paper, or any backbone")
    group.add_argument(
        "--config", default=None, metavar="ROW", help="see python -m examples.ssd.configurations"
    )
    group.add_argument("--backbone", help="instead: a name that timm or torchvision knows")
    group.add_argument("--surgery", help="of --backbone, by the paper's name: S1L0")
    group.add_argument(
        "--taps", nargs="+", help="of --backbone: layer numbers or module paths, largest map first"
    )
    group.add_argument(
        "--dual", action="store_true", help="of --backbone: split paths for small and large objects"
    )
    group.add_argument(
        "--size", type=positive, help="of --backbone: side of the input in pixels (300)"
    )
    group.add_argument(
        "--anchors",
        choices=("paper", "true"),
        help="steps as printed, or where the cells really look (--backbone)",
    )


def detector(arguments: argparse.Namespace, default: str = "SSDMnetv1") -> Configuration:
    """The configuration that the arguments of `add_detector` name."""
    own = ("surgery", "taps", "size", "dual")
    if arguments.backbone is None:
        stray = [f"--{name}" for name in own if getattr(arguments, name)]
        if stray:
            raise RequestError(f"{', '.join(stray)} goes with --backbone; a --config has its own.")
        row = find(arguments.config or default)
        return row.with_true_anchors if arguments.anchors == "true" else row
    if arguments.config is not None:
        raise RequestError("--config and --backbone name two detectors; give one.")
    if arguments.anchors == "paper":
        raise RequestError("the paper prints no steps for other backbones; leave --anchors out.")
    taps = (
        None
        if arguments.taps is None
        else tuple(int(t) if t.isdigit() else t for t in arguments.taps)
    )
    return configuration_for(
        arguments.backbone, arguments.surgery, arguments.size or 300, taps, dual=arguments.dual
    )


def wanted_device(name: str | None) -> torch.device:
    """The device of that name, or the best there is.

    Raises:
        RequestError: there is no such device.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as problem:
        raise RequestError(f"{name!r} is no device: {problem}") from None
    there = {
        "cpu": 1,
        "cuda": torch.cuda.device_count(),
        "mps": int(torch.backends.mps.is_available()),
        "xpu": torch.xpu.device_count(),
    }
    if device.type not in there:
        raise RequestError(f"--device {name} does not compute here; there are {', '.join(there)}.")
    if (device.index or 0) >= there[device.type]:
        raise RequestError(
            f"--device {name}: torch finds {there[device.type] or 'no'} {device.type} device here."
        )
    return device


def existing_file(text: str) -> Path:
    """For argparse."""
    path = Path(text)
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"there is no file {text!r}")
    return path


def existing_folder(text: str) -> Path:
    """For argparse."""
    path = Path(text)
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {text!r}")
    return path


def new_folder(text: str) -> Path:
    """For argparse: a folder to write to, there or not yet."""
    path = Path(text)
    if path.exists() and not path.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is a file, not a folder")
    return path


def new_file(text: str) -> Path:
    """For argparse: a file to write, there or not yet."""
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is a folder, not a file")
    return path


def positive(text: str) -> int:
    """For argparse: a whole number above zero."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above zero")
    return number


def natural(text: str) -> int:
    """For argparse: a whole number from zero up, that fits into 63 bits."""
    number = int(text)
    if not 0 <= number < 2**63:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from zero up")
    return number


def amount(text: str) -> float:
    """For argparse: zero or a number above it."""
    number = float(text)
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a number from zero up")
    return number


def share(text: str) -> float:
    """For argparse: a number between zero and one, neither of them."""
    number = float(text)
    if not 0 < number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not between zero and one")
    return number
