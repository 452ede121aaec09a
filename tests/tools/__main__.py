"""Try every deployment tool that is installed on operated models, and write docs/deployment.md from what happened.

    python -m tests.tools

Each tool runs on four networks as they are and in five forms, in a process of its own for each
network, and its result is compared with the model's own. Takes about half an hour on two cores.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from tests.tools.page import page
from tests.tools.trials import NETWORKS

PAGE = Path(__file__).parents[2] / "docs" / "deployment.md"


def main() -> None:
    """Try what is asked for, and write the page."""
    parser = argparse.ArgumentParser(prog="python -m tests.tools", description=__doc__)
    parser.add_argument("--page", type=Path, default=PAGE, help="the page to write")
    parser.add_argument("--rows", type=Path, required=True, help="a cache, one line a trial")
    options = parser.parse_args()
    for network in NETWORKS:
        command = [sys.executable, "-m", "tests.tools.trials", network, str(options.rows)]
        subprocess.run(command, check=True)
    rows = [json.loads(line) for line in options.rows.read_text().splitlines()]
    options.page.write_text(page(rows))


if __name__ == "__main__":
    main()
