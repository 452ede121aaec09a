"""Operated backbones in existing detectors: they run, and their anchors stand where the cells look."""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.ops.poolers import LevelMapper

import stridesurgery as ss
from examples.detectors import (
    Encoder,
    faster_rcnn,
    finer_faster_rcnn,
    finer_retinanet,
    finer_ssd,
    pyramid,
)
from examples.detectors.__main__ import CASES as TABLE
from examples.detectors.__main__ import row
from examples.detectors.anchors import Level, check_looks, middles, points, stands, stock_anchors
from examples.detectors.backbones import map_sizes, read_info
from examples.detectors.fpn import MapsByStep, fpn_levels
from examples.detectors.measures import by_hand, placement
from examples.detectors.ssd import ssd_levels
from tests.models import awake

SMALL: dict[str, Any] = {"weights": None, "weights_backbone": None, "num_classes": 4}
RESIZED: dict[str, Any] = {"min_size": 64, "max_size": 96}  # to sides of 64 and up to 96 pixels
IMAGES = ((131, 97), (70, 101))  # (h, w): of different shapes, odd, one high and one wide
TARGET = {
    "boxes": torch.tensor([[5.0, 8, 40, 60], [50, 3, 80, 30]]),
    "labels": torch.tensor([1, 3]),
}


@dataclass(frozen=True)
class Case:
    """A detector, the function that operates it, and how both are asked for their maps and anchors."""

    build: Callable[..., nn.Module]
    options: dict[str, Any]
    operate: Callable[..., nn.Module]
    surgery: str
    levels: Callable[..., tuple[Level, ...]]
    generator: str
    size: tuple[int, int]  # (h, w) pixels at which maps are compared
    runs_at: tuple[int, int] | None = None  # (w, h) pixels, of detectors with a fixed size


def _fpn(
    build: Callable[..., nn.Module], operate: Callable[..., nn.Module], generator: str
) -> Case:
    return Case(build, SMALL | RESIZED, operate, "S1L0", fpn_levels, generator, (512, 512))


CASES = {
    "ssd": Case(
        detection.ssd300_vgg16,
        SMALL,
        finer_ssd,
        "S1L9",
        ssd_levels,
        "anchor_generator",
        (300, 300),
        (168, 144),
    ),
    "ssdlite": Case(
        detection.ssdlite320_mobilenet_v3_large,
        SMALL,
        finer_ssd,
        "S1L0",
        ssd_levels,
        "anchor_generator",
        (320, 320),
        (192, 160),
    ),
    "retinanet": _fpn(detection.retinanet_resnet50_fpn, finer_retinanet, "anchor_generator"),
    "faster_rcnn": _fpn(
        detection.fasterrcnn_resnet50_fpn, finer_faster_rcnn, "rpn.anchor_generator"
    ),
}


@dataclass(frozen=True)
class Seen:
    """What the parts of a detector gave in one pass."""

    image: tuple[int, int]  # (h, w) pixels of the batch, padding included
    maps: list[Tensor]
    anchors: list[Tensor]  # (A, 4) an image


