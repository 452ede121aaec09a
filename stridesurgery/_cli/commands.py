"""Commands. Each takes the parsed arguments and returns its result."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import stridesurgery as ss
from stridesurgery._cli.arguments import add_model, add_out, add_surgeries, add_taps, source
from stridesurgery._cli.errors import CommandError
from stridesurgery._cli.files import SUFFIXES, check_writable
from stridesurgery._tables import METRICS, SECONDS, plain
from stridesurgery.surgery import AXES, Options, Positions

# What needs torch is imported when a command runs, so that help and errors of usage are quick.


@dataclass(frozen=True)
class Answer:
    """Result of a command."""

    text: str
    data: Any  # the same as plain data for JSON
    is_no: bool = False  # True if the answer is no


def add_inspect(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `inspect`."""
    add_model(parser)
    add_surgeries(parser, "?")
    parser.add_argument(
        "--cost",
        action="store_true",
        help="what inference on one image costs, instead of the layers",
    )


def run_inspect(arguments: argparse.Namespace) -> Answer:
    """List the layers of a model, or what it costs; after a surgery, if one is named."""
    model, size = source(arguments).build(), arguments.input_size
    if arguments.surgery is not None:
        model = ss.eliminate(model, arguments.surgery, input_size=size)
    told = ss.cost(model, size) if arguments.cost else ss.inspect(model, size)
    return Answer(str(told), plain(told))


def add_compare(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `compare`."""
    add_model(parser)
    add_surgeries(parser, "+")
    add_taps(parser, "a map to compare")
    parser.add_argument(
        "--measure", action="store_true", help="also time inference and a training step"
    )
    parser.add_argument(
        "--rounds", type=int, default=20, metavar="N", help="how often to time each (default: 20)"
    )


def run_compare(arguments: argparse.Namespace) -> Answer:
    """Put surgeries side by side, and beside the larger input that costs as much."""
    told = ss.compare(
        source(arguments).build(),
        arguments.surgeries,
        arguments.input_size,
        taps=arguments.tap,
        measure=arguments.measure,
        rounds=arguments.rounds,
    )
    return Answer(str(told), plain(told))


def add_search(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `search`."""
    add_model(parser)
    bounds = parser.add_argument_group("the most that one image may cost; at least one")
    bounds.add_argument(
        "--budget", type=float, metavar="X", help="so many times the compute of the model as it is"
    )
    for metric in (*METRICS, SECONDS):
        bounds.add_argument(
            f"--{metric.option}", type=float, metavar=metric.symbol, help=metric.help
        )
    add_taps(parser, "a map that is wanted finer")
    parser.add_argument(
        "--reduction", type=float, metavar="R", help="the most input pixels per cell at the taps"
    )
    parser.add_argument(
        "--axis", choices=AXES, action="append", help="try these axes (default: hw); repeatable"
    )
    parser.add_argument(
        "--dilate", action="store_true", help="also surgeries that keep the pretrained features"
    )
    parser.add_argument(
        "--positions",
        choices=get_args(Positions),
        default=Options.positions,
        help="tables of positions: refuse them, or resample them for the finer grid",
    )


def run_search(arguments: argparse.Namespace) -> Answer:
    """Find the surgeries within a budget that no other one beats."""
    found = searched(arguments)
    return Answer(str(found), plain(found), is_no=not found.front)


def searched(arguments: argparse.Namespace) -> "ss.Search":
    """Run `search` with the arguments of `add_search`."""
    given = {metric: getattr(arguments, metric.option) for metric in (*METRICS, SECONDS)}
    bounds = ss.Budget(
        **{metric.name: value * metric.unit for metric, value in given.items() if value is not None}
    )
    if (arguments.budget is None) == (bounds == ss.Budget()):
        raise CommandError(
            "give either --budget, or one or more of --gmacs, --activations, --peak and "
            "--milliseconds"
        )
    return ss.search(
        source(arguments).build(),
        bounds if arguments.budget is None else arguments.budget,
        taps=arguments.tap,
        reduction=arguments.reduction,
        input_size=arguments.input_size,
        axes=arguments.axis or "hw",
        dilate=arguments.dilate,
        positions=arguments.positions,
    )


def add_eliminate(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `eliminate`."""
    add_model(parser)
    add_surgeries(parser)
    add_out(
        parser,
        "what to write: .safetensors (the weights, the recipe in its metadata) or .onnx",
    )
    parser.add_argument(
        "--any-size",
        action="store_true",
        help="ONNX for images of any size (default: of the input size; the batch is of any length)",
    )


def run_eliminate(arguments: argparse.Namespace) -> Answer:
    """Eliminate strides and write the operated model."""
    from stridesurgery._cli import saved
    from stridesurgery._cost import describe

    made, out = source(arguments), arguments.out
    check_writable(out, SUFFIXES)
    operated = ss.eliminate(made.build(), arguments.surgery, input_size=arguments.input_size)
    surgery = operated.surgery
    saved.write(operated, surgery, made.name, out, arguments.any_size)  # type: ignore[arg-type]
    tensors, size = len(operated.state_dict()), out.stat().st_size
    text = f"{describe(surgery)} of {made.name}: wrote {out}, "  # type: ignore[arg-type]
    text += f"{tensors} tensors, {size / 2**20:.1f} MiB"
    if made.weights is None:
        text += "\nThe weights are random: --weights names a file, or pretrained"
    return Answer(
        text, {"out": str(out), "surgery": plain(surgery), "tensors": tensors, "bytes": size}
    )


def add_verify(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `verify`."""
    add_model(parser)
    add_surgeries(parser, "?")
    parser.add_argument(
        "--operated", type=Path, metavar="FILE", help="what `eliminate` wrote, instead of a surgery"
    )


def run_verify(arguments: argparse.Namespace) -> Answer:
    """Check an operated model against its original: weights, grid, values at changed operators."""
    made = source(arguments)
    if (arguments.surgery is None) == (arguments.operated is None):
        raise CommandError("give either a SURGERY to carry out and check, or --operated FILE")
    original = made.build()
    if arguments.operated is None:
        operated = ss.eliminate(original, arguments.surgery, input_size=arguments.input_size)
    else:
        operated = ss.load(made.untrained.build, arguments.operated)
    told = ss.verify(original, operated, arguments.input_size)
    return Answer(str(told), plain(told))
