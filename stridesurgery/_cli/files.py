"""Write files as a whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from stridesurgery._cli.errors import CommandError


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


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a path to write to.

    At the end, the file there replaces `path` in one step. It does so only if nothing was raised.

    Raises:
        CommandError: the file cannot be written.
    """
    path = path.resolve()  # a link stays a link
    try:
        with TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            part = Path(folder) / path.name
            yield part
            with part.open("rb+") as file:
                os.fsync(file.fileno())
            os.replace(part, path)
    except OSError as problem:
        raise CommandError(f"{path} cannot be written: {problem.strerror or problem}") from problem
