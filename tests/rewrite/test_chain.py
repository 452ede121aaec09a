"""A surgery that follows another one: `eliminate` carries out both."""

import pytest
import torch

import stridesurgery as ss
from tests.models import create, image


@pytest.mark.parametrize("form", ["module", "graph"])
def test_a_chain_is_carried_out_in_order(form: str) -> None:
    net = create("resnet18")
    first = ss.eliminate(net, "S1L0", form=form, input_size=64)
    twice = ss.eliminate(first, "S1L1", form=form, input_size=64)
    again = ss.eliminate(net, ss.Surgery.from_json(twice.surgery.to_json()))
    assert again.surgery == twice.surgery and again.surgery.after == first.surgery
    assert torch.equal(again(image(64)), twice(image(64)))
    assert ss.verify(net, again).exact == ss.verify(net, twice).exact


def test_a_chain_in_place_is_all_or_nothing() -> None:
    net = create("resnet18")
    twice = ss.eliminate(ss.eliminate(net, "S1L0", input_size=64), "S1L1", input_size=64)
    impossible = ss.Surgery(1, (99,), after=twice.surgery.after, input_size=(64, 64))
    strides = [layer.stride for layer in ss.inspect(net, 64)]
    for chain, options in ((impossible, {}), (twice.surgery, {"stride": 2})):
        with pytest.raises(ss.RequestError):
            ss.eliminate(net, chain, inplace=True, **options)
        assert [layer.stride for layer in ss.inspect(net, 64)] == strides and not hasattr(
            net, "surgery"
        )
    assert ss.eliminate(net, twice.surgery, inplace=True) is net and net.surgery == twice.surgery
    assert torch.equal(net(image(64)), twice(image(64)))


def test_options_beside_a_chain_are_refused() -> None:
    net = create("resnet18")
    chain = ss.eliminate(ss.eliminate(net, "S1L0", input_size=64), "S1L1", input_size=64).surgery
    with pytest.raises(ss.RequestError, match="holds its options"):
        ss.eliminate(net, chain, pool="keep")
    with pytest.raises(ss.RequestError, match="carries out both"):
        ss.compare(net, chain)
