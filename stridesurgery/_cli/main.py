"""Run a command line and return its exit code."""

import argparse
import json
import logging
import os
import shutil
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence

import stridesurgery
from stridesurgery._cli import commands, pictures
from stridesurgery._cli.arguments import Parser, add_output
from stridesurgery._cli.commands import Answer
from stridesurgery._cli.errors import CommandError
from stridesurgery._cli.terminal import fitted
from stridesurgery.errors import SurgeryError

REFUSED, FAILED = 1, 2
INTERRUPTED, PIPE_CLOSED = 130, 141  # as in a shell, for a process ended by SIGINT or SIGPIPE

DESCRIPTION = "Change the strides of a timm or torchvision backbone and keep every weight."
EPILOG = (
    "Exit codes: 0 done; 1 the answer is no (a surgery is refused, a model is not what it should "
    "be); 2 the command could not do its work (wrong usage, no such model, a file that cannot be "
    "read or written)."
)
COMMANDS = {
    "inspect": (commands.add_inspect, commands.run_inspect),
    "compare": (commands.add_compare, commands.run_compare),
    "search": (commands.add_search, commands.run_search),
    "eliminate": (commands.add_eliminate, commands.run_eliminate),
    "verify": (commands.add_verify, commands.run_verify),
}


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    parser = Parser(prog="stridesurgery", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument(
        "--version", action="version", version=f"stridesurgery {stridesurgery.__version__}"
    )
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (add, run) in COMMANDS.items():
        _add(subparsers, name, add, run)
    plot = subparsers.add_parser("plot", help=pictures.__doc__, description=pictures.__doc__)
    kinds = plot.add_subparsers(dest="picture", metavar="PICTURE", required=True)
    for name, (add, run) in pictures.PICTURES.items():
        _add(kinds, name, add, run)
    return parser


def _add(subparsers: argparse._SubParsersAction, name: str, add: Callable, run: Callable) -> None:
    parser = subparsers.add_parser(name, help=run.__doc__, description=run.__doc__)
    add(parser)
    add_output(parser)
    parser.set_defaults(run=run, prog=parser.prog)
    parser.mixed = True


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code.

    A wrong command line exits by itself, with code 2.
    """
    if sys.stdout is None:
        print("stridesurgery: the output cannot be written: it is closed", file=sys.stderr)
        return FAILED
    try:
        try:
            return _run(make_parser().parse_args(argv))
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader closed the output
        code = PIPE_CLOSED
    except OSError as problem:
        print(f"stridesurgery: the output cannot be written: {problem.strerror}", file=sys.stderr)
        code = FAILED
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the final flush of Python
    return code


def _run(arguments: argparse.Namespace) -> int:
    """Run a command and print its answer. Only printing can raise."""
    try:
        with warnings.catch_warnings():
            if not sys.warnoptions:  # warnings of the libraries are for their callers
                warnings.simplefilter("ignore")
                logging.disable(logging.WARNING)
            answer = arguments.run(arguments)
    except Exception as problem:
        if arguments.debug:
            traceback.print_exc()
        what = str(problem)
        if isinstance(problem, OSError) and problem.filename is not None:
            what = f"{problem.filename}: {problem.strerror}"
        elif not isinstance(problem, (SurgeryError, CommandError, OSError)):
            what = f"{type(problem).__name__}: {problem} (--debug shows where)"
        print(f"{arguments.prog}: {' '.join(what.split())}", file=sys.stderr)
        return REFUSED if isinstance(problem, SurgeryError) else FAILED
    finally:
        logging.disable(logging.NOTSET)
    print(_shown(answer, arguments.json))
    return REFUSED if answer.is_no else 0


def _shown(answer: Answer, as_json: bool) -> str:
    if as_json:
        return json.dumps(answer.data, indent=2, allow_nan=False)
    return (
        fitted(answer.text, shutil.get_terminal_size().columns)
        if sys.stdout.isatty()
        else answer.text
    )
