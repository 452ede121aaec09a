"""The scripts that try other people's tools and tests say what happened."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from tests.models import awake
from tests.suites import outcomes
from tests.tools.page import FORMS, page
from tests.tools.trials import FORMS as MAKE
from tests.tools.trials import TOOLS, jit_trace, trial

TESTS = """
import pytest, timm, torch
from timm import create_model

@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
def test_forward_features(name):
    model = create_model(name, num_classes=0)
    found = model.eval().forward_features(torch.randn(1, 3, 224, 224))
    assert found.shape[-1] == model.default_cfg.get("pool_size", found.shape[-1:])[-1]

def test_size():
    assert create_model("resnet18").eval().forward_features(torch.randn(1, 3, 64, 64)).shape[-1] == 2
"""


def fails(net: nn.Module, x: Tensor) -> Any:
    raise TypeError("no\n   such thing")


def test_a_trial_says_what_happened() -> None:
    net = nn.Conv2d(3, 4, 3)
    assert trial(jit_trace, net) == "works"
    assert trial(fails, net) == "TypeError: no such thing"
    assert trial(lambda net, x: net(x) * 2, net).startswith("differs by 1")
    assert trial(lambda net, x: torch.ones(1), net) == "gives other shapes"


def test_the_page_counts_and_says_why() -> None:
    rows = [
        {
            "network": net,
            "tool": "t",
            "form": form,
            "result": "no" if net + form == "adilate" else "works",
        }
        for net in "ab"
        for form in FORMS
    ]
    text = page(rows)
    assert (
        "| t | **2** | **2** | **2** | 1 | **2** | **2** |" in text and "- `no`: a (dilate)" in text
    )


def test_another_librarys_tests_run_on_operated_models(tmp_path: Path) -> None:
    path = tmp_path / "test_models.py"
    path.write_text(TESTS)
    found = {
        name.partition("::")[2]: what
        for name, what in outcomes("timm.create_model", str(path)).items()
    }
    assert found == {
        "test_forward_features[resnet18]": "passed",
        "test_forward_features[vit_tiny_patch16_224]": "refused",
        "test_size": "failed",
    }


@pytest.mark.tools
@pytest.mark.parametrize("name", TOOLS)
def test_every_tool_takes_an_operated_network(name: str) -> None:
    tool, package = TOOLS[name]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    net = awake(timm.create_model("resnet18", scriptable=True)).eval()
    assert {trial(tool, MAKE[form](net)) for form in ("original", "module", "graph")} == {"works"}
