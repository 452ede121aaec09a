"""The sample of models that every promise is tested on, each built and operated once."""

from collections.abc import Iterator
from functools import cached_property

import pytest
import torch
from torch import Tensor, nn

import stridesurgery as ss
from tests.models import SAMPLE, create, image, size_of
from tests.watch import Call, pairs

torch.set_num_threads(1)  # these maps are too small to share between cores


def one_of(report: ss.Report, transition: ss.Transition) -> int | None:
    """A layer that belongs to this transition alone, if any: PVT's attention convolutions cross several levels."""
    elsewhere = {la for t in report.transitions if t != transition for la in t.layers}
    return next((la for la in transition.layers if la not in elsewhere), None)


class Case:
    """One model, awake, and what eliminating each of its transitions gives."""

    def __init__(self, name: str) -> None:
        self.name, self.size = name, size_of(name)
        self.original = create(name)

    @cached_property
    def report(self) -> ss.Report:
        return ss.inspect(self.original, self.size)

    @cached_property
    def operated(self) -> tuple[nn.Module, ...]:
        """By transition; pools run at stride 1, so that every site has values to compare."""
        return tuple(
            ss.eliminate(self.original, L=one_of(self.report, t), pool="keep", input_size=self.size)
            for t in self.report.transitions
        )

    @cached_property
    def watched(self) -> tuple[tuple[ss.Transition, list[tuple[Call, Call]]], ...]:
        """For each transition every leaf module's call, before and after."""
        runs = (list(pairs(self.original, fine, self.image)) for fine in self.operated)
        return tuple(zip(self.report.transitions, runs, strict=True))

    @cached_property
    def image(self) -> Tensor:
        return image(self.size)


@pytest.fixture(scope="session", params=SAMPLE)
def case(request: pytest.FixtureRequest) -> Iterator[Case]:
    yield Case(request.param)


LEFT_OUT = set(SAMPLE[1::2])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave half of the sample out of the laws that take long; keep what is built once in one process."""
    kept = []
    for item in items:
        callspec = getattr(item, "callspec", None)
        name = callspec.params.get("case") if callspec is not None else None
        item.add_marker(pytest.mark.xdist_group(name or item.path.name))
        if name not in LEFT_OUT or item.get_closest_marker("half") is None:
            kept.append(item)
    items[:] = kept


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    torch.manual_seed(0)
