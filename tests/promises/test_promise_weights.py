"""Promise 1: the same state_dict keys, in the same order, with the same values; and the caller's model untouched."""

import copy

import pytest
import torch
from torch import nn

import stridesurgery as ss
from tests.conftest import Case
from tests.models import create, size_of
from tests.watch import snapshot, unchanged


def test_state_dict_is_the_original_state_dict(case: Case) -> None:
    before = case.original.state_dict()
    for fine in case.operated:
        after = fine.state_dict()
        assert list(after) == list(before)
        for key, value in before.items():
            assert after[key].dtype == value.dtype and after[key].equal(value), key


@pytest.mark.half
def test_result_shares_no_memory_with_the_original(case: Case) -> None:
    mine = {p.data_ptr() for p in case.original.parameters()}
    for fine in case.operated:
        assert not mine & {p.data_ptr() for p in fine.parameters()}


@pytest.mark.half
def test_checkpoint_loads_into_the_result_and_back(case: Case) -> None:
    fine = copy.deepcopy(case.operated[-1])
    other = copy.deepcopy(case.original)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(2)
    fine.load_state_dict(other.state_dict(), strict=True)
    for (key, loaded), wanted in zip(
        fine.state_dict().items(), other.state_dict().values(), strict=True
    ):
        assert loaded.equal(wanted), key
    other.load_state_dict(case.operated[0].state_dict(), strict=True)
    for (key, loaded), wanted in zip(
        other.state_dict().items(), case.original.state_dict().values(), strict=True
    ):
        assert loaded.equal(wanted), key


def test_caller_keeps_its_model_untouched(case: Case) -> None:
    check_caller(case.original, case.size, "module")


@pytest.mark.parametrize(
    "name", ["resnet18d", "tf_efficientnet_b0", "hrnet_w18_small", "torchvision/swin_t"]
)
def test_caller_keeps_its_model_untouched_by_a_graph(name: str) -> None:
    check_caller(create(name), size_of(name), "graph")


def check_caller(model: nn.Module, size: int, form: str) -> None:
    """Neither success nor refusal nor verification leaves a trace."""
    first = next(m for m in model.modules() if not list(m.children()))
    handle = first.register_forward_hook(lambda module, args, result: None)
    first.train()  # a mixed mode: one module trains, the rest does not
    before = snapshot(model)
    try:
        fine = ss.eliminate(model, S=1, input_size=size, form=form)
        assert unchanged(before, model) == []
        for wrong in ({"L": 999}, {"S": 1, "stride": 7}, {"L": 0, "S": 3}):
            with pytest.raises(ss.RequestError):
                ss.eliminate(model, **wrong, input_size=size, form=form)
            assert unchanged(before, model) == []
        ss.verify(model, fine, size)
        assert unchanged(before, model) == []
    finally:
        first.eval()
        handle.remove()


@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "gcvit_xxtiny", "mixer_s32_224", "crossvit_9_240"]
)
def test_caller_keeps_its_model_untouched_by_a_refusal(name: str) -> None:
    model = create(name)
    before = snapshot(model)
    for inplace in (False, True):
        with pytest.raises(ss.SurgeryError):
            ss.eliminate(model, S=1, inplace=inplace)
        assert unchanged(before, model) == []