class Pair:
    """A stock detector, and its operated copy at a small size."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.stock = case.build(**case.options).eval()
        self.as_built = (
            repr(self.stock),
            {k: v.clone() for k, v in self.stock.state_dict().items()},
        )
        self.finer = case.operate(self.stock, case.surgery)
        self._levels: dict[nn.Module, tuple[Level, ...]] = {}
        if case.runs_at is not None:
            self.finer.transform.fixed_size = case.runs_at

    def generator(self, model: nn.Module) -> nn.Module:
        return model.get_submodule(self.case.generator)

    def levels(self, model: nn.Module) -> tuple[Level, ...]:
        if model not in self._levels:
            self._levels[model] = self.case.levels(model.get_submodule("backbone"), self.case.size)
        return self._levels[model]

    @cached_property
    def other(self) -> nn.Module:
        """Operated with the options that are not the default."""
        return self.case.operate(self.stock, self.case.surgery, sizes="stay", centres="carried")

    @cached_property
    def seen(self) -> Seen:
        """One evaluation of the operated detector on a batch of different images."""
        return watched(self.finer.eval(), self.generator(self.finer))


@pytest.fixture(scope="module", params=CASES)
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    torch.manual_seed(0)
    yield Pair(CASES[request.param])


def images() -> list[Tensor]:
    return [torch.rand(3, *size) for size in IMAGES]


def watched(model: nn.Module, generator: nn.Module) -> Seen:
    """Evaluate a detector, look at what its backbone and its generator give, and check its detections."""
    kept: dict[str, Any] = {}
    handles = [
        model.get_submodule("backbone").register_forward_hook(
            lambda m, x, out: kept.update(x=x[0], maps=out)
        ),
        generator.register_forward_hook(lambda m, x, out: kept.update(anchors=out)),
    ]
    with torch.inference_mode():
        found = model(images())
    for handle in handles:
        handle.remove()
    assert len(found) == len(IMAGES)
    for detections, (h, w) in zip(found, IMAGES, strict=True):
        boxes = detections["boxes"]
        assert (
            boxes.isfinite().all()
            and (boxes >= 0).all()
            and (boxes <= torch.tensor([w, h, w, h]) + 1e-3).all()
        )
    return Seen(tuple(kept["x"].shape[2:]), list(kept["maps"].values()), kept["anchors"])


def check_anchors(seen: Seen, looks: Sequence[ss.MapGeometry], per_cell: Sequence[int]) -> None:
    """As many as cells times boxes, in the maps' order; all on the geometry and inside the image."""
    grids = [m.shape[2:] for m in seen.maps]
    counts = [n * h * w for n, (h, w) in zip(per_cell, grids, strict=True)]
    for anchors in seen.anchors:
        assert len(anchors) == sum(counts)
        assert torch.equal(anchors, seen.anchors[0])  # they know the batch, not the image
        for part, n, grid, geometry in zip(
            anchors.split(counts), per_cell, grids, looks, strict=True
        ):
            rows_, columns = geometry.centres(grid)
            expected = torch.stack(torch.meshgrid(columns, rows_, indexing="xy"), dim=-1)[
                ..., None, :
            ]
            torch.testing.assert_close(
                middles(part).view(*grid, n, 2), expected.expand(*grid, n, 2), rtol=0, atol=1e-4
            )
            assert rows_.min() >= 0 and rows_.max() <= seen.image[0]
            assert columns.min() >= 0 and columns.max() <= seen.image[1]


def check_losses(model: nn.Module) -> None:
    """In train mode with targets every loss is finite, and every backbone parameter that learns gets a gradient."""
    torch.manual_seed(0)
    losses = model.train()(images(), [copy.deepcopy(TARGET) for _ in IMAGES])
    model.eval()
    assert all(value.isfinite() for value in losses.values()), losses
    sum(losses.values()).backward()
    gradients = [p.grad for p in model.get_submodule("backbone").parameters() if p.requires_grad]
    assert gradients and all(g is not None and g.isfinite().all() for g in gradients)
    model.zero_grad()


# ---- every detector


def test_anchors_stand_where_the_cells_look(pair: Pair) -> None:
    looks = [level.looks for level in pair.levels(pair.finer)]
    check_anchors(pair.seen, looks, pair.generator(pair.stock).num_anchors_per_location())
    measured = placement(pair.generator(pair.finer), pair.levels(pair.finer), pair.case.size)
    assert measured.inside == 1 and measured.farthest < 1e-3


def test_maps_after_the_stride_are_finer(pair: Pair) -> None:
    for old, new in zip(pair.levels(pair.stock), pair.levels(pair.finer), strict=True):
        assert new.looks.step == (old.looks.step[0] / 2, old.looks.step[1] / 2)
        assert new.grid >= old.grid


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
    for model, factor in ((pair.finer, 0.5), (pair.other, 1.0)):
        for new, old in zip(shapes(pair, model), shapes(pair, pair.stock), strict=True):
            torch.testing.assert_close(new, old * factor, rtol=1e-4, atol=1e-3)


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
    levels = pair.levels(model)
    parts = zip(stock_anchors(pair.generator(model), pair.case.size, levels), levels, strict=True)
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
    return finer_ssd(ssd, "S1L9")


