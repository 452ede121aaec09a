"""Reading images and tensors and writing files, with errors that name the file."""

import glob
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from examples.ssd.errors import DataError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp"})


def read_image(path: Path) -> Image.Image:
    """The image as RGB. EXIF orientation is not applied: COCO's boxes are drawn without it.

    Raises:
        DataError: there is no such file, or it does not decode.
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except FileNotFoundError:
        raise DataError(f"there is no image {path}.") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as problem:
        raise DataError(f"{path} does not decode: {problem}") from problem


def read_tensors(path: Path) -> Any:
    """What torch saved, on the CPU; nothing in it is executed.

    Raises:
        OSError: it cannot be opened.
        Exception: of a dozen types, wherever damaged bytes lead.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch writes checksums and does not compare them
        if damaged is not None:
            raise zipfile.BadZipFile(f"the checksum of {damaged} is wrong")
    return torch.load(path, map_location="cpu", weights_only=True)


@contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """Give a path to write to; what is there at the end replaces `path` in one step, and only if nothing was raised.

    What a killed process left of an earlier attempt is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        with part.open("rb+") as written:
            os.fsync(written.fileno())
        os.replace(part, path)
        _keep_names(path.parent)
    finally:
        for left in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
            left.unlink(missing_ok=True)


def _keep_names(folder: Path) -> None:
    """A renamed file survives a power cut once its folder is on the disk; Windows cannot be asked for that."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
