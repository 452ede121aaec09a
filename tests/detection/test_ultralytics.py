"""Ultralytics' YOLOs, operated whole: strides follow, and the library's own code trains and predicts."""

import copy
import os
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import stridesurgery as ss
from tests.models import awake

os.environ.setdefault("YOLO_AUTOINSTALL", "false")  # installs nothing behind our back
ultralytics = pytest.importorskip("ultralytics")
tasks = pytest.importorskip("ultralytics.nn.tasks")

NAMES = ("yolov8n", "yolo11n", "yolov5n", "yolo26n")
SIZE = (128, 192)


@cache
def built(name: str) -> Any:
    torch.manual_seed(0)
    return awake(tasks.DetectionModel(f"{name}.yaml", nc=3, verbose=False)).eval()


def heads_see(model: Any, x: Tensor) -> list[Tensor]:
    """The maps that the head reads."""
    kept: list[Tensor] = []
    handle = model.model[-1].register_forward_pre_hook(lambda m, given: kept.extend(given[0]))
    with torch.inference_mode():
        model(x)
    handle.remove()
    return kept


def few(name: str, transition: int) -> Any:
    """One transition of each is tried by default; the rest with the zoo."""
    marks = () if transition == 2 * (NAMES.index(name) % 3) else pytest.mark.zoo
    return pytest.param(name, transition, marks=marks)


@pytest.mark.parametrize(
    ("name", "transition"), [few(name, t) for name in NAMES for t in (0, 2, 4)]
)
def test_strides_follow_and_the_recipe_builds_the_same(name: str, transition: int) -> None:
    model, x = built(name), torch.rand(2, 3, *SIZE)
    layer = ss.inspect(model, SIZE).transitions[transition].layers[0]
    fine = ss.eliminate(model, 1, layer, input_size=SIZE)
    assert type(fine) is type(model) and list(fine.state_dict()) == list(model.state_dict())
    maps = heads_see(fine, x)
    for cells, stride in zip(maps, fine.stride.tolist(), strict=True):
        assert (cells.shape[2] * stride, cells.shape[3] * stride) == SIZE  # inside the image
    assert fine.model[-1].stride is not model.model[-1].stride
    assert torch.equal(fine.stride, fine.model[-1].stride)
    assert model.stride.tolist() == [8, 16, 32] and min(fine.stride / model.stride) == 0.5
    rebuilt = tasks.DetectionModel(copy.deepcopy(fine.yaml), verbose=False).eval()
    rebuilt.load_state_dict(dict(fine.state_dict()))
    assert torch.equal(rebuilt.stride, fine.stride)
    with torch.inference_mode():
        torch.testing.assert_close(rebuilt(x)[0], fine(x)[0])


@pytest.mark.parametrize("name", NAMES[::2])
def test_the_first_maps_are_the_originals_at_its_cells(name: str) -> None:
    model, x = built(name), torch.rand(1, 3, *SIZE)
    fine = ss.eliminate(model, "S1L0", input_size=SIZE)
    with torch.inference_mode():
        old, new = (net.model[0].conv(x) for net in (model, fine))
    torch.testing.assert_close(new[..., ::2, ::2], old, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES[1:3])
def test_it_learns_by_the_librarys_own_loss(name: str) -> None:
    fine = ss.eliminate(built(name), "S1L0", input_size=SIZE).train()
    fine.args = SimpleNamespace(box=7.5, cls=0.5, dfl=1.5, epochs=1)
    batch = {
        "img": torch.rand(2, 3, *SIZE),
        "batch_idx": torch.tensor([0.0, 1]),
        "cls": torch.tensor([[0.0], [2]]),
        "bboxes": torch.tensor([[0.5, 0.5, 0.3, 0.4], [0.2, 0.7, 0.1, 0.1]]),
    }
    loss, _ = fine.loss(batch)
    assert loss.isfinite().all()
    loss.sum().backward()
    learned = [p.grad for p in fine.parameters() if p.requires_grad and p.ndim == 4]
    assert all(g is not None and g.isfinite().all() for g in learned)


