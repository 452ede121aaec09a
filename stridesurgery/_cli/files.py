"""Check, before the work, that a file can be written."""

import os
from pathlib import Path

from stridesurgery._cli.errors import CommandError

SUFFIXES = (".safetensors", ".onnx")  # of operated models


def check_writable(path: Path, suffixes: tuple[str, ...]) -> None:
    """Check, before the work, that its result can be written.

    Raises:
        CommandError: it cannot, or its ending is none of `suffixes`.
    """
    if path.suffix.lower() not in suffixes:
        raise CommandError(f"{path}: the name must end in {' or '.join(suffixes)}")
    if path.exists() and not path.is_file():
        raise CommandError(f"{path} is there and is not a file")
    folder = path.resolve().parent
    if not folder.is_dir():
        raise CommandError(f"{path} cannot be written: there is no folder {folder}")
    if not os.access(folder, os.W_OK):
        raise CommandError(f"{path} cannot be written: {folder} takes no files of yours")
