"""On any small CNN: every transition is operated as promised, or refused with a reason. Never silently wrong."""

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, event, example, given, settings
from hypothesis import strategies as st
from timm.layers.conv2d_same import Conv2dSame
from torch import nn

import stridesurgery as ss
from tests.conftest import one_of
from tests.models import awake, image
from tests.networks import C, Function, Net, Twice, branched, chains
from tests.watch import error, grown, pairs, snapshot, unchanged

SIZES = st.tuples(st.integers(16, 49), st.integers(16, 49))
relaxed = [HealthCheck.filter_too_much, HealthCheck.too_slow, HealthCheck.data_too_large]
some = settings(max_examples=50, deadline=None, suppress_health_check=relaxed)


def ready(net: nn.Module, size: tuple[int, int]) -> nn.Module:
    """The network awake, if it runs at this size."""
    net = awake(net).eval()
    try:
        with torch.no_grad():
            assume(min(net(image(*size)).shape[-2:]) > 1)
    except RuntimeError:
        assume(False)
    return net


def operated(
    net: nn.Module, size: tuple[int, int], L: int, **options: Any
) -> nn.Module | ss.SurgeryError:
    """The operated network or the refusal, the caller's network untouched."""
    before = snapshot(net)
    try:
        return ss.eliminate(net, L=L, pool="keep", input_size=size, **options)
    except ss.SurgeryError as refusal:
        assert len(str(refusal)) > 40, refusal
        return refusal
    finally:
        assert unchanged(before, net) == []


def check_promises(
    net: nn.Module, fine: nn.Module, size: tuple[int, int], k: int, cells: tuple[int, int]
) -> None:
    """verify's word, and what a run shows, which must be the same. cells: of the map whose stride is eliminated."""
    verification = ss.verify(net, fine, size)
    assert list(fine.state_dict()) == list(net.state_dict())
    larger = False
    for before, after in pairs(net, fine, image(*size)):
        if before.given.equal(after.given) and before.given.dim() == 4:
            assert error(sample(after.made, before.made, k), before.made) < 1e-5, before.name
        elif before.given.shape == after.given.shape and not larger:
            close = torch.allclose(before.given, after.given, rtol=1e-4, atol=1e-5)
            assert close, f"{before.name} is given other values although no map is larger"
        elif not larger:
            assert error(sample(after.given, before.given, k), before.given) < 1e-5
        larger = (
            larger
            or after.made.shape != before.made.shape
            or after.given.shape != before.given.shape
        )
        if verification.exact and min(before.made.shape[2:]) > 1:
            growth = grown(before.made, after.made)
            assert growth is not None, (
                f"{before.name}: {tuple(before.made.shape)} to {tuple(after.made.shape)}"
            )
            assert growth[:2] == (1, 1) and {growth[2], growth[3]} <= {1, k}, growth
    assert larger or cells == (1, 1)


def sample(fine: torch.Tensor, coarse: torch.Tensor, k: int) -> torch.Tensor:
    return fine if fine.shape == coarse.shape else fine[:, :, ::k, ::k]


@some
@given(chains(), SIZES)
def test_chains_are_operated_at_every_transition(net: nn.Module, size: tuple[int, int]) -> None:
    """Without branches and shared modules there is nothing to refuse at sizes that suffice."""
    net = ready(net, size)
    report = ss.inspect(net, size)
    for transition in report.transitions:
        fine = operated(net, size, one_of(report, transition))
        if isinstance(fine, ss.SurgeryError):
            assert "too small" in str(fine), fine  # a reflected border would be wider than its map
            continue
        check_promises(
            net, fine, size, int(transition.factor[0]), report[transition.layers[0]].in_grid
        )


def ends_in_one_cell(stem_stride: int, *last: nn.Module) -> nn.Module:
    def same(stride: int) -> nn.Module:
        return nn.Sequential(Conv2dSame(C, C, 1, stride), nn.BatchNorm2d(C), nn.ReLU())

    return Net(same(stem_stride), [same(1), Twice(same(3)), *last, nn.MaxPool2d(2, 1, 1)])


@some
@example(ends_in_one_cell(2, Function("conv", 2, 2, ceil=False)), (16, 16))
@example(ends_in_one_cell(2, nn.Conv2d(C, C, 1, 2)), (16, 16))
@given(branched(), SIZES)
def test_branches_are_operated_or_refused(net: nn.Module, size: tuple[int, int]) -> None:
    net = ready(net, size)
    try:
        report = ss.inspect(net, size)
    except ss.SurgeryError as refusal:
        assert len(str(refusal)) > 40
        return
    for transition in report.transitions:
        layer = one_of(report, transition)
        if (
            layer is None
        ):  # every layer of it crosses others as well: they go together, and k is not this transition's
            operated(net, size, transition.layers[0])
            continue
        fine = operated(net, size, layer)
        event(f"{type(fine).__name__ if isinstance(fine, ss.SurgeryError) else 'operated'}")
        if not isinstance(fine, ss.SurgeryError):
            check_promises(net, fine, size, int(transition.factor[0]), report[layer].in_grid)


@settings(parent=some, max_examples=25)
@given(branched(), st.sampled_from([(32, 32), (48, 32), (36, 36)]))
def test_graph_form_computes_what_module_form_does(net: nn.Module, size: tuple[int, int]) -> None:
    net = ready(net, size)
    layers = [t.layers[0] for t in ss.inspect(net, size).transitions]
    assume(layers)
    module, graph = (operated(net, size, layers[0], form=form) for form in ("module", "graph"))
    assert isinstance(module, ss.SurgeryError) == isinstance(graph, ss.SurgeryError)
    if not isinstance(module, ss.SurgeryError):
        with torch.no_grad():
            assert error(graph(image(*size)), module(image(*size))) < 1e-5


@settings(parent=some, max_examples=25)
@given(chains(), st.sampled_from([(36, 36), (48, 36), (37, 41)]), st.sampled_from("hw"))
def test_one_axis_leaves_the_other_alone(net: nn.Module, size: tuple[int, int], axis: str) -> None:
    net = ready(net, size)
    layers = [t.layers[0] for t in ss.inspect(net, size).transitions]
    assume(layers)
    fine = operated(net, size, layers[0], axis=axis)
    if isinstance(fine, ss.SurgeryError):
        assert "too small" in str(fine), fine
        return
    still = 3 if axis == "h" else 2
    with torch.no_grad():
        before, after = net(image(*size)), fine(image(*size))
    assert (
        after.shape[still] == before.shape[still]
        and after.shape[5 - still] >= before.shape[5 - still]
    )


def test_module_shared_between_reductions_is_refused() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), Twice(nn.Conv2d(4, 4, 3, 2, 1))).eval()
    with pytest.raises(ss.OperatorError, match="1.shared"):
        ss.eliminate(net, L=0, input_size=32)
    both = ss.eliminate(net, S=2, input_size=32)
    assert both(image(32)).shape[-2:] == (32, 32)
