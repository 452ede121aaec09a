"""Two paths of a detector on one set of weights."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import detection

import stridesurgery as ss
from tests.detection.laws import IMAGES, RESIZED, SMALL, images, target
from tests.models import awake

FEW = {"rpn_post_nms_top_n_test": 20, "rpn_post_nms_top_n_train": 20}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "ssdlite320_mobilenet_v3_large": ("S1L0", {}),
    "retinanet_resnet50_fpn": ("S1L17", RESIZED),
    "maskrcnn_resnet50_fpn": ("S1L0", RESIZED | FEW),
}


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[Any, str]:
    torch.manual_seed(0)
    surgery, options = CASES[request.param]
    return awake(getattr(detection, request.param)(**SMALL, **options)).eval(), surgery


def same(found: list[dict[str, Tensor]], wanted: list[dict[str, Tensor]]) -> None:
    assert any(len(one["boxes"]) for one in wanted)
    for a, b in zip(found, wanted, strict=True):
        assert list(a) == list(b)
        torch.testing.assert_close(a["scores"], b["scores"], rtol=1e-4, atol=1e-5)
        close = torch.isclose(a["boxes"], b["boxes"], rtol=1e-3, atol=1e-2).all(dim=1)
        assert close.float().mean() > 0.95  # boxes of equal score may change places


def test_each_path_is_the_detector_that_it_stands_for(case: tuple[Any, str]) -> None:
    model, surgery = case
    both = ss.detection.dual_path(model, surgery, combine="split")
    fine, x = ss.eliminate(model, surgery, centres="carried"), images()
    if hasattr(model, "transform"):
        fine.transform = model.transform  # which pads to a multiple of the larger stride
    with torch.inference_mode():
        large, small = both(x)
        same(large, model(x))
        same(small, fine(x))


def test_the_bound_chooses_and_one_suppression_follows(case: tuple[Any, str]) -> None:
    model, surgery = case
    if isinstance(model, detection.MaskRCNN):
        pytest.skip("keeps a suppression of its own before the masks")
    both, x = ss.detection.dual_path(model, surgery, bound=0), images()
    with torch.inference_mode():
        same(both(x), model(x))  # no box is smaller than nothing
        both.bound = 1e9
        large, small = both.paths(x)
        for i, found in enumerate(both(x)):
            parts = [torch.cat([part[i]["boxes"] for part in (large, small)])]
            assert len(found["boxes"]) <= both.detections_per_img
            assert (found["scores"].diff() <= 0).all()
            for box in found["boxes"]:
                assert (parts[0] == box).all(dim=1).any()


def test_one_set_of_weights_learns_from_both(case: tuple[Any, str]) -> None:
    model, surgery = case
    if isinstance(model, detection.MaskRCNN):
        pytest.skip("slow, and trains as Faster R-CNN does")
    both = ss.detection.dual_path(model, surgery).train()
    parameters = list(both.parameters())
    assert sum(p.numel() for p in parameters) == sum(p.numel() for p in model.parameters())
    torch.manual_seed(0)
    losses = both(images(), [target(h, w) for h, w in IMAGES])
    assert {key.partition(".")[0] for key in losses} == {"large", "small"}
    sum(losses.values()).backward()
    assert all(
        p.grad is not None and p.grad.isfinite().all() for p in parameters if p.requires_grad
    )
    twin = copy.deepcopy(both).eval()
    with torch.inference_mode():
        assert len(twin(images()[:1])) == 1
    assert sum(p.numel() for p in twin.parameters()) == sum(p.numel() for p in parameters)


def test_the_bound_with_the_best_ap_is_found() -> None:
    torch.manual_seed(0)
    model = awake(detection.ssdlite320_mobilenet_v3_large(**SMALL)).eval()
    both, x = ss.detection.dual_path(model, "S1L0"), images()
    with torch.inference_mode():
        truth = [
            {key: value[:20] for key, value in found.items()}
            for found in both.merged(*both.paths(x), bound=1e9)
        ]
    found = ss.detection.choose_bound(both, [(x, truth)], (0, 40, 1e9))
    assert found[next(iter(found))] == max(found.values()) == found[1e9] > found[0] > 0
    with pytest.raises(ss.RequestError, match="in evaluation mode"):
        ss.detection.choose_bound(both.train(), [(x, truth)])
    with pytest.raises(ss.RequestError, match="no images"):
        ss.detection.choose_bound(both.eval(), [])


def test_what_has_no_known_suppression_is_refused() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Conv2d(3, 4, 3, stride=2, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

    with pytest.raises(ss.RequestError, match="Plain has no backbone and suppression"):
        ss.detection.dual_path(Plain(), "S1L0")
    with pytest.raises(ss.RequestError, match="'merge' or 'split'"):
        ss.detection.dual_path(Plain(), "S1L0", combine="concat")


def test_a_backbone_of_one_map_has_no_names_for_two() -> None:
    net = detection.ssdlite320_mobilenet_v3_large(**SMALL).backbone.features[0]
    net.out_channels = 672
    sizes = detection.anchor_utils.AnchorGenerator(((32,),), ((1.0,),))
    model = detection.RetinaNet(net, 4, anchor_generator=sizes, **RESIZED).eval()
    assert ss.eliminate(model, "S1L0").anchor_generator.where[0].scale == (0.5, 0.5)
    with pytest.raises(ss.RequestError, match="It must return its maps in a dict"):
        ss.detection.dual_path(model, "S1L0")
