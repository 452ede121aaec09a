"""Records are written once, experiments go on where they stopped, and the page says what is there and what is not."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from examples.experiments import (
    bootstrap,
    checks,
    fastestdet,
    gather,
    latency,
    recalibration,
    records,
    small_objects,
    stock_training,
    trained,
    views,
)
from examples.experiments import training_free as free
from examples.experiments.page import choosing, headline, protocol
from examples.experiments.page.beside_paper import beside_paper, verdicts
from examples.experiments.page.reading import all_in
from examples.experiments.page.words import compared
from examples.ssd import boxes
from examples.ssd.annotations import Split
from examples.ssd.errors import RequestError
from examples.ssd.stock import LOW_TAP, load_stock, prepare
from examples.ssd.stock_boxes import (
    Candidates,
    anchors,
    decode,
    learned_centres,
    six_layers,
    usual_centres,
)
from examples.ssd.stock_networks import with_stride_eliminated

DATA = os.environ.get("STRIDESURGERY_DATA")
needs_data = pytest.mark.skipif(
    DATA is None, reason="STRIDESURGERY_DATA names no folder with images and weights"
)
NOWHERE = Split(Path("instances.json"), Path("images"))  # never read
OBJECTS = [f"{s}{c}" for s in ("", "_small", "_medium", "_large") for c in ("", " person", " car")]
KEYS = [f"{m}{s}" for m in ("ap", "ar") for s in ("", "_small", "_medium", "_large")]


# ---- records


def test_a_record_is_there_or_was_measured_otherwise(tmp_path: Path) -> None:
    path, settings = tmp_path / "new" / "row.json", {"images": 3, "rate": 0.1}
    assert not records.is_done(path, settings)
    records.write(path, {"settings": settings, "ap": float("nan"), "ms": 1.23456789})
    assert records.is_done(path, settings)
    assert records.read(path) == {"settings": settings, "ap": None, "ms": 1.23457}
    with pytest.raises(RequestError, match=r"images 3 \(now 4\)"):
        records.is_done(path, {**settings, "images": 4})


def test_a_row_that_is_there_is_not_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(small_objects, "data_folder", lambda: tmp_path)
    monkeypatch.setattr(small_objects, "images_in", lambda *_: 7)
    started: list[str] = []
    monkeypatch.setattr(
        small_objects, "train_row", lambda row, *_: started.append(row) or pytest.skip("trained")
    )
    words = [
        "bccd",
        "--rows",
        "SSDMnetv1",
        "--seeds",
        "0",
        "--work",
        str(tmp_path),
        "--results",
        str(tmp_path),
    ]
    asked = small_objects.parse_arguments(words)
    asked.data = tmp_path
    settings = small_objects.settings(asked, 7)
    records.write(
        tmp_path / "small_objects" / "bccd" / "SSDMnetv1-seed0.json", {"settings": settings}
    )
    small_objects.main(words)
    assert started == []


def test_a_row_is_compared_with_rivals_that_run_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(small_objects, "data_folder", lambda: tmp_path)
    monkeypatch.setattr(small_objects, "images_in", lambda *_: 7)
    monkeypatch.setattr(small_objects, "find_split", lambda *_: NOWHERE)
    monkeypatch.setattr(small_objects, "train_row", lambda *_: tmp_path)
    known = SimpleNamespace(
        ssd=None, row=SimpleNamespace(size=300), categories=SimpleNamespace(names=("a", "b"))
    )
    monkeypatch.setattr(small_objects, "detector", lambda _: known)
    monkeypatch.setattr(trained, "detect", lambda ssd, split, device, kept: kept.write_text("[]"))

    def facts(
        ssd: object, size: int, device: str, kept: Path, judge: object, others: dict[str, Path]
    ) -> dict:
        assert judge == trained.Judge(NOWHERE, 20, ("a", "b"))
        there = {name: {} for name, path in others.items() if path.is_file()}
        return {"figures": {"ap": [1.0]}, "differences": there}

    monkeypatch.setattr(trained, "facts", facts)
    rows = ["SSDMnetv1-S1L0", "SSDMnetv1", "SSDMnetv1-Size600"]
    words = [
        "bccd",
        "--rows",
        *rows,
        "--seeds",
        "0",
        "--work",
        str(tmp_path / "work"),
        "--results",
        str(tmp_path),
    ]
    small_objects.main(words)
    found = all_in(tmp_path / "small_objects" / "bccd")
    assert {name: list(r["differences"]) for name, r in found.items()} == {
        "SSDMnetv1-seed0": [],
        "SSDMnetv1-Size600-seed0": ["SSDMnetv1"],
        "SSDMnetv1-S1L0-seed0": ["SSDMnetv1", "SSDMnetv1-Size600"],
    }


# ---- the page


def record(title: str, bases: tuple[str, ...], seed: int = 0) -> dict:
    """A made-up row in the form that the experiments write."""
    draw = np.random.default_rng(seed)

    def interval(centre: float) -> list[float]:
        return [centre, centre - 1, centre + 1]

    return {
        "row": title,
        "settings": {"images": 4, "with recovered boxes": 1, "of train2017": 3},
        "gmacs": 1.0 + seed,
        "figures": {key: interval(float(draw.uniform(5, 40))) for key in KEYS},
        "differences": {
            base: {key: interval(float(draw.normal() * 3)) for key in KEYS} for base in bases
        },
        "objects": {key: 100 for key in OBJECTS},
        "left out": ["car, large"],
        "splits": {"train2017": interval(9.0), "val2017": interval(8.0)},
        "splits against as is": {"train2017": interval(0.5), "val2017": interval(1.5)},
        "hardware": "2 CPU cores",
    }


def test_the_page_is_written_from_the_records_alone(tmp_path: Path) -> None:
    results = tmp_path / "results"
    rivals = ("as is", "pyramid, 300 pixels enlarged", "pyramid, 600 pixels")
    for number, title in enumerate(("as is", "S1L0", "S1L0 by hand", "600 pixels")):
        bases = () if number == 0 else ("as is", "S1L0 by hand", "600 pixels")
        records.write(results / "training_free" / f"{title}.json", record(title, bases, number))
    dual = {
        "bounds": [128.0, 192.0],
        "sweep": {"128.0": [1, 2, 3.0], "192.0": [2, 3, 4.0]},
        "difference": 1e-7,
    }
    records.write(
        results / "training_free" / "S1L0 dual path.json", {**record("", rivals, 9), **dual}
    )
    settings = {
        "images": 30,
        "epochs": 3,
        "batch": 4,
        "steps": 21,
        "rate": 1e-4,
        "augmented": True,
        "amp": "bf16",
    }
    for number, (name, bases) in enumerate((("base", ()), ("S1L0", ("base",)))):
        trained = {"row": name, "settings": settings, "seed": 0, "evaluated": 9}
        records.write(
            results / "fine_tuning" / f"{name}-seed0.json",
            {**record(name, bases, number), **trained},
        )
    started = {"row": "S1L0", "settings": {**settings, "steps": 0}, "seed": 0, "evaluated": 9}
    records.write(
        results / "fine_tuning" / "S1L0-untrained.json", {**record("S1L0", ("base",), 5), **started}
    )
    for number, (name, bases) in enumerate(
        (("SSDMnetv1", ()), ("mobilenet_v2", ()), ("mobilenet_v2:S1L0", ("mobilenet_v2",)))
    ):
        known = {"row": name, "backbone": small_objects.backbone(name)}
        path = results / "small_objects" / "bccd" / f"{small_objects.file_name(name, 0)}.json"
        about = {"settings": {**settings, "weights": "some.safetensors"}, "seed": 0, "evaluated": 9}
        records.write(path, {**record(name, bases, number), **known, **about})
    gather.main(["--results", str(results)])
    page = (tmp_path / "results.md").read_text()
    shown = records.read(results / "training_free" / "S1L0 dual path.json")["figures"]["ap_small"][
        0
    ]
    assert "| S1L0 dual path |" in page and f"{shown:.1f} ± 1.0" in page
    assert (
        "Not run yet: S1L6 by hand" in page
        and "S1L0 128/192" not in page
        and "S1L0 dual path 128/192" in page
    )
    assert (results / "training_free.png").read_bytes().startswith(b"\x89PNG")
    assert (
        "fine_tuning --rows base S1L0 --seeds 0 --epochs 3 --batch 4 --lr 0.0001 --amp bf16 --first 30"
        in page
    )
    assert (
        "| S1L0, against as is |" in page
        and "| fine-tuned, S1L0, against as is, trained as long |" in page
    )
    assert "Not run: the rows Size600, S1L6" in page and "Not counted: car, large." in page
    assert "| S1L0, before training, against as is, before training |" in page
    assert "AP against as is: S1L0 +1.5 ± 1.0 (clear), S1L0 dual path +1.5 ± 1.0 (clear)" in page
    assert (
        "small_objects bccd --weights some.safetensors --rows mobilenet_v2 mobilenet_v2:S1L0"
        in page
    )
    assert "Latency" not in page


def test_the_page_and_the_readme_say_what_the_records_say(tmp_path: Path) -> None:
    results = shutil.copytree(records.RESULTS, tmp_path / "results")
    gather.main(["--results", str(results)])
    assert (tmp_path / "results.md").read_text() == records.RESULTS.with_suffix(".md").read_text()
    assert headline.headline(*gather.headline_records(results)) in headline.README.read_text()


def compared_row(**changes: float) -> dict:
    """A made-up row that differs from the base by these figures, ± 1; of large objects there are too few."""
    told = {key: [value, value - 1, value + 1] for key, value in changes.items()}
    objects = {key: 3 if key.startswith("_large") else 100 for key in OBJECTS}
    return {**record("", ()), "objects": objects, "differences": {"as is": told}}


def test_what_is_said_follows_the_intervals() -> None:
    up = compared_row(ap=2.0, ar=0.5, ap_small=3.0, ap_medium=-4.0, ap_large=9.0)
    [said] = choosing.plain({"S1L0 dual path": up}, {}, {})
    assert said.endswith(
        "**better** in AP, AP small; **worse** in AP medium; **not told apart** in AR."
    )
    assert compared(up, "as is") == "AP +2.0 ± 1.0 (AP small +3.0 ± 1.0, AP medium -4.0 ± 1.0)"
    down = compared_row(ap=-2.0, ar=-3.0, ap_small=-3.0, ap_medium=-4.0)
    [said] = choosing.plain({"S1L0 dual path": down}, {}, {})
    assert said.endswith(": **worse** in AP, AP small, AP medium, AR.")
    equal = compared_row(ap=0.5)
    assert (
        compared(equal, "as is") == "nothing that these photographs can tell apart (AP +0.5 ± 1.0)"
    )
    assert compared(equal, "600 pixels") == "was not compared"


def test_what_is_chosen_is_clearly_better_within_its_compute() -> None:
    base = {**compared_row(), "gmacs": 1.0}
    dear = {**compared_row(ap=4.0, ap_small=0.5, ap_medium=-2.0), "gmacs": 4.9}
    cheap = {**compared_row(ap=3.0, ap_small=0.5), "gmacs": 2.0}
    other = {**compared_row(ap=2.5), "gmacs": 3.0}
    for row, ap in ((dear, 24.0), (cheap, 23.0), (other, 22.5)):
        row["figures"]["ap"] = [ap, ap - 1, ap + 1]
    rows = {"as is": base, "S1L0": dear, "S1L6": cheap, "600 pixels": other}
    situation = choosing.Situation("", rows, "as is", 1.0)
    without_loss, at_a_price = (
        "**S1L6** (2.0x) +3.0 ± 1.0 to 23.0",
        "S1L0 (4.9x) +4.0 ± 1.0 to 24.0, but AP medium -2.0 ± 1.0",
    )
    assert situation.best("ap") == f"{without_loss}; {at_a_price}"
    assert (
        situation.best("ap_small") == "none clearly better"
        and situation.best("ap_medium") == "all clearly worse"
    )
    assert situation.best("ap_large") == "too few such objects"
    assert choosing.Situation("", rows, "as is", 1.0, most=2).best("ap") == without_loss
    other["differences"]["S1L6"] = {"ap": [-0.5, -1.5, 0.5]}
    assert situation.best("ap") == f"{without_loss} (or 600 pixels, 3.0x); {at_a_price}"


def test_what_contradicts_the_paper_stands_out() -> None:
    down = compared_row(ap=-2.0, ap_small=-3.0)
    assert "**" not in beside_paper({"S1L6": down}, {})  # not trained: nothing against the paper
    tuned = {
        **down,
        "row": "S1L6",
        "settings": {"steps": 5},
        "seed": 0,
        "differences": {"base": down["differences"]["as is"]},
    }
    assert beside_paper({}, {"S1L6-seed0": tuned}).count("**") == 2  # small: the paper +3.9
    [said] = verdicts({}, {"S1L6-seed0": tuned}, {}, {})
    assert said.startswith(
        "Fine-tuned, though not for 100 epochs, of the other sign than the paper:"
    )
    assert said.endswith(": S1L6 small -3.0 ± 1.0 (the paper +3.9).")


def test_a_class_of_few_objects_does_not_count() -> None:
    def group(objects: int, right: bool) -> bootstrap.Group:
        hits = np.full((10, objects), right)
        return bootstrap.Group(np.zeros(objects, np.int64), hits, ~hits, np.array([float(objects)]))

    found = bootstrap.Matches({("many", ""): group(20, True), ("few", ""): group(3, False)}, 1)
    whole = np.ones((1, 1))
    assert bootstrap.figures(found, whole)["ap"][0] == pytest.approx(50)
    assert bootstrap.figures(bootstrap.common(found, 20), whole)["ap"][0] == pytest.approx(100)
    judge = trained.Judge(NOWHERE, 20)
    assert judge.left_out(found) == ["few"] and judge.judged(found).objects[""] == 20


def test_a_rival_that_was_trained_otherwise_is_not_compared_with(tmp_path: Path) -> None:
    kept = {
        name: tmp_path / name / trained.DETECTIONS
        for name in ("own", "rival", "untrained", "missing")
    }
    for name, settings in (
        ("own", {"steps": 5}),
        ("rival", {"steps": 6}),
        ("untrained", {"steps": 0}),
    ):
        records.claim(kept[name].parent, settings)
        kept[name].write_text("[]")
    assert trained.is_rival(kept["untrained"], kept["own"]) and not trained.is_rival(
        kept["missing"], kept["own"]
    )
    with pytest.raises(RequestError, match="trained with"):
        trained.is_rival(kept["rival"], kept["own"])


def test_a_folder_of_another_run_is_not_taken(tmp_path: Path) -> None:
    records.claim(tmp_path / "row", {"rate": 0.1})
    records.claim(tmp_path / "row", {"rate": 0.1})
    with pytest.raises(RequestError, match=r"rate 0\.1 \(now 0\.2\)"):
        records.claim(tmp_path / "row", {"rate": 0.2})


def test_the_control_is_trained_as_the_record_says() -> None:
    [record_of_base] = (records.RESULTS / "small_objects" / checks.CELLS).glob(
        f"{checks.BASE}-seed0.json"
    )
    settings = records.read(record_of_base)["settings"]
    asked = small_objects.parse_arguments([checks.CELLS, *checks.recipe(settings), "--work", "w"])
    asked.data = Path()
    assert small_objects.settings(asked, settings["images"]) == settings


def test_the_second_detectors_boxes_shrink_with_its_cells() -> None:
    scales = {name: row.box_scale for name, row in recalibration.ROWS.items()}
    assert (
        scales["as is"] == 1.0
        and scales["704 pixels"] == scales["S1L0"] == scales["S1L2, recalibrated"] == 0.5
    )


def test_a_row_is_a_configuration_or_a_backbone() -> None:
    assert small_objects.named("SSDMnetv1-S1L0") == ["--config", "SSDMnetv1-S1L0"]
    assert small_objects.named("resnet18") == ["--backbone", "resnet18"]
    assert small_objects.named("resnet18:S1L0:dual") == [
        "--backbone",
        "resnet18",
        "--surgery",
        "S1L0",
        "--dual",
    ]


# ---- the size bound, the clock


def test_each_photograph_gets_the_bound_that_the_other_half_chose() -> None:
    swept = {
        64.0: [5.0, 1.0, 3.0],
        128.0: [2.0, 4.0, 3.0],
    }  # AP on the even ones, the odd ones, all
    assert free.best(swept) == (64.0, 128.0)
    assert free.crossed(swept, 4) == [128.0, 64.0, 128.0, 64.0]


def test_a_bound_may_leave_the_finer_view_out() -> None:
    boxes = torch.tensor([(0.0, 0.0, 9.0, 9.0)])
    original, finer = (
        Candidates(boxes + k, torch.tensor([0.9]), torch.tensor([1])) for k in (0, 50)
    )
    [without], [with_it] = (
        list(free.joined([original], [finer], [b])) for b in (min(free.BOUNDS), max(free.BOUNDS))
    )
    assert torch.equal(without.boxes, boxes) and len(with_it.boxes) == 2
    swept = {0.0: [5.0, 1.0, 3.0], 48.0: [5.0, 0.5, 3.0]}
    assert free.best(swept) == (0, 0)  # of equals, the cheaper one


def test_the_page_says_how_latency_was_measured() -> None:
    row = {"gmacs": 1.0, "ms": [4.26, 3.9, 12.0], "ratio": [1.0, 1.0, 1.0], "paper ms": None}
    settings = {"runs": 9, "threads": 3, "processor time": False}
    record = {
        "settings": settings,
        "note": "beside other work",
        "rows": {"as is": row},
        "hardware": "a card",
    }
    said = protocol.latency(
        {"stock-cuda-bf16-batch16-compiled": record, "stock-cpu-fp32-batch1": record}
    )
    assert "a card (beside other work)" in said and "4.3 (3.9 to 12.0)" in said
    assert (
        "--threads 3 --device cuda --dtype bf16 --batch 16 --compile`" in said
        and "--threads 3`" in said
    )


@pytest.mark.parametrize(("times", "is_said"), [(1.05, True), (1.9, False)])
def test_a_device_that_is_not_busy_gives_no_price(times: float, is_said: bool) -> None:
    rows = {
        name: {"gmacs": compute, "ms": [1.0] * 3, "ratio": [ratio] * 3, "paper ms": None}
        for name, compute, ratio in (("SSDMnetv1", 1.0, 1.0), ("SSDMnetv1-S1L0", 3.9, times))
    }
    found = {"paper-cuda-fp32-batch1": {"rows": rows}}
    told = [*choosing.cost(found), *verdicts({}, {}, {}, found)]
    assert len(told) == 2
    assert ["not busy" in said for said in told] == [is_said, is_said]


def test_networks_are_timed_in_turn() -> None:
    order: list[str] = []
    calls: dict[str, Callable[[], object]] = {
        "a": lambda: order.append("a"),
        "b": lambda: order.append("b"),
    }
    times = latency.rounds(
        calls, latency.How(torch.device("cpu"), "fp32", 1, compiled=False, processor=True), 3
    )
    assert (
        order == ["a", "b"] * 6 and len(times["a"]) == len(times["b"]) == 3
    )  # three rounds do not count
    assert (
        latency.quartiles([3.0, 1.0, 2.0]) == [2.0, 1.5, 2.5]
        and latency.quartiles([4.0]) == [4.0] * 3
    )


# ---- real weights


@pytest.mark.data
@needs_data
def test_a_row_starts_as_what_is_found_without_training() -> None:
    """The exchanged boxes and predictors say the same boxes, and the scores are the detector's."""
    stock = load_stock(Path(DATA or "") / "weights")
    ids = list(range(1, 81))
    image = torch.rand(1, 3, 300, 300, generator=torch.Generator().manual_seed(0)) * 255
    trained = six_layers(stock, 300)
    finer = with_stride_eliminated(stock, "S1L0")
    own, halved = usual_centres(trained), learned_centres(six_layers(finer, 300), 300, trained, 300)
    for name, net, places in (("base", stock, anchors(own)), ("S1L0", finer, anchors(halved, 0.5))):
        row = stock_training.ROWS[name]
        ssd = stock_training.build(row, stock, ids).eval()
        with torch.no_grad():
            offsets, logits = ssd(ssd.prepare(image))
            alone = net(prepare(image))
        said, wanted = (
            boxes.decode(offsets, ssd.priors).clamp(0, 1),
            decode(alone.boxes, places)[..., [1, 0, 3, 2]],
        )
        torch.testing.assert_close(said, wanted, rtol=0, atol=1e-5)
        torch.testing.assert_close(ssd.scores(logits), alone.scores[..., [i - 1 for i in ids]])


