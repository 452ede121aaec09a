"""torchvision's detectors, operated whole: they run, and their anchors stand where the cells look."""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import detection, get_model, list_models
from torchvision.ops.poolers import LevelMapper

import stridesurgery as ss
from examples.detectors.__main__ import row
from examples.detectors.by_hand import by_hand
from stridesurgery.detection import Level, check_looks, levels, placement
from stridesurgery.detection.anchors import middles, points, stock_anchors
from stridesurgery.detection.pooling import MapsByStep
from tests.detection.laws import RESIZED, SMALL, Seen, check_anchors, check_losses, images, watched


@dataclass(frozen=True)
class Case:
    """A detector, and the transition of its backbone that the default run eliminates, if any."""

    options: dict[str, Any]
    generator: str
    size: tuple[int, int]  # (h, w) pixels at which maps are compared
    default: int | None = None
    runs_at: tuple[int, int] | None = None  # (w, h) pixels, of detectors with a fixed size


def _ssd(default: int, side: int, runs_at: tuple[int, int]) -> Case:
    return Case(SMALL, "anchor_generator", (side, side), default, runs_at)


FPN = Case(SMALL | RESIZED, "anchor_generator", (512, 512))
FEW = {"rpn_post_nms_top_n_test": 20, "rpn_post_nms_top_n_train": 20}
RCNN = Case(SMALL | RESIZED | FEW, "rpn.anchor_generator", (512, 512))
CASES = {  # every builder of torchvision
    "ssd300_vgg16": _ssd(2, 300, (168, 144)),
    "ssdlite320_mobilenet_v3_large": _ssd(0, 320, (192, 160)),
    "retinanet_resnet50_fpn": replace(FPN, default=0),
    "retinanet_resnet50_fpn_v2": FPN,
    "fcos_resnet50_fpn": replace(FPN, default=2),
    "fasterrcnn_resnet50_fpn": replace(RCNN, default=0),
    "fasterrcnn_resnet50_fpn_v2": RCNN,
    "fasterrcnn_mobilenet_v3_large_fpn": replace(RCNN, default=1),
    "fasterrcnn_mobilenet_v3_large_320_fpn": RCNN,
    "maskrcnn_resnet50_fpn": replace(RCNN, default=0),
    "maskrcnn_resnet50_fpn_v2": RCNN,
    "keypointrcnn_resnet50_fpn": replace(RCNN, default=0),
}


def test_every_builder_is_here() -> None:
    assert set(list_models(module=detection)) == set(CASES)


class Pair:
    """A stock detector, and its operated copy at a small size."""

    def __init__(self, name: str, transition: int) -> None:
        self.case = case = CASES[name]
        self.stock = get_model(name, **case.options).eval()
        torch.manual_seed(0)
        self.transition = ss.inspect(self.stock).transitions[transition]
        self.as_built = (
            repr(self.stock),
            {k: v.clone() for k, v in self.stock.state_dict().items()},
        )
        self.layer = self.transition.layers[0]
        self.finer = ss.eliminate(self.stock, 1, self.layer)
        self._levels: dict[nn.Module, tuple[Level, ...]] = {}
        if case.runs_at is not None:
            self.finer.transform.fixed_size = case.runs_at

    def generator(self, model: nn.Module) -> nn.Module:
        return model.get_submodule(self.case.generator)

    def levels(self, model: nn.Module) -> tuple[Level, ...]:
        if model not in self._levels:
            self._levels[model] = levels(model.get_submodule("backbone"), self.case.size)
        return self._levels[model]

    @cached_property
    def other(self) -> nn.Module:
        """Operated with the options that are not the default."""
        options = {"sizes": "stay", "centres": "carried", "pool": "keep"}
        return ss.eliminate(self.stock, 1, self.layer, **options)  # type: ignore[arg-type]

    @cached_property
    def factors(self) -> list[int]:
        """How many times finer each map is: those after the transition are."""
        before = [level.looks.step[0] for level in self.levels(self.stock)]
        return [2 if step > self.transition.level[0] else 1 for step in before]

    @cached_property
    def seen(self) -> Seen:
        """One evaluation of the operated detector on a batch of different images."""
        return watched(self.finer.eval(), self.generator(self.finer))


