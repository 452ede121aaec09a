"""A small data set and a small trained detector that the tests share."""

import os
from functools import cache
from pathlib import Path

import pytest
import torch

from examples.ssd import demonstration, model, train
from examples.ssd.configurations import find

DATA = os.environ.get("STRIDESURGERY_DATA")
needs_data = pytest.mark.skipif(DATA is None, reason="STRIDESURGERY_DATA names no folder")
SMALL = "--backbone test_resnet --surgery S1L0 --size 96 --weights none --workers 0 --device cpu"


@cache
def built(name: str) -> model.Detector:
    """A row of the table, with random weights; not to be changed."""
    torch.manual_seed(0)
    return model.build(find(name)).eval()


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen images to train on and eight to evaluate on, in COCO's layout."""
    folder = tmp_path_factory.mktemp("shapes")
    demonstration.write(folder, {"train2017": 16, "val2017": 8}, seed=3)
    return folder


def arguments(shapes: Path, out: Path, *more: str) -> list[str]:
    """Of a run of two epochs of four steps."""
    recipe = f"{SMALL} --epochs 2 --batch 4 --lr 0.005 --ema 0.9 --data {shapes} --out {out}"
    return [*recipe.split(), *more]


@pytest.fixture(scope="session")
def trained(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was not interrupted."""
    folder = tmp_path_factory.mktemp("run")
    train.main(arguments(shapes, folder))
    return folder
