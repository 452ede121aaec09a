"""Run another library's own tests on operated models, beside the untouched run.

    python -m tests.suites timm.create_model CHECKOUT/tests/test_models.py -k resnet18
    python -m tests.suites torchvision.models.get_model_builder CHECKOUT/test/test_models.py
    python -m tests.suites segmentation_models_pytorch.encoders.get_encoder CHECKOUT/tests/encoders
    python -m tests.suites segmentation_models_pytorch.create_model CHECKOUT/tests/models

The function makes the models of the tests; every model that it makes is operated at its first
transition. What the tests expect is scaled: reductions are on record already; the size of timm's
last map and the strides that the tests of segmentation_models_pytorch hold grow and shrink. A
refusal counts as such, not as a failure. Further options are pytest's. Timeouts, mocks and git are
needed where the tests need them: pytest-timeout, pytest-mock, gitpython.
"""

import functools
import os
import pkgutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import stridesurgery as ss

factor = 1  # by which the model that was operated last has more cells along a side


def operated(net: nn.Module) -> nn.Module:
    """Return a model without its first stride; a test for which that is refused is skipped."""
    global factor
    try:
        transition = ss.inspect(net).transitions[0]
        fine = ss.eliminate(net, S=1)
    except ss.SurgeryError as problem:
        pytest.skip(f"refused: {problem}")
    factor = int(max(transition.factor))
    config = getattr(fine, "pretrained_cfg", None) or {}
    if config.get("pool_size"):
        grown = tuple(cells * factor for cells in config["pool_size"])
        fine.pretrained_cfg = fine.default_cfg = {**config, "pool_size": grown}
    return fine


def operating(make: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that makes operated models, or that gives functions that do."""

    @functools.wraps(make)
    def call(*args: Any, **kwargs: Any) -> Any:
        made = make(*args, **kwargs)
        return operated(made) if isinstance(made, nn.Module) else operating(made)

    return call


def pytest_addoption(parser: pytest.Parser) -> None:
    """Take the name of the function that makes the models."""
    parser.addoption("--operate")


def pytest_configure(config: pytest.Config) -> None:
    """Put the function that operates wherever the plain one was imported by name."""
    make = pkgutil.resolve_name(config.getoption("--operate"))
    for module in list(sys.modules.values()):
        if getattr(module, "__dict__", {}).get(make.__name__) is make:
            setattr(module, make.__name__, operating(make))


def pytest_itemcollected(item: pytest.Item) -> None:
    """Scale what a test class of segmentation_models_pytorch says of strides."""
    strides = getattr(getattr(item, "cls", None), "output_strides", None)
    if isinstance(strides, list):
        scaled = property(lambda self: [s // factor if s >= factor else s for s in strides])
        item.cls.output_strides = scaled  # type: ignore[attr-defined]


def outcomes(make: str | None, path: str, *options: str) -> dict[str, str]:
    """Return what happened in each test of a path: passed, failed, skipped or refused."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", path, "-q", "-c", "/dev/null", *options]
        command += [
            f"--junitxml={report}",
            *(["-p", "suites", f"--operate={make}"] if make else []),
        ]
        paths = [str(Path(__file__).parent), str(Path(__file__).parents[1])]  # no package `tests`
        env = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")]),
        }
        subprocess.run(command, check=False, stdout=subprocess.DEVNULL, env=env)
        cases = ET.parse(report).getroot().iter("testcase")
        return {f"{case.get('classname')}::{case.get('name')}": _outcome(case) for case in cases}


def _outcome(case: ET.Element) -> str:
    if (skipped := case.find("skipped")) is not None:
        return "refused" if "refused: " in (skipped.get("message") or "") else "skipped"
    return "passed" if case.find("failure") is None and case.find("error") is None else "failed"


def main() -> None:
    """Run the tests twice, and print the counts and what fails on operated models alone."""
    make, path, *options = sys.argv[1:]
    before, after = outcomes(None, path, *options), outcomes(make, path, *options)
    for name, found in (("untouched", before), ("operated", after)):
        counts = [f"{n} {what}" for what, n in sorted(Counter(found.values()).items())]
        print(f"{name}: {', '.join(counts)}")
    failed = [test for test, what in after.items() if what == "failed"]
    worse = [test for test in failed if before.get(test) == "passed"]
    print("\n".join([f"{len(worse)} fail on operated models alone", *worse]))


if __name__ == "__main__":
    main()