def _params() -> Iterator[Any]:
    """Three transitions of each detector; one or none of them in the default run."""
    for name, case in CASES.items():
        for transition in range(3):
            marks = () if transition == case.default else pytest.mark.zoo
            yield pytest.param((name, transition), id=f"{name}-{transition}", marks=marks)


@pytest.fixture(scope="module", params=_params())
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    yield Pair(*request.param)


# ---- every detector


def test_anchors_stand_where_the_cells_look(pair: Pair) -> None:
    looks = [level.looks for level in pair.levels(pair.finer)]
    check_anchors(pair.seen, looks, pair.generator(pair.stock).num_anchors_per_location())
    measured = placement(pair.finer, pair.case.size)
    assert measured.inside == 1 and measured.farthest < 1e-3


def test_maps_after_the_stride_are_finer(pair: Pair) -> None:
    levels_ = (pair.levels(model) for model in (pair.stock, pair.finer))
    assert max(pair.factors) == 2
    for old, new, k in zip(*levels_, pair.factors, strict=True):
        assert new.looks.step == (old.looks.step[0] / k, old.looks.step[1] / k)
        assert new.grid >= old.grid if k > 1 else new.grid == old.grid


def test_the_layers_map_sampled_is_the_stock_detectors(pair: Pair) -> None:
    path = f"{pair.finer.surgery.at}.{ss.inspect(pair.stock).layers[pair.layer].name}"
    image = torch.rand(1, 3, *pair.case.size)
    old, new = (output_of(path, model, image) for model in (pair.stock, pair.other))
    torch.testing.assert_close(new[..., ::2, ::2], old)
    assert new.shape[2] > old.shape[2]


class Reached(Exception):
    """Ends a forward pass at the layer that was asked for."""


def output_of(path: str, detector: nn.Module, image: Tensor) -> Tensor:
    def keep(module: nn.Module, given: Any, output: Tensor) -> None:
        raise Reached(output)

    handle = detector.get_submodule(path).register_forward_hook(keep)
    with torch.inference_mode(), pytest.raises(Reached) as reached:
        detector.get_submodule("backbone")(image)
    handle.remove()
    output: Tensor = reached.value.args[0]
    return output


def test_weights_are_the_stock_detectors_and_it_is_untouched(pair: Pair) -> None:
    text, state = pair.as_built
    assert repr(pair.stock) == text
    for model in (pair.stock, pair.finer):
        assert list(model.state_dict()) == list(state)
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    own = {p.data_ptr() for p in pair.stock.parameters()}
    assert own.isdisjoint(p.data_ptr() for p in pair.finer.parameters())
    assert type(pair.finer) is type(pair.stock) and pair.finer.training == pair.stock.training


def test_box_sizes_follow_the_maps_or_stay(pair: Pair) -> None:
    for model, follows in ((pair.finer, True), (pair.other, False)):
        shapes_ = (shapes(pair, of) for of in (model, pair.stock))
        for new, old, k in zip(*shapes_, pair.factors, strict=True):
            torch.testing.assert_close(new, old / (k if follows else 1), rtol=1e-4, atol=1e-3)


def shapes(pair: Pair, model: nn.Module) -> list[Tensor]:
    """Of each map the (boxes, 2) widths and heights of a cell's anchors."""
    generator = pair.generator(model)
    boxes = stock_anchors(generator, pair.case.size, pair.levels(model))
    return [
        b[:n, 2:] - b[:n, :2]
        for b, n in zip(boxes, generator.num_anchors_per_location(), strict=True)
    ]


def test_carried_anchors_are_as_many_cells_from_where_cells_look(pair: Pair) -> None:
    before, after = (distances(pair, model) for model in (pair.stock, pair.other))
    for old, new in zip(before, after, strict=True):
        torch.testing.assert_close(new.mean(0), old.mean(0), rtol=0, atol=1e-3)
        assert new.std(0, correction=0).max() < 1e-3  # the same for every cell


