"""The stock detector: the network that its files describe, operated whole, and on the way to records."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torchvision.models.detection.image_list import ImageList

import stridesurgery as ss
from examples.ssd.programs import DetectionError, read_image
from examples.study import experiment, fine_tuning, gpu, records, sparse, stock
from examples.study import training_free as free

DATA = os.environ.get("STRIDESURGERY_DATA")
needs_data = [pytest.mark.data, pytest.mark.skipif(DATA is None, reason="no data folder")]
PHOTOGRAPHS = Path(DATA or "") / "coco_public"


# ---- bounds, boxes, slices


def test_each_photograph_gets_the_bound_that_the_other_half_chose() -> None:
    swept = {64.0: [5.0, 1.0, 3.0], 128.0: [2.0, 4.0, 3.0]}  # AP on even ones, odd ones, all
    assert experiment.best(swept) == [64.0, 128.0]
    assert experiment.crossed(experiment.best(swept), 4) == [128.0, 64.0, 128.0, 64.0]
    equal = {0.0: [5.0, 1.0, 3.0], 48.0: [5.0, 0.5, 3.0]}
    assert experiment.best(equal) == [0, 0]  # the cheaper one


def test_slices_cover_the_photograph_and_their_boxes_lie_in_it() -> None:
    sizes = []

    def whole(photograph: Image.Image) -> experiment.Found:
        sizes.append(photograph.size)
        corners = torch.tensor([[0.0, 0.0, *map(float, photograph.size)]])
        return {"boxes": corners, "labels": torch.tensor([1])}

    boxes = free.sliced(whole)(Image.new("RGB", (181, 90)))["boxes"]
    assert sizes == [(101, 50)] * 4
    assert boxes.tolist() == [[x, y, x + 101, y + 50] for y in (0, 40) for x in (0, 80)]


def test_without_the_data_it_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for named in ("", "/nowhere"):
        monkeypatch.setenv("STRIDESURGERY_DATA", named)
        with pytest.raises(DetectionError, match="STRIDESURGERY_DATA names no folder"):
            stock.data_folder()


# ---- with the weights


@pytest.fixture(scope="module")
def parts() -> torch.nn.ModuleDict:
    return stock.load_parts(Path(DATA or "") / "weights")


@pytest.fixture(scope="module")
def photographs() -> list[Image.Image]:
    paths = sorted((PHOTOGRAPHS / "images").iterdir())
    return [read_image(paths[i]) for i in (0, 3, 40)]


@pytest.fixture(autouse=True)
def one_surgery(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(free, "SURGERIES", {"S1L0": (0,)})


class TestWithData:
    pytestmark = needs_data

    def test_network_and_boxes_are_the_files(self, parts: torch.nn.ModuleDict) -> None:
        report = ss.inspect(parts["backbone"], stock.SIZE)
        assert len(report) == 14 and report.strided == (0, 2, 4, 6, 12)
        net, folder = stock.detector(parts), Path(DATA or "") / "weights"
        levels = ss.detection.levels(net.backbone, stock.SIZE)
        assert [level.grid[0] for level in levels] == [19, 10, 5, 3, 2, 1]
        images = ImageList(torch.empty(1, 3, 300, 300), [(300, 300)])
        [boxes] = net.anchor_generator(images, [torch.empty(1, 1, *la.grid) for la in levels])
        y, x, height, width = load_file(folder / f"{stock.NAME}.safetensors")["anchors_tflite"].T
        shipped = torch.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], 1)
        table = json.loads((folder / f"{stock.NAME}.json").read_text())
        step = table["anchors_quant"]["scale"]  # the shipped ones are rounded to 8 bits
        torch.testing.assert_close(boxes / 300, shipped, rtol=0, atol=1.01 * step)
        for level in levels:  # where the network was trained, its boxes stay on average
            own, usual = (
                g.centres(level.grid) for g in (stock.carried(level, level), stock.middles(level))
            )
            for a, b in zip(own, usual, strict=True):
                torch.testing.assert_close(a.mean(), b.mean())

    def test_the_two_paths_are_the_two_detectors(
        self, parts: torch.nn.ModuleDict, photographs: list[Image.Image]
    ) -> None:
        """What the table calls S1L0 and the dual path are `eliminate` and `detection.dual_path`."""
        nets = free.networks(parts)
        (whole, _), (both, _), (fine, _) = (nets[k] for k in ("as is", "S1L0 dual path", "S1L0"))
        views = free.views_of(nets)
        with torch.inference_mode():
            for photograph in photographs:
                large, small = ([views[name](photograph)] for name in ("as is", "S1L0"))
                alone = (fine([photograph])[0], whole([photograph])[0], both([photograph])[0])
                seen = (
                    both.merged(small, small, 0),
                    both.merged(large, small, 0),
                    both.merged(large, small),
                )
                for found, [wanted] in zip(alone, seen, strict=True):
                    torch.testing.assert_close(found["scores"], wanted["scores"])
                    torch.testing.assert_close(
                        found["boxes"], wanted["boxes"], rtol=1e-4, atol=1e-2
                    )
                    assert torch.equal(found["labels"], wanted["labels"])
                assert len(alone[2]["scores"]) > 0

    def test_a_taste_of_the_table(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Records of a few photographs: two paths find more, and the bound 0 changes nothing."""
        monkeypatch.setattr(experiment, "BOUNDS", (0, 192))
        asked = ["--images", "4", "--work", str(tmp_path), "--results", str(tmp_path)]
        rows = ["as is", "S1L0 dual path", "slices and whole"]
        free.main([*asked, "--rows", *rows])
        found = [records.read(tmp_path / "training_free" / f"{row}.json") for row in rows]
        before, both, _ = (one["figures"] for one in found)
        assert 15 < before["ap"][0] < both["ap"][0]
        assert found[1]["sweep"]["0.0"][2] == found[2]["sweep"]["0.0"][2] == before["ap"][0]
        assert found[1]["gmacs"] < 5 * found[0]["gmacs"] == pytest.approx(found[2]["gmacs"], 1e-5)
        free.main([*asked, "--rows", *rows])  # nothing is measured again
        assert capsys.readouterr().out.count("AP") == 3
        with pytest.raises(DetectionError, match="the rows are 'as is'"):
            free.main([*asked, "--rows", "S9L9"])

    def test_a_sparse_path_finds_what_the_fine_path_finds_there(
        self, parts: torch.nn.ModuleDict, photographs: list[Image.Image]
    ) -> None:
        both: Any = ss.detection.dual_path(stock.detector(parts), "S1L0")
        with torch.inference_mode():
            one = sparse.view(parts, 300, (32, 288, 0.2))(photographs[1])  # the ring is everything
            [fine] = both.paths([photographs[1]])[1]
        assert one["ran"] == 1 and 2 < one["gmacs"] < 5 and len(one["scores"]) > 0
        everywhere = {round(float(s), 4) for s in fine["scores"]}
        best = one["scores"].topk(5).values
        assert all(round(float(s), 4) in everywhere for s in best)

    @pytest.mark.parametrize("name", ["base", "Size600", "S1L4", "S1L0-Split"])
    def test_every_row_starts_as_the_stock_detector_and_takes_a_step(
        self, parts: torch.nn.ModuleDict, photographs: list[Image.Image], name: str
    ) -> None:
        """Without training a row says what the operated detector says, from other boxes."""
        row, categories = fine_tuning.ROWS[name], range(1, 91)
        net = fine_tuning.build(row, parts, categories).eval()
        if not row.split:  # whose first two maps are finer, the others not
            whole = stock.at_size(parts, row.size)
            if row.surgery:
                whole = ss.eliminate(whole, row.surgery, centres="carried")
            with torch.inference_mode():
                [own], [wanted] = net(photographs[1:2]), whole(photographs[1:2])
            torch.testing.assert_close(own["boxes"][:9], wanted["boxes"][:9], rtol=1e-3, atol=0.1)
        target = {"boxes": torch.tensor([[20.0, 20, 90, 120]]), "labels": torch.tensor([1])}
        losses = net.train()([torch.rand(3, row.size, row.size)], [target])
        assert losses["positives"] > 0
        (losses["bbox_regression"] + losses["classification"]).backward()
        assert all(p.grad is not None for p in net.head.parameters())

    def test_the_gpu_program_goes_on(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def two() -> Any:
            conv = torch.nn.Conv2d(3, 4, 3)  # both have its weights
            return {"one": (conv, 20), "other": (torch.nn.Sequential(conv), 20)}

        monkeypatch.setattr(gpu, "GROUPS", {"two": two})
        monkeypatch.setattr(gpu, "ROWS", ("base",))
        monkeypatch.setattr(gpu, "TIMED", 2)
        asked = "--minutes 0.03 --device cpu --batches 1 --dtypes bf16 --batch 2 --images 3".split()
        asked += [f"--work={tmp_path / 'work'}", f"--results={tmp_path / 'results'}"]
        gpu.main(asked)
        written = {path: path.read_text() for path in (tmp_path / "results").rglob("*.json")}
        kinds = sorted(path.parent.name for path in written)
        assert set(kinds) == {"fine_tuning", "latency"}
        assert "No time left" in capsys.readouterr().out
        timed = records.read(tmp_path / "results" / "latency" / "two-cpu-bf16-batch1.json")
        assert timed["rows"]["one"]["ratio"] == [1.0, 1.0, 1.0]
        for path in written:
            path.unlink()
        gpu.main(asked)
        assert all(path.read_text() for path in written)  # what was missing is there again
        assert records.read(tmp_path / "work" / "plan.json")["first"] >= 2
