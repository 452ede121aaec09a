"""Sweep the zoo: one line of JSON for each model in a cache, then docs/coverage.md from all of them.

Run it again to go on where it stopped; rows made by other versions, or by other code of
stridesurgery, are made anew.
"""

import argparse
from pathlib import Path

from tests.zoo.sweep import PAGE, ROWS, SMALL, sweep, write_page


def main() -> None:
    """Sweep what is missing, then write the page."""
    parser = argparse.ArgumentParser(prog="python -m tests.zoo", description=__doc__)
    parser.add_argument("--out", type=Path, default=ROWS, help="the cache, one line a model")
    parser.add_argument("--page", type=Path, default=PAGE, help="the page to write")
    parser.add_argument(
        "--only",
        nargs="+",
        default=(),
        metavar="NAME",
        help="these models, whatever rows they have",
    )
    parser.add_argument(
        "--numbers",
        type=float,
        default=SMALL,
        metavar="M",
        help="numbers up to M million parameters",
    )
    parser.add_argument(
        "--minutes", type=float, default=float("inf"), help="start no model after so long"
    )
    options = parser.parse_args()
    rows = sweep(options.out, only=options.only, minutes=options.minutes, limit=options.numbers)
    write_page(rows, options.page, limit=options.numbers)


if __name__ == "__main__":
    main()