def distances(pair: Pair, model: nn.Module) -> list[Tensor]:
    """Of each map the (A, 2) distances from where cells look to their anchors, in cells."""
    maps = pair.levels(model)
    parts = zip(stock_anchors(pair.generator(model), pair.case.size, maps), maps, strict=True)
    return [
        (
            middles(boxes).view(math.prod(la.grid), -1, 2) - points(la.looks, la.grid)[:, None]
        ).flatten(0, 1)
        / torch.tensor(la.looks.step).flip(0)
        for boxes, la in parts
    ]


def test_it_trains(pair: Pair) -> None:
    check_losses(pair.finer)  # last of each detector: batch norm's statistics move


# ---- SSD


@pytest.fixture(scope="module")
def ssd() -> nn.Module:
    return detection.ssd300_vgg16(**SMALL).eval()


@pytest.fixture(scope="module")
def fine_ssd(ssd: nn.Module) -> nn.Module:
    return ss.eliminate(ssd, "S1L9")


def test_patched_by_hand_most_anchors_lie_outside_the_image(
    ssd: nn.Module, fine_ssd: nn.Module
) -> None:
    patched = by_hand(ssd, "backbone.features.16")
    by_size = [levels(m.backbone, 300) for m in (patched, fine_ssd)]
    assert by_size[0][0].grid == (75, 75)
    assert [la.grid for la in by_size[0]] == [la.grid for la in by_size[1]]  # the maps are right
    assert placement(patched).inside < 0.5


def test_the_table_says_where_anchors_stand(fine_ssd: nn.Module) -> None:
    title, cells, steps, count, inside, farthest = row("library", fine_ssd, (300, 300))
    grids = [tuple(map(int, grid.split("x"))) for grid in cells.split()]
    boxes = [h * w * n for (h, w), n in zip(grids, (4, 6, 6, 6, 4, 4), strict=True)]
    assert (title, steps, int(count)) == ("library", "4 8 16 32 32 32", sum(boxes))
    assert (inside, farthest) == ("100.0%", "0.00")


def test_one_axis_and_inputs_that_are_not_square(ssd: nn.Module) -> None:
    wide = copy.deepcopy(ssd)
    wide.transform.fixed_size = (331, 270)  # (w, h)
    finer = ss.eliminate(wide, ss.Surgery(1, (9,), axis="w"))
    measured = placement(finer)
    assert measured.levels[0].looks.step == (8, 4)
    assert measured.inside == 1 and measured.farthest < 1e-3
    both = [
        stock_anchors(m.anchor_generator, (270, 331), levels(m.backbone, (270, 331)))
        for m in (wide, finer)
    ]
    for old, new in zip(*both, strict=True):
        shape = old[0, 2:] - old[0, :2]
        torch.testing.assert_close(
            new[0, 2:] - new[0, :2], shape * torch.tensor([0.5, 1.0]), rtol=1e-4, atol=1e-3
        )


def test_a_second_surgery_starts_from_the_first(ssd: nn.Module, fine_ssd: nn.Module) -> None:
    maps, boxes = [], []
    for model in (ssd, ss.eliminate(fine_ssd, "S1L5")):
        maps.append(levels(model.backbone, 300))
        boxes.append(stock_anchors(model.anchor_generator, (300, 300), maps[-1])[0][0])
    assert maps[1][0].looks.step == (2, 2)
    torch.testing.assert_close(
        boxes[1][2:] - boxes[1][:2], (boxes[0][2:] - boxes[0][:2]) / 4, rtol=1e-4, atol=1e-3
    )


def test_a_restored_stride_leaves_later_maps_and_boxes_alone(ssd: nn.Module) -> None:
    finer = ss.eliminate(ssd, ss.Surgery(1, (2,), restore_at=9))  # pool1's stride goes to pool3
    old, new = (levels(m.backbone, 300) for m in (ssd, finer))
    assert [(la.grid, la.looks.step) for la in old] == [(la.grid, la.looks.step) for la in new]
    assert all(stand.scale == (1, 1) for stand in finer.anchor_generator.where)
    measured = placement(finer)
    assert measured.inside == 1 and measured.farthest < 1e-3


