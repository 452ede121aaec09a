"""The page says what the records say; the stock detector under surgery starts as what it was."""

import os
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

import stridesurgery as ss
from examples import training_free
from examples.ssd.data import CocoImages, Split
from examples.ssd.evaluate import load_truth
from examples.ssd.programs import DetectionError
from examples.study import (
    fastestdet,
    fine_tuning,
    page,
    recalibration,
    records,
    small_objects,
    stock_detector,
)
from examples.study import training_free as free
from examples.study.stock import load_stock
from examples.study.stock_boxes import Candidates, as_results, suppress

DATA = os.environ.get("STRIDESURGERY_DATA")
needs_data = [pytest.mark.data, pytest.mark.skipif(DATA is None, reason="no data folder")]


# ---- records and the page


def test_a_record_is_there_or_was_measured_otherwise(tmp_path: Path) -> None:
    path, settings = tmp_path / "new" / "row.json", {"images": 3, "rate": 0.1}
    assert not records.is_done(path, settings)
    records.write(path, {"settings": settings, "ap": float("nan"), "ms": 1.23456789})
    assert records.is_done(path, settings)
    assert records.read(path) == {"settings": settings, "ap": None, "ms": 1.23457}
    with pytest.raises(DetectionError, match=r"images 3 \(now 4\)"):
        records.is_done(path, {**settings, "images": 4})


@pytest.mark.parametrize("path", page.PAGES, ids=lambda path: path.name)
def test_every_table_of_the_pages_is_what_the_records_say(path: Path) -> None:
    text = path.read_text()
    assert page.rewritten(text) == text and len(page.MARK.findall(text)) > 0
    changed = text.replace("17.0 ±", "71.0 ±", 1)
    assert page.rewritten(changed) == text or "17.0 ±" not in text


@pytest.mark.parametrize("name", ["docs/results.md", "docs/results_details.md"])
def test_no_figure_stands_in_the_prose(name: str) -> None:
    """Percents are in tables only, which the records fill; so they cannot go stale."""
    prose = page.MARK.sub("", (page.ROOT / name).read_text())
    known = {"0.75", "1.96", "0.5"}  # the width of MobileNet, an interval, ShuffleNet's width
    assert {n for n in re.findall(r"\d+\.\d+", prose)} <= known


def test_the_first_page_is_one_screen() -> None:
    text = (page.ROOT / "docs/results.md").read_text()
    [table] = [m[0] for m in page.MARK.finditer(text)]
    assert len([line for line in table.splitlines() if line.startswith("|")]) - 2 <= 8
    assert text.count("![") == 1 and len(text.splitlines()) <= 45


def test_a_difference_is_bold_where_it_is_clear() -> None:
    record = {"objects": {"": 100, "_small": 3}, "figures": {}, "differences": {"as is": {}}}
    record["differences"]["as is"] = {"ap": [2.0, 1.0, 3.0], "ap_small": [9.0, 8.0, 10.0]}
    assert page.shown(record, "ap", "as is") == "**+2.0 ± 1.0**"
    assert page.shown(record, "ap_small", "as is") == page.shown(record, "ap", "else") == "–"
    record["differences"]["as is"]["ap"] = [2.0, -1.0, 5.0]
    assert page.shown(record, "ap", "as is") == "+2.0 ± 3.0"


# ---- bounds, names, boxes


def test_each_photograph_gets_the_bound_that_the_other_half_chose() -> None:
    swept = {
        64.0: [5.0, 1.0, 3.0],
        128.0: [2.0, 4.0, 3.0],
    }  # AP on the even ones, the odd ones, all
    assert free.best(swept) == [64.0, 128.0]
    assert free.crossed(swept, 4) == [128.0, 64.0, 128.0, 64.0]
    assert free.best({0.0: [5.0, 1.0, 3.0], 48.0: [5.0, 0.5, 3.0]}) == [0, 0]  # the cheaper one
    boxes = torch.tensor([(0.0, 0.0, 9.0, 9.0)])
    views = [Candidates(boxes + k, torch.tensor([0.9]), torch.tensor([1])) for k in (0, 50)]
    counts = [len(next(free.joined(views[:1], views[1:], [b])).boxes) for b in (0, 256)]
    assert counts == [1, 2]


