"""How often a model is recorded: each recording runs the whole forward code, and is most of the time of a surgery."""

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import stridesurgery as ss
from tests.models import create

AT_MOST: dict[str, tuple[int, Callable[[nn.Module], Any]]] = {
    "inspect": (1, ss.inspect),
    "module": (2, lambda net: ss.eliminate(net, "S1L0")),
    "graph": (5, lambda net: ss.eliminate(net, "S1L0", form="graph")),
    "dilate": (6, lambda net: ss.eliminate(net, "S1L16", dilate=True)),
    "features": (3, ss.features),
    "dual_path": (8, lambda net: ss.dual_path(net, "S1L0")),
}


@pytest.mark.parametrize("call", AT_MOST)
def test_models_are_recorded_no_more_often_than_needed(
    call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, count = sys.modules["stridesurgery._trace.record"].record, 0

    def counted(*args: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        return record(*args, **options)

    users = [m for name, m in sys.modules.items() if name.startswith("stridesurgery")]
    for module in (m for m in users if getattr(m, "record", None) is record):
        monkeypatch.setattr(module, "record", counted)
    most, function = AT_MOST[call]
    function(create("resnet18"))
    assert 1 <= count <= most


def test_inference_mode_is_left_for_copies_and_recordings() -> None:
    model, image = create("resnet18"), torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        fine = ss.eliminate(model, L=16, input_size=64)
        maps = ss.features(fine, input_size=64)
        assert maps(image)
        ss.verify(model, fine)
    fine.train()(image).sum().backward()
    assert fine.conv1.weight.grad is not None
