"""Draw a network, and what surgeries make of it."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import stridesurgery as ss
from stridesurgery._cli.arguments import add_model, add_out, add_surgeries, source, tap
from stridesurgery._cli.commands import Answer, add_search, searched
from stridesurgery._cli.errors import CommandError
from stridesurgery._cli.files import check_writable

SUFFIXES = (".png", ".svg", ".pdf")


def add_profile(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `plot profile`."""
    add_model(parser)
    add_surgeries(parser, "*")
    add_picture(parser)


def run_profile(arguments: argparse.Namespace) -> Answer:
    """Draw the size of the maps and the compute of the layers over depth."""
    return _drawn(
        arguments,
        lambda plot: plot.profile(
            source(arguments).build(), arguments.surgeries, arguments.input_size
        ),
    )


def add_field(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `plot field`."""
    add_model(parser)
    add_surgeries(parser, "*")
    parser.add_argument(
        "--tap", type=tap, required=True, help="the map: a layer number or a module path"
    )
    parser.add_argument(
        "--image", type=Path, metavar="FILE", help="what to draw on (default: a drawn scene)"
    )
    add_picture(parser)


def run_field(arguments: argparse.Namespace) -> Answer:
    """Draw where the cells of a map look, over a photograph."""

    def draw(plot: Any) -> Any:
        model = source(arguments).build()
        size = ss.inspect(model, arguments.input_size).input_size
        image = None if arguments.image is None else read_image(arguments.image, size)
        return plot.field(model, arguments.tap, arguments.surgeries, size, image=image)

    return _drawn(arguments, draw)


def add_front(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `plot front`."""
    add_search(parser)
    add_picture(parser)


def run_front(arguments: argparse.Namespace) -> Answer:
    """Draw what a search finds: the maps and their cost."""
    return _drawn(arguments, lambda plot: plot.front(searched(arguments)))


def add_picture(parser: argparse.ArgumentParser) -> None:
    """Add the option for the file of the picture."""
    add_out(parser, "the picture to write: .png, .svg or .pdf")


def read_image(path: Path, size: tuple[int, int]) -> Any:
    """Return the middle of a photograph at (h, w) pixels, as an array (h, w, 3).

    Raises:
        CommandError: the file cannot be read.
    """
    import numpy as np
    from PIL import Image, ImageOps  # comes with matplotlib

    try:
        with Image.open(path) as image:
            return np.asarray(ImageOps.fit(image.convert("RGB"), (size[1], size[0])))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as problem:
        raise CommandError(f"{path} cannot be read as an image: {problem}") from problem


def _drawn(arguments: argparse.Namespace, draw: Callable[[Any], Any]) -> Answer:
    """Draw with `stridesurgery.plot` and write the picture."""
    out = arguments.out
    check_writable(out, SUFFIXES)
    try:
        from stridesurgery import plot  # imported here: all other commands need no matplotlib
    except ImportError as problem:
        raise CommandError(
            f"pictures need matplotlib, the extra stridesurgery[plot]: {problem}"
        ) from problem
    from stridesurgery._rewrite import written_whole

    figure = draw(plot)
    with written_whole(out) as part:
        figure.savefig(part, dpi=150)
    return Answer(f"wrote {out}", {"out": str(out)})


PICTURES = {
    "profile": (add_profile, run_profile),
    "field": (add_field, run_field),
    "front": (add_front, run_front),
}