def test_verify_cost_and_what_the_head_had_kept() -> None:
    model = copy.deepcopy(built("yolov8n"))
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        model(torch.rand(1, 3, 128, 128))  # the head keeps the anchors of maps of 16x16 cells ...
    fine = ss.eliminate(model, "S1L0", input_size=64)
    fresh = ss.eliminate(built("yolov8n"), "S1L0", input_size=64)
    with torch.inference_mode():
        torch.testing.assert_close(fine(x)[0], fresh(x)[0])  # ... which these maps have as well
    assert ss.verify(built("yolov8n"), fine).exact
    assert 3.9 < ss.cost(fine, 64).macs / ss.cost(model, 64).macs <= 4
    stale = copy.deepcopy(fine)
    stale.model[-1].stride = 2 * fine.stride
    with pytest.raises(ss.SurgeryError, match="output"):
        ss.verify(built("yolov8n"), stale)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("SegmentationModel", "yolov8n-seg"),
        ("PoseModel", "yolov8n-pose"),
        ("OBBModel", "yolo11n-obb"),
    ],
)
def test_its_kin(kind: str, name: str) -> None:
    model = awake(getattr(tasks, kind)(f"{name}.yaml", verbose=False)).eval()
    fine = ss.eliminate(model, "S1L0", input_size=64)
    assert fine.stride.tolist() == [4, 8, 16]
    with torch.inference_mode():
        found = fine(torch.rand(3, 3, 64, 96))[0]
    found = found[0] if isinstance(found, tuple) else found
    assert found.shape[2] == 4 * sum(8 * 12 // 4**i for i in range(3))


def test_what_cannot_be_done_is_said() -> None:
    model = built("yolov8n")
    with pytest.raises(ss.RequestError, match="one stride for rows and columns"):
        ss.eliminate(model, "S1L0", axis="w", input_size=64)
    for options in ({"form": "graph"}, {"dilate": True}):
        with pytest.raises(ss.RequestError, match="a rewritten graph is no detector any more"):
            ss.eliminate(model, "S1L0", input_size=64, **options)
    with pytest.raises(ss.RequestError, match="told from all of it; leave at out"):
        ss.eliminate(model, "S1L0", at="model.0", input_size=64)
    ten = awake(tasks.DetectionModel("yolov10n.yaml", verbose=False)).eval()
    layer = ss.inspect(ten, 64).transitions[3].layers[0]
    fine = ss.eliminate(ten, 1, layer, input_size=64)
    with pytest.raises(KeyError, match="SCDown of S1L9, which no row can say"):
        tasks.DetectionModel(fine.yaml, verbose=False)


def test_the_librarys_own_class_predicts_and_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = pytest.importorskip("ultralytics.engine.trainer")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trainer.BaseTrainer, "read_results_csv", lambda self: {})  # needs polars
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (2, 64, 96, 3), dtype=np.uint8)
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / "images" / f"{i}.png")
        (tmp_path / "labels" / f"{i}.txt").write_text("0 0.5 0.5 0.3 0.3\n")
    data = tmp_path / "data.yaml"
    data.write_text(f"path: {tmp_path}\ntrain: images\nval: images\nnames: [a, b, c]\n")
    torch.save({"model": built("yolov8n"), "train_args": {}}, tmp_path / "stock.pt")

    yolo = ultralytics.YOLO("stock.pt")
    yolo.model = ss.eliminate(yolo.model, "S1L0")
    assert len(yolo.predict(pixels[0], imgsz=96, verbose=False)) == 1
    quiet = SimpleNamespace(plots=False, verbose=False, workers=0, device="cpu")
    yolo.train(data=str(data), epochs=1, imgsz=64, batch=2, **vars(quiet))
    assert yolo.model.stride.tolist() == [4, 8, 16]
    conv = yolo.model.model[0].conv
    assert isinstance(conv, nn.Conv2d) and conv.stride == (1, 1)
    again = ultralytics.YOLO(yolo.trainer.best)
    assert again.model.stride.tolist() == [4, 8, 16]
