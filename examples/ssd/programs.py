"""Common parts of the programs: errors told in a sentence, checked arguments, files, tables."""

import argparse
import math
import os
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import stridesurgery as ss


class DetectionError(ValueError):
    """An error that ends a program, told in one line: the place, the fact, the way out."""


def run(main: Callable[[], None]) -> None:
    """Run a program; what it cannot do it says in one line, with exit code 1."""
    try:
        main()
    except (DetectionError, ss.SurgeryError, OSError) as problem:
        sys.exit(f"{type(problem).__name__}: {sentence(problem)}")


def sentence(problem: BaseException) -> str:
    """Return the line of a message that says most; of a worker's, torch puts a traceback before."""
    lines = str(problem).strip().splitlines() or [type(problem).__name__]
    return lines[-1].partition(": ")[2] if lines[0].startswith("Caught ") else lines[0]


def wanted_device(name: str | None) -> torch.device:
    """Return the device of that name, or the best there is."""
    device = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as problem:
        raise DetectionError(f"--device {name} does not compute: {sentence(problem)}") from None
    return torch.device(device)


def number(kind: type, least: float, below: float = math.inf) -> Callable[[str], Any]:
    """Return a type for argparse: a number from `least` up that stays under `below`."""

    def parse(text: str) -> Any:
        if not least <= kind(text) < below:
            raise argparse.ArgumentTypeError(f"{text} is not from {least} up, under {below}")
        return kind(text)

    return parse


positive, natural, share = number(int, 1), number(int, 0, 2**63), number(float, 0, 1)


# ---- files


def read_image(path: Path) -> Image.Image:
    """Return an image as RGB, not turned by its EXIF tag: COCO's boxes are drawn without it."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as problem:
        raise DetectionError(f"{path} does not decode: {problem}") from problem


def read_tensors(path: Path) -> Any:
    """Return what torch saved, on the CPU; nothing in it is executed."""
    try:
        with zipfile.ZipFile(path) as archive:  # torch writes checksums and does not compare them
            damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"the checksum of {damaged} is wrong")
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as problem:  # damaged bytes fail wherever they lead: a dozen types of error
        raise DetectionError(f"{path} cannot be read: {sentence(problem)[:120]}.") from problem


@contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """Give a path to write to; it replaces `path` in one step, if nothing was raised."""
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        with part.open("rb+") as written:
            os.fsync(written.fileno())
        os.replace(part, path)
    except (OSError, RuntimeError) as problem:  # torch's writer turns the disk's errors into these
        raise DetectionError(f"{path} could not be written ({sentence(problem)}).") from problem
    finally:
        part.unlink(missing_ok=True)


def as_table(header: Sequence[str], rows: Iterable[Sequence[str]], left: Sequence[int] = ()) -> str:
    """Return columns as wide as their widest cell; the first and `left` ones are flush left."""
    lines = [tuple(header), *map(tuple, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = []
    for line in lines:
        cells = enumerate(zip(line, widths, strict=True))
        aligned = [c.ljust(w) if i in (0, *left) else c.rjust(w) for i, (c, w) in cells]
        text.append("  ".join(aligned).rstrip())
    return "\n".join(text)