@pytest.mark.data
@needs_data
def test_the_stock_detector_is_trained_by_the_focal_loss() -> None:
    """Lin et al. 2017, equations 4 and 5, over all priors; one object that a prior covers exactly."""
    ssd = stock_training.build(
        stock_training.ROWS["base"], load_stock(Path(DATA or "") / "weights"), range(1, 81)
    )
    ssd.priors = torch.tensor([(0.3, 0.3, 0.2, 0.2), (0.7, 0.7, 0.2, 0.2)])
    box, offsets = torch.tensor([(0.2, 0.2, 0.4, 0.4)]), torch.zeros(1, 2, 4)
    offsets[0, 0, 2] = (
        0.5  # smooth L1: half its square; what the other prior says of its box does not count
    )
    offsets[0, 1] = 9.0
    logits = torch.randn(1, 2, 80, generator=torch.Generator().manual_seed(0))
    found = ssd.losses(offsets, logits, box, torch.tensor([7]), [1])
    sure = logits.sigmoid().flatten()
    right = torch.arange(160) == 6
    wanted = torch.where(
        right, -0.75 * (1 - sure) ** 2 * sure.log(), -0.25 * sure**2 * (1 - sure).log()
    )
    torch.testing.assert_close(found.classes, wanted.sum())
    assert found.boxes == pytest.approx(0.125 / 4) and found.positives == 1