def test_patched_by_hand_most_anchors_lie_outside_the_image(
    ssd: nn.Module, fine_ssd: nn.Module
) -> None:
    patched = by_hand(ssd, "backbone.features.16")
    by_size = [ssd_levels(m.get_submodule("backbone"), (300, 300)) for m in (patched, fine_ssd)]
    assert by_size[0][0].grid == (75, 75)
    assert [la.grid for la in by_size[0]] == [la.grid for la in by_size[1]]  # the maps are right
    assert placement(patched.get_submodule("anchor_generator"), by_size[0], (300, 300)).inside < 0.5


def test_the_table_says_where_anchors_stand(fine_ssd: nn.Module) -> None:
    case = next(case for case in TABLE if case.name.startswith("ssd300"))
    title, cells, steps, count, inside, farthest = row(case, "library", fine_ssd)
    grids = [tuple(map(int, grid.split("x"))) for grid in cells.split()]
    boxes = [h * w * n for (h, w), n in zip(grids, (4, 6, 6, 6, 4, 4), strict=True)]
    assert (title, steps, int(count)) == ("library", "4 8 16 32 32 32", sum(boxes))
    assert (inside, farthest) == ("100.0%", "0.00")


def test_one_axis_and_inputs_that_are_not_square(ssd: nn.Module) -> None:
    wide = copy.deepcopy(ssd)
    wide.transform.fixed_size = (331, 270)  # (w, h)
    finer = finer_ssd(wide, ss.Surgery(1, (9,), axis="w"))
    levels = ssd_levels(finer.backbone, (270, 331))
    assert levels[0].looks.step == (8, 4)
    measured = placement(finer.anchor_generator, levels, (270, 331))
    assert measured.inside == 1 and measured.farthest < 1e-3
    before = stock_anchors(wide.anchor_generator, (270, 331), ssd_levels(wide.backbone, (270, 331)))
    for old, new in zip(
        before, stock_anchors(finer.anchor_generator, (270, 331), levels), strict=True
    ):
        shape = old[0, 2:] - old[0, :2]
        torch.testing.assert_close(
            new[0, 2:] - new[0, :2], shape * torch.tensor([0.5, 1.0]), rtol=1e-4, atol=1e-3
        )


def test_a_second_surgery_starts_from_the_first(ssd: nn.Module, fine_ssd: nn.Module) -> None:
    levels, boxes = [], []
    for model in (ssd, finer_ssd(fine_ssd, "S1L5")):
        levels.append(ssd_levels(model.backbone, (300, 300)))
        boxes.append(stock_anchors(model.anchor_generator, (300, 300), levels[-1])[0][0])
    assert levels[1][0].looks.step == (2, 2)
    torch.testing.assert_close(
        boxes[1][2:] - boxes[1][:2], (boxes[0][2:] - boxes[0][:2]) / 4, rtol=1e-4, atol=1e-3
    )


def test_a_restored_stride_leaves_later_maps_and_boxes_alone(ssd: nn.Module) -> None:
    finer = finer_ssd(ssd, ss.Surgery(1, (2,), restore_at=9))  # pool1's stride goes to pool3
    old, new = (ssd_levels(m.backbone, (300, 300)) for m in (ssd, finer))
    assert [(la.grid, la.looks.step) for la in old] == [(la.grid, la.looks.step) for la in new]
    assert all(stand.scale == (1, 1) for stand in finer.anchor_generator.where)
    measured = placement(finer.anchor_generator, new, (300, 300))
    assert measured.inside == 1 and measured.farthest < 1e-3


