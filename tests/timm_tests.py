"""Run timm's own tests on operated models, beside the untouched run.

    python -m tests.timm_tests CHECKOUT/tests/test_models.py [options of pytest, such as -k
    resnet18]

Every model that the tests create through `timm.create_model` is operated at its first transition.
What the tests expect of it is scaled: its reductions are on record already, and the size of its
last map grows. A refusal counts as such, not as a failure.
"""

import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import timm
from torch import nn

import stridesurgery as ss

_create = timm.create_model


def operated(*args: Any, **kwargs: Any) -> nn.Module:
    """Create a model and eliminate its first stride; a test for which that is refused is skipped."""
    net = _create(*args, **kwargs)
    try:
        fine = ss.eliminate(net, S=1)
    except ss.SurgeryError as problem:
        pytest.skip(f"refused: {problem}")
    transition = ss.inspect(net).transitions[0]
    config = getattr(fine, "pretrained_cfg", None) or {}
    if config.get("pool_size"):
        sides = zip(config["pool_size"], transition.factor, strict=True)
        fine.pretrained_cfg = fine.default_cfg = {
            **config,
            "pool_size": tuple(int(cells * k) for cells, k in sides),
        }
    return fine


def pytest_configure(config: pytest.Config) -> None:
    """Give timm's tests operated models; they import the function by its name."""
    for module in (timm, timm.models, timm.models._factory):
        module.create_model = operated  # type: ignore[attr-defined]


def outcomes(path: str, options: list[str], plugin: bool) -> dict[str, str]:
    """Return what happened in each test of a file: passed, failed, skipped or refused."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [
            sys.executable,
            "-m",
            "pytest",
            path,
            f"--junitxml={report}",
            "-q",
            "-c",
            "/dev/null",
        ]
        command += [*options, *(["-p", "tests.timm_tests"] if plugin else [])]
        subprocess.run(command, check=False, stdout=subprocess.DEVNULL)
        cases = ET.parse(report).getroot().iter("testcase")
        return {f"{case.get('classname')}::{case.get('name')}": _outcome(case) for case in cases}


def _outcome(case: ET.Element) -> str:
    if (skipped := case.find("skipped")) is not None:
        return "refused" if "refused: " in (skipped.get("message") or "") else "skipped"
    return "passed" if case.find("failure") is None and case.find("error") is None else "failed"


def main() -> None:
    """Run the tests twice, and print the counts and what fails on operated models alone."""
    path, *options = sys.argv[1:]
    before, after = (outcomes(path, options, plugin) for plugin in (False, True))
    for name, found in (("untouched", before), ("operated", after)):
        print(
            f"{name}: "
            f"{', '.join(f'{n} {what}' for what, n in sorted(Counter(found.values()).items()))}"
        )
    worse = [
        test for test, what in after.items() if what == "failed" and before.get(test) == "passed"
    ]
    print("\n".join([f"{len(worse)} fail on operated models alone", *worse]))


if __name__ == "__main__":
    main()
