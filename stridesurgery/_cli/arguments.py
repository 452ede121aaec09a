"""Arguments of the commands, and the functions that read them."""

import argparse
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from stridesurgery._cli.models import PRETRAINED, Source, argument
from stridesurgery.errors import RequestError
from stridesurgery.surgery import Surgery

SURGERY_HELP = "S1L0, S2L4-6, ...; options follow a colon: S1L12:dilate, S1L16:axis=w,pool=keep"


class Parser(argparse.ArgumentParser):
    """Report a wrong command line in one line."""

    mixed = False  # True if positional arguments may stand among the options

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse the known arguments, as `argparse` does."""
        if not self.mixed:
            return super().parse_known_args(args, namespace)
        self.mixed = False  # the next call comes here again, for options and others
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self.mixed = True

    def error(self, message: str) -> NoReturn:
        """Exit with code 2."""
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def add_output(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose the format of results and errors."""
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that name the model."""
    parser.add_argument("model", help="timm:NAME, torchvision:NAME or module.path:callable")
    parser.add_argument(
        "--weights",
        metavar="FILE",
        help=f"safetensors, or what torch.save wrote, or {PRETRAINED!r} (default: random)",
    )
    parser.add_argument(
        "--model-arg",
        type=reader(argument, "NAME=VALUE, such as num_classes=10"),
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an argument of the function that builds the model; repeatable",
    )
    parser.add_argument(
        "--input-size",
        type=reader(input_size, "a number of pixels or HxW, such as 300 or 300x400"),
        metavar="N|HxW",
        help="pixels (default: what the model was made for, else 224)",
    )


def add_taps(parser: argparse.ArgumentParser, what: str, required: bool = False) -> None:
    """Add the option that names the maps."""
    parser.add_argument(
        "--tap",
        type=tap,
        action="append",
        required=required,
        help=f"{what}: a layer number or a module path; repeatable",
    )


def source(arguments: argparse.Namespace) -> Source:
    """Return the model that the arguments name."""
    return Source(arguments.model, dict(arguments.model_arg), arguments.weights)


def reader(read: Callable[[str], Any], wanted: str) -> Callable[[str], Any]:
    """Return a type for argparse. Its error message says what is expected."""

    def checked(text: str) -> Any:
        try:
            return read(text)
        except RequestError as problem:
            raise argparse.ArgumentTypeError(str(problem)) from problem
        except ValueError as problem:
            raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}") from problem

    return checked


def input_size(text: str) -> int | tuple[int, int]:
    """Read a size in pixels: N or HxW.

    Raises:
        ValueError: the text is neither.
    """
    sides = [int(side) for side in re.split("[x,]", text)]
    if len(sides) > 2 or min(sides) < 1:
        raise ValueError(text)
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])


def tap(text: str) -> int | str:
    """Read a layer number or a module path."""
    return int(text) if text.isdecimal() else text


def surgery(text: str) -> Surgery:
    """Read a name with options after a colon: "S1L0", "S1L16:axis=w,pool=keep", "S1L12:dilate".

    Raises:
        RequestError: an option that does not exist, or a value that it cannot have.
    """
    name, _, listed = text.partition(":")
    options = dict(_option(item) for item in listed.split(",") if item)
    return replace(Surgery.parse(name), **options)


def _option(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    name = name.replace("-", "_")
    if name == "dilate" and not equals:
        return name, True
    if name in ("stride", "restore_at") and value.isdecimal():
        return name, int(value)
    if name in ("axis", "pool", "form", "positions", "at", "sizes", "centres") and value:
        return name, value
    raise RequestError(
        f"{text!r} is not an option of a surgery; there are stride=N, axis=h|w|hw, "
        "pool=remove|keep, dilate, restore_at=L, form=module|graph, positions=resample, at=PATH, "
        "sizes=follow|stay and centres=looks|carried"
    )


def add_surgeries(parser: argparse.ArgumentParser, nargs: str | None = None) -> None:
    """Add the argument for surgeries. `nargs` is that of argparse."""
    parser.add_argument(
        "surgery" if nargs in (None, "?") else "surgeries",
        metavar="SURGERY",
        type=reader(surgery, "a surgery"),
        nargs=nargs,
        help=SURGERY_HELP,
    )


def add_out(parser: argparse.ArgumentParser, what: str) -> None:
    """Add the option for the file to write."""
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help=what)
