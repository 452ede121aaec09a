"""What `compare` tells of a surgery: the maps that come out, what it costs, and the larger input beside it."""

import pytest
import timm
import torch

import stridesurgery as ss
from tests.models import awake


@pytest.mark.parametrize(
    "name, surgeries, taps",
    [
        ("mobilenetv1_100", ["S1L0", "S2L4-6", ss.Surgery(1, (12,), dilate=True)], (11, 13)),
        ("resnet18", ["S1L1", ss.Surgery(1, (16,), axis="w")], None),
        ("convnext_atto", [ss.Surgery(1, (0,), stride=2)], None),
        ("inception_v3", ["S1L0"], None),
    ],
)
def test_rows_are_the_networks_that_are_built(name, surgeries, taps):
    net, size = awake(timm.create_model(name)).eval(), 160
    told = ss.compare(net, surgeries, size, taps=taps)
    modules = ss.features(net, taps, input_size=size).feature_info.module_name()
    assert told[0].name == "as is"
    for row in told:
        built = net if row.surgery is None else ss.eliminate(net, row.surgery, input_size=size)
        assert row.cost == ss.cost(built, row.input_size)
        with torch.no_grad():
            maps = ss.features(built, modules, input_size=row.input_size)(
                torch.randn(1, 3, *row.input_size)
            )
        assert [tuple(m.shape[2:]) for m in maps.values()] == list(row.grids)
        assert [m.shape[1] for m in maps.values()] == [f.channels for f in row.maps]


def test_each_surgery_has_an_equal_cost_rival():
    net = timm.create_model("mobilenetv1_100").eval()
    told = ss.compare(net, ["S1L0", "S1L6"], 256)
    rivals = [row for row in told if row.surgery is None][1:]
    assert len(rivals) == 2
    for row, rival in zip((told["S1L0"], told["S1L6"]), rivals, strict=True):
        assert rival.cost.macs == pytest.approx(row.cost.macs, rel=0.15)  # sizes go in steps of 32
        assert all(side % 32 == 0 for side in rival.input_size)
    columns = ss.compare(net, ss.Surgery(1, (12,), axis="w"), 256)
    assert columns[-1].input_size[0] == 256 < columns[-1].input_size[1]


def test_the_rival_is_the_nearest_where_compute_grows_faster_than_the_area():
    told = ss.compare(timm.create_model("pvt_v2_b0"), ss.Surgery(1, (0,), stride=2), 224)
    row, rival = told[1:]
    assert row.cost.macs / 1.15 < rival.cost.macs < row.cost.macs * 1.15


def test_frozen_weightless_and_repeated():
    frozen = timm.create_model("mobilenetv3_small_050").requires_grad_(False)
    told = ss.compare(
        frozen, ["S1L0", "S1L0", ss.Surgery(1, (0,), form="graph")], 64, measure=True, rounds=1
    )
    assert [row.name for row in told][:3] == ["as is", "S1L0", "S1L0, as a graph"]
    assert all(row.training_step is not None for row in told)
    assert not any(p.requires_grad or p.grad is not None for p in frozen.parameters())
    with pytest.raises(ss.ModelError, match="meta device"):
        ss.compare(frozen.to("meta"), "S1L0", 64, measure=True)


def test_a_model_of_one_size_has_no_rival_and_the_table_says_so():
    net = timm.create_model("vit_tiny_patch16_224").eval()
    told = ss.compare(net, ss.Surgery(1, (0,), stride=8, dilate=True))
    assert [row.name for row in told] == ["as is", "S1L0, to stride 8, dilated"]
    assert "no larger input to stand beside S1L0" in str(told)


def test_measured_in_turn_on_copies():
    net = timm.create_model("mobilenetv3_small_050").train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    told = ss.compare(net, "S1L0", 64, measure=True, rounds=3)
    assert len(told) == 3
    for row in told:
        for timing in (row.latency, row.training_step):
            assert len(timing.seconds) == 3
            assert timing.spread[0] <= timing.median <= timing.spread[1]
    assert told["as is"].latency.ratio(told["as is"].latency) == 1
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert "training step" in str(told)


def test_bad_requests_are_told():
    net = timm.create_model("resnet18")
    with pytest.raises(ss.RequestError, match="Strided layers"):
        ss.compare(net, "S1L3")
    with pytest.raises(ss.RequestError, match="inside a residual"):
        ss.compare(net, "S1L0", taps=11)
    for nonsense in (None, 3, b"S1L0", [3]):
        with pytest.raises(ss.RequestError, match="surgeries are names"):
            ss.compare(net, nonsense)
    with pytest.raises(ss.RequestError, match="rounds"):
        ss.compare(net, "S1L0", 64, measure=True, rounds=0)
    with pytest.raises(KeyError, match="the rows are as is, S1L0"):
        ss.compare(net, "S1L0", 64)["S2L0"]
