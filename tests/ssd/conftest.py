"""A small data set and a small trained detector that the tests share."""

import os
from functools import cache
from pathlib import Path

import pytest
import torch

from examples.ssd import model, synthetic
from examples.ssd.configurations import find

DATA = os.environ.get("STRIDESURGERY_DATA")
needs_data = pytest.mark.skipif(
    DATA is None, reason="STRIDESURGERY_DATA names no folder with images and weights"
)
SMALL = (
    "--backbone",
    "test_resnet",
    "--surgery",
    "S1L0",
    "--size",
    "96",
    "--weights",
    "none",
    "--workers",
    "0",
)


@cache
def built(name: str) -> model.SSD:
    """A row of the table, with random weights; not to be changed."""
    torch.manual_seed(0)
    return model.build(find(name)).eval()


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen images to train on and eight to evaluate on, in COCO's layout."""
    folder = tmp_path_factory.mktemp("shapes")
    synthetic.write(synthetic.Scene(seed=3), folder, {"train2017": 16, "val2017": 8})
    return folder


@pytest.fixture(scope="session")
def trained(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two epochs."""
    from examples.ssd import train

    folder = tmp_path_factory.mktemp("run")
    train.main(
        [*SMALL, "--data", str(shapes), "--out", str(folder), "--epochs", "2", "--batch", "4"]
    )
    return folder