def test_what_cannot_be_done_is_said(ssd: nn.Module) -> None:
    with pytest.raises(ValueError, match="'follow' or 'stay'"):
        stands(ssd.anchor_generator, (300, 300), (), (), sizes="halve")
    with pytest.raises(ValueError, match="'looks' or 'carried'"):
        stands(ssd.anchor_generator, (300, 300), (), (), centres="middle")
    hidden = Level("0", (8, 8), ss.MapGeometry((8, 8), (math.nan, math.nan), (math.inf, math.inf)))
    with pytest.raises(ValueError, match="map 0 hides where its cells look"):
        check_looks([hidden])
    merged = Level("1", (8, 8), ss.MapGeometry((4, 4), (-14, -14), (527, 527)))  # HRNet's finest
    with pytest.raises(
        ValueError, match="first cell of map 1 looks at pixel -14, outside the image"
    ):
        check_looks([merged])
    with pytest.raises(ValueError, match="maps it always did"):
        finer_ssd(ssd, ss.Surgery(1, (9,), dilate=True))
    with pytest.raises(ss.RequestError, match="layer 1 "):
        finer_ssd(ssd, "S1L1")


# ---- RoI pooling


@pytest.fixture(scope="module")
def rcnn() -> nn.Module:
    """A Faster R-CNN that has run: its RoI pooling keeps the scales that it guessed."""
    model = detection.fasterrcnn_resnet50_fpn(**SMALL, **RESIZED).eval()
    with torch.inference_mode():
        model(images())
    return model


def test_roi_pooling_forgets_the_scales_it_guessed(rcnn: nn.Module) -> None:
    finer = finer_faster_rcnn(rcnn, "S1L0")
    assert rcnn.roi_heads.box_roi_pool.scales == [1 / 4, 1 / 8, 1 / 16, 1 / 32]
    assert finer.roi_heads.box_roi_pool.scales == [1 / 2, 1 / 4, 1 / 8, 1 / 16]


def test_after_a_late_stride_every_map_is_pooled_from(rcnn: nn.Module) -> None:
    finer = finer_faster_rcnn(rcnn, "S1L17")
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
        finer_faster_rcnn(rcnn, ss.Surgery(1, (0,), axis="w"))


def test_the_pyramids_own_stride_can_go(rcnn: nn.Module) -> None:
    last = ss.inspect(rcnn.backbone, 512).strided[
        -1
    ]  # a function in the forward code: the backbone becomes a graph
    finer = finer_faster_rcnn(rcnn, f"S1L{last}")
    seen = watched(finer, finer.rpn.anchor_generator)
    assert seen.maps[-1].shape == seen.maps[-2].shape
    check_anchors(seen, [la.looks for la in fpn_levels(finer.backbone, (512, 512))], [3] * 5)


# ---- pyramids of timm's models