@pytest.mark.data
@needs_data
@pytest.mark.parametrize("name", ["S1L0-Fmap1", "S1L0-Split", "S1L0-Concat"])
def test_a_row_of_the_fine_tuning_has_a_box_for_every_prediction(name: str) -> None:
    stock, row = load_stock(Path(DATA or "") / "weights"), stock_training.ROWS[name]
    ssd = stock_training.build(row, stock, range(1, 81)).eval()
    with torch.no_grad():
        offsets, logits = ssd(torch.zeros(1, 3, row.size, row.size))
    assert offsets.shape[1] == logits.shape[1] == len(ssd.priors)
    assert logits.shape[2] == 80 and ssd.classes == 81


@pytest.mark.data
@needs_data
def test_dilated_maps_hold_the_detectors_own() -> None:
    net = load_stock(Path(DATA or "") / "weights")
    dilated = views.Dilated(net)
    image = torch.rand(1, 3, 300, 300, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        low, dense = dilated.features(image).values()
        torch.testing.assert_close(low, net.backbone[: LOW_TAP + 1](image))
        torch.testing.assert_close(dense[..., ::2, ::2], net.backbone(image))
        assert dilated(image).boxes.shape[1] == len(views.dilated_anchors(net, dilated))


@pytest.mark.data
@needs_data
def test_the_second_detector_finds_what_is_there() -> None:
    net = fastestdet.load(Path(DATA or "") / "weights")
    said, scores = torch.zeros(1, 4, 2, 2), torch.zeros(1, 80, 2, 2)
    scores[0, 5, 1, 0] = 0.9
    found = fastestdet.candidates(said, scores, (100, 200), range(101, 181))
    assert found.categories.tolist() == [106] and found.scores.tolist() == pytest.approx([0.9])
    assert found.boxes.tolist() == [
        [25, 0, 75, 50]
    ]  # half of 100 x 200 pixels around the cell's corner, clipped
    with torch.no_grad():
        said, scores = net(torch.zeros(1, 3, 352, 352))
    assert said.shape == (1, 4, 22, 22) and scores.shape == (1, 80, 22, 22)