def test_a_row_is_a_configuration_or_a_backbone() -> None:
    assert small_objects.named("SSDMnetv1-S1L0") == ["--config", "SSDMnetv1-S1L0"]
    dual = ["--backbone", "resnet18", "--surgery", "S1L0", "--dual"]
    assert small_objects.named("resnet18:S1L0:dual") == dual


def test_the_second_detectors_boxes_shrink_with_its_cells() -> None:
    names = ("as is", "704 pixels", "S1L0", "S1L2, recalibrated")
    assert [recalibration.ROWS[n].box_scale for n in names] == [1.0, 0.5, 0.5, 0.5]


# ---- with the weights


@pytest.fixture(scope="module")
def photographs() -> CocoImages:
    folder = Path(DATA or "") / "coco_public"
    return CocoImages(Split(folder / "instances.json", folder / "images"), first=3)


class TestWithData:
    pytestmark = needs_data

    def test_the_base_row_starts_as_the_stock_detector(self, photographs: CocoImages) -> None:
        """The same boxes and scores as by the stock detector's own code, on real photographs."""
        net = load_stock(Path(DATA or "") / "weights")
        view = free.views(net)[free.AS_IS]
        ids = list(photographs.categories)
        ssd = fine_tuning.build(fine_tuning.ROWS["base"], net, ids).eval()
        for position in range(3):
            image = photographs._load_image(photographs.ids[position])
            theirs = as_results(suppress(view.seen(image)), 0)
            pixels = torch.from_numpy(free.as_input(free.resized(image, 300)).numpy() / 2 + 0.5)
            with torch.inference_mode():
                [ours] = ssd([(pixels[0] * 256 / 255)])
            labels = [ids[k - 1] for k in ours["labels"][:5].tolist()]
            assert labels == [d["category_id"] for d in theirs[:5]]
            scores = [d["score"] for d in theirs[:5]]
            torch.testing.assert_close(ours["scores"][:5].tolist(), scores, rtol=1e-3, atol=1e-3)

    @pytest.mark.parametrize("name", ["S1L0", "S1L0-Split", "S1L0-Concat", "S1L0-Fmap1"])
    def test_every_row_takes_a_step(self, photographs: CocoImages, name: str) -> None:
        net, ids = load_stock(Path(DATA or "") / "weights"), list(photographs.categories)
        ssd = fine_tuning.build(fine_tuning.ROWS[name], net, ids).train()
        target = {"boxes": torch.tensor([[20.0, 20, 90, 120]]), "labels": torch.tensor([1])}
        losses = ssd([torch.rand(3, 300, 300)], [target])
        assert losses["positives"] > 0
        (losses["bbox_regression"] + losses["classification"]).backward()
        assert all(p.grad is not None for p in ssd.head.parameters())

    def test_fastestdet_finds_what_is_there(self, photographs: CocoImages) -> None:
        net = fastestdet.load(Path(DATA or "") / "weights")
        row, folder = recalibration.ROWS["as is"], photographs.split.images
        truth = load_truth(photographs.split.annotations)
        found = recalibration.evaluated(net, row, folder, truth, photographs.ids)
        assert found.images == 3 and found.figures["ar"][0] > 5

    def test_a_grey_photograph_can_be_seen(self) -> None:
        net = load_stock(Path(DATA or "") / "weights")
        assert free.views(net)[free.LARGE].seen(Image.new("RGB", (40, 30))).boxes.shape[1] == 4


@pytest.mark.data
@pytest.mark.skipif(DATA is None, reason="no data folder")
def test_the_librarys_two_paths_find_what_is_built_by_hand() -> None:
    data = Path(DATA or "")
    truth = load_truth(data / "coco_public" / "instances.json")
    stock = stock_detector.StockDetector(load_stock(data / "weights")).eval()
    both = ss.detection.dual_path(stock, "S1L0", bound=192, input_size=300)
    by_hand = training_free.Detectors(load_stock(data / "weights"))
    for image_id in sorted(truth.imgs)[:40:20]:
        photograph = training_free.read(truth, data / "coco_public" / "images", image_id)
        with torch.inference_mode():
            views, found = by_hand.views(photograph), both([photograph])[0]
        parts = (views["original"], training_free.below(views["fine"], 192))
        wanted = suppress(training_free.merged(*parts))
        torch.testing.assert_close(found["scores"], wanted.scores)
        corners = wanted.boxes[:, [1, 0, 3, 2]]
        torch.testing.assert_close(found["boxes"], corners, rtol=1e-4, atol=1e-2)
        assert torch.equal(found["labels"], wanted.categories)