def test_feature_info_of_timm_follows() -> None:
    net = timm.create_model("regnetx_002", features_only=True).eval()
    fine = ss.eliminate(net, "S1L0")
    assert fine.feature_info.reduction() == [r // 2 for r in net.feature_info.reduction()]
    for value, reduction, channels in zip(
        fine(torch.rand(1, 3, 96, 64)),
        fine.feature_info.reduction(),
        fine.feature_info.channels(),
        strict=True,
    ):
        assert value.shape == (1, channels, 96 // reduction, 64 // reduction)


@pytest.mark.parametrize("name", ("resnet18", "mobilenetv3_small_050"))
def test_a_detector_on_the_pyramid_of_any_model(name: str) -> None:
    net = timm.create_model(name, num_classes=0)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    fine = pyramid(net, "S1L0", out_channels=32)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(torch.equal(fine.state_dict()[f"body.{k}"], v) for k, v in before.items())
    plain = map_sizes(pyramid(net, None, out_channels=32), (256, 192))
    assert map_sizes(fine, (256, 192)) == {key: (2 * h, 2 * w) for key, (h, w) in plain.items()}
    assert list(plain) == ["0", "1", "2", "3", "pool"]

    model = faster_rcnn(fine, num_classes=4, **RESIZED).eval()
    check_anchors(
        watched(model, model.rpn.anchor_generator), [la.looks for la in fine.levels()], [3] * 5
    )
    assert model.roi_heads.box_roi_pool.scales == [1 / 2, 1 / 4, 1 / 8, 1 / 16]
    check_losses(model)


@pytest.mark.parametrize("layer, even", [(6, True), (0, False)])
def test_a_dilated_pyramid_keeps_the_features(layer: int, even: bool) -> None:
    net = awake(timm.create_model("resnet18")).eval()
    plain = pyramid(net, None, 16, taps=["layer2"])
    fine = pyramid(net, ss.Surgery(1, (layer,), dilate=True), 16, taps=["layer2"])
    x = torch.rand(1, 3, 64, 96)
    with torch.inference_mode():
        for old, new in zip(
            plain.eval().body(x).values(), fine.eval().body(x).values(), strict=True
        ):
            torch.testing.assert_close(new[..., ::2, ::2], old, rtol=1e-4, atol=1e-5)
    if even:
        assert [la.looks.step for la in fine.levels((64, 96))] == [(4, 4), (8, 8)]
    else:
        with pytest.raises(ValueError, match="not evenly spaced"):
            faster_rcnn(fine, num_classes=4, **RESIZED)


# ---- segmentation


@pytest.mark.parametrize("finest, depth", [(1, 5), (2, 4), (1, 3)])
def test_an_encoder_gives_the_image_and_a_map_for_each_reduction(finest: int, depth: int) -> None:
    net = Encoder(timm.create_model("resnet18"), "S1L0", depth, finest=finest).eval()
    maps = net(torch.rand(2, 3, 64, 96))
    sides = [1, *(finest * 2**i for i in range(depth))]
    assert [m.shape for m in maps] == [
        (2, c, 64 // r, 96 // r) for c, r in zip(net.out_channels, sides, strict=True)
    ]
    assert net.output_stride == sides[-1]


def test_an_encoder_says_what_it_has_not() -> None:
    with pytest.raises(ValueError, match="there are 4 maps, not 5"):
        Encoder(timm.create_model("resnet18"), "S1L0", finest=2)
    net = Encoder(timm.create_model("resnet18"), "S1L0")
    net.make_dilated(16)
    with pytest.raises(ValueError, match="the output stride is 16"):
        net.make_dilated(8)
    with pytest.raises(ValueError, match="in_chans=4"):
        net.set_in_channels(4)


@pytest.mark.parametrize(
    "decoder, finest", [("Unet", 1), ("UnetPlusPlus", 2), ("DeepLabV3Plus", 2)]
)
def test_decoders_of_smp_take_it(decoder: str, finest: int) -> None:
    smp = pytest.importorskip("segmentation_models_pytorch")
    backbone, depth = timm.create_model("resnet18"), 5 if finest == 1 else 4
    smp.encoders.encoders["fine"] = {
        "params": {},
        "encoder": lambda depth, output_stride: Encoder(backbone, "S1L0", depth, finest=finest),
    }
    own = (
        {"encoder_output_stride": 16}
        if decoder == "DeepLabV3Plus"
        else {"decoder_channels": (32, 24, 16, 8, 8)[:depth]}
    )
    try:
        net = getattr(smp, decoder)(
            "fine", encoder_weights=None, encoder_depth=depth, classes=2, **own
        )
    finally:
        del smp.encoders.encoders["fine"]
    masks = net.train()(torch.rand(2, 3, 64, 96))
    assert masks.shape == (2, 2, 64, 96)
    masks.mean().backward()
    assert backbone.conv1.weight.grad is None  # the encoder's weights are its own
    assert all(p.grad is not None for p in net.encoder.parameters() if p.requires_grad)


def test_channels_of_the_encoder_are_those_of_its_maps() -> None:
    net = Encoder(timm.create_model("mobilenetv3_small_100"), "S1L0", 4)
    assert net.out_channels[1:] == read_info(net.maps).channels()