def test_what_cannot_be_done_is_said(ssd: nn.Module) -> None:
    with pytest.raises(ss.RequestError, match="'follow' or 'stay'"):
        ss.eliminate(ssd, "S1L9", sizes="halve")
    with pytest.raises(ss.RequestError, match="'looks' or 'carried'"):
        ss.eliminate(ssd, "S1L9", centres="middle")
    hidden = Level("0", (8, 8), ss.MapGeometry((8, 8), (math.nan, math.nan), (math.inf, math.inf)))
    with pytest.raises(ValueError, match="map 0 hides where its cells look"):
        check_looks([hidden])
    merged = Level("1", (8, 8), ss.MapGeometry((4, 4), (-14, -14), (527, 527)))  # HRNet's finest
    with pytest.raises(
        ValueError, match="first cell of map 1 looks at pixel -14, outside the image"
    ):
        check_looks([merged])
    with pytest.raises(ValueError, match="maps it always did"):
        ss.eliminate(ssd, ss.Surgery(1, (9,), dilate=True))
    with pytest.raises(ss.RequestError, match="layer 1 "):
        ss.eliminate(ssd, "S1L1")


# ---- RoI pooling


@pytest.fixture(scope="module")
def rcnn() -> nn.Module:
    """A Faster R-CNN that has run: its RoI pooling keeps the scales that it guessed."""
    model = detection.fasterrcnn_resnet50_fpn(**SMALL, **RESIZED).eval()
    with torch.inference_mode():
        model(images())
    return model


def test_roi_pooling_forgets_the_scales_it_guessed(rcnn: nn.Module) -> None:
    finer = ss.eliminate(rcnn, "S1L0")
    assert rcnn.roi_heads.box_roi_pool.scales == [1 / 4, 1 / 8, 1 / 16, 1 / 32]
    assert finer.roi_heads.box_roi_pool.scales == [1 / 2, 1 / 4, 1 / 8, 1 / 16]


def test_after_a_late_stride_every_map_is_pooled_from(rcnn: nn.Module) -> None:
    finer = ss.eliminate(rcnn, "S1L17")
    pool = finer.roi_heads.box_roi_pool
    assert pool.scales == [1 / 4, 1 / 8, 1 / 16, 1 / 16]
    sides = torch.arange(8.0, 800, 8)
    boxes = torch.stack([0 * sides, 0 * sides, sides, sides], dim=1)
    assert pool.map_levels([boxes]).unique().tolist() == [0, 1, 2, 3]
    watched(finer, finer.rpn.anchor_generator)


def test_maps_by_step_is_torchvisions_rule_where_steps_double() -> None:
    boxes = torch.rand(1000, 4) * 300
    boxes[:, 2:] += boxes[:, :2]
    boxes[0] = torch.tensor([0.0, 0, 224, 224])  # the border of two levels
    for first in (1, 2, 3):  # steps from 2, 4 and 8 pixels
        steps = [2.0 ** (first + i) for i in range(4)]
        assert torch.equal(
            MapsByStep(steps, 224 / 2**4)([boxes]), LevelMapper(first, first + 3)([boxes])
        )


def test_roi_pooling_has_one_scale(rcnn: nn.Module) -> None:
    with pytest.raises(ValueError, match="one scale for rows and columns"):
        ss.eliminate(rcnn, ss.Surgery(1, (0,), axis="w"))


def test_the_pyramids_own_stride_can_go(rcnn: nn.Module) -> None:
    last = ss.inspect(rcnn.backbone, 512).strided[
        -1
    ]  # a function in the forward code: the backbone becomes a graph
    finer = ss.eliminate(rcnn, f"S1L{last}")
    seen = watched(finer, finer.rpn.anchor_generator)
    assert seen.maps[-1].shape == seen.maps[-2].shape
    check_anchors(seen, [la.looks for la in levels(finer.backbone, 512)], [3] * 5)
