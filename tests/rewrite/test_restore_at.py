"""`restore_at`: a later layer takes the eliminated strides on, and the maps after it keep their sizes."""

import pytest
import torch

import stridesurgery as ss
from tests.conftest import Case, one_of
from tests.features.test_dual_path import maps_of
from tests.models import create, image
from tests.watch import calls, snapshot, unchanged


@pytest.mark.half
def test_maps_after_the_restoring_layer_keep_their_sizes(case: Case) -> None:
    """Between the two layers maps are k times larger, before and after them as they were."""
    report = case.report
    alone = [t for t in report.transitions if one_of(report, t) is not None]
    if len(alone) < 2:
        pytest.skip(f"{case.name} has one transition")
    first, later = alone[0], alone[1]
    try:
        fine = ss.eliminate(
            case.original,
            L=one_of(report, first),
            restore_at=one_of(report, later),
            input_size=case.size,
        )
    except ss.OperatorError as refusal:
        assert "cannot take a stride on" in str(refusal)  # blur pools, patch merging
        pytest.skip(f"{case.name}: {refusal}")
    except ss.GridError as refusal:  # without padding the border differs by a cell
        assert case.name in ("inception_v3", "torchvision/alexnet", "torchvision/squeezenet1_1"), (
            refusal
        )
        pytest.skip(f"{case.name}: {refusal}")
    before = {(c.name, c.times): c.made.shape for c in calls(case.original, case.image)}
    larger = 0
    for call in calls(fine, case.image):
        if (call.name, call.times) in before:
            larger += call.made.shape != before[call.name, call.times]
    assert larger
    with torch.no_grad():
        assert fine(case.image).shape == case.original(case.image).shape
    now = {layer.name: layer for layer in ss.inspect(fine, case.size)}
    for was in report:
        if was.name in now:  # a strided 1 x 1 convolution is a layer, and at stride 1 it is none
            k = first.factor[0] if first.level < was.reduction <= later.level else 1
            assert now[was.name].reduction[0] * k == was.reduction[0], was.name
    assert ss.verify(case.original, fine, case.size)


def test_vgg_as_the_paper_tells() -> None:
    """Pool 1 is removed and pool 2 takes its window and stride: 4 x 4 with stride 4."""
    vgg = create("torchvision/vgg11")
    fine = ss.eliminate(vgg, "S1L1", restore_at=3, input_size=300)
    pool = fine.features[5]
    assert type(pool) is torch.nn.MaxPool2d and (pool.kernel_size, pool.stride) == ((4, 4), (4, 4))
    sizes = [
        tuple(m.shape[2:]) for m in maps_of(ss.features(fine, input_size=300), image(300)).values()
    ]
    assert sizes == [(300, 300), (75, 75), (37, 37), (18, 18), (9, 9)]


@pytest.mark.parametrize(
    ("restore_at", "words"),
    [
        (0, "not after"),
        (1, "stride 1"),
        (99, "does not exist"),
        ("layer9", "no layer is named"),
        ("blocks.1.0.conv_d", r"closest are blocks\.1\.0\.conv_dw"),
    ],
)
def test_bad_requests(restore_at: object, words: str) -> None:
    net = create("mobilenetv1_100")
    before = snapshot(net)
    with pytest.raises(ss.RequestError, match=words):
        ss.eliminate(net, "S1L0", restore_at=restore_at, input_size=64)
    with pytest.raises(ss.RequestError, match="not after"):
        ss.eliminate(net, "S1L4", restore_at=2, input_size=64)
    assert not unchanged(before, net)


def test_the_recipe_holds_it() -> None:
    net = create("mobilenetv1_100")
    fine = ss.eliminate(net, "S1L0", restore_at="blocks.4.0.conv_dw", input_size=64)
    assert fine.surgery.restore_at == 12
    again = ss.eliminate(net, ss.Surgery.from_json(fine.surgery.to_json()))
    with torch.no_grad():
        assert torch.equal(again(image(64)), fine(image(64)))
