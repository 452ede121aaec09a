"""Real photographs, end to end: read, trained on, evaluated, drawn."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

import stridesurgery as ss
from examples.ssd import data, detect, evaluate, train
from examples.ssd.backbones import fill, load_backbone, read, vgg_state, wake_norms
from examples.ssd.configurations import find
from examples.ssd.data import CocoImages, Split, find_split
from examples.ssd.programs import DetectionError
from tests.ssd.conftest import DATA, needs_data

SETS = {"coco_public": 452, "coco_train": 2300, "smallobj/aerial_cars": 91}
SETS |= {"smallobj/deeppcb": 1000, "smallobj/bccd": 292}


@pytest.fixture(scope="module")
def folder() -> Path:
    assert DATA is not None
    return Path(DATA)


@pytest.fixture(scope="module")
def weights(folder: Path) -> str:
    [path] = (folder / "weights").glob("mobilenet_v1_100_imagenet*")
    return str(path)


@needs_data
@pytest.mark.data
@pytest.mark.parametrize("name", SETS)
def test_every_set_is_read(folder: Path, name: str) -> None:
    split = find_split(folder / name, "train")
    assert len(CocoImages(split)) == SETS[name]
    assert len(CocoImages(split, with_objects=True)) > 0.9 * SETS[name]


@needs_data
@pytest.mark.data
def test_the_papers_backbone_starts_training_as_what_it_was(folder: Path, weights: str) -> None:
    """The norms of these weights are folded, but for the biases: train mode would undo them."""
    images, row = CocoImages(find_split(folder / "smallobj/bccd", "train")), find("SSDMnetv1")
    ssd, said = train.on_backbone(row, images, weights)
    assert said.endswith("27 folded batch norms woken") and ssd.transform.image_mean[0] > 0.5
    images.transform = data.transform(row.size)
    pixels = [images[i, 0][0].float() / 255 for i in range(train.WAKING_IMAGES)]
    batch = (torch.stack(pixels) - 128 / 255) / (128 / 255)
    backbone = load_backbone(row.backbone, weights)[0].eval()
    with torch.no_grad():
        before = ss.features(backbone, row.small, input_size=row.size)(batch)
        for mode in (True, False):
            after = ssd.train(mode).backbone.features(batch)
            for key, expected in before.items():
                assert (after[key] - expected).norm() < 0.03 * expected.norm(), (mode, key)


@needs_data
@pytest.mark.data
def test_small_objects_are_trained_on_evaluated_and_drawn(
    folder: Path, weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cars, last = folder / "smallobj/aerial_cars", str(tmp_path / "last.pt")
    recipe = f"--epochs 1 --batch 4 --max-steps 3 --workers 0 --weights {weights}"
    where = f"--config SSDMnetv1-Anchor10 --data {cars} --out {tmp_path}"
    train.main([*recipe.split(), *where.split()])
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3] and all(0 < r["loss"] < 1000 for r in rows)
    evaluate.main(f"{last} --data {cars} --workers 0 --out {tmp_path}".split())
    assert "SSDMnetv1-Anchor10" in capsys.readouterr().out
    image = sorted((cars / "val/images").iterdir())[0]
    detect.main([last, last, str(image), "--out", str(tmp_path / "drawn"), "--threshold", "0"])
    drawn = tmp_path / "drawn" / f"{image.stem}.png"
    with Image.open(image) as original, Image.open(drawn) as drawing:
        assert drawing.size == (2 * original.width, original.height)


@needs_data
@pytest.mark.data
def test_what_coco_says_is_perfect(folder: Path) -> None:
    """The objects themselves as detections, on every image; crowds are not asked for."""
    truth = evaluate.load_truth(Split(*find_split(folder / "coco_public", "val")).annotations)
    found = [{**a, "score": 1.0} for a in truth.dataset["annotations"] if not a["iscrowd"]]
    summary = evaluate.evaluate(truth, found)
    assert summary.images == 452 and summary.figures["ap"] == pytest.approx(100)


# ---- backbone weights


def test_weights_that_do_not_fit_are_told(tmp_path: Path) -> None:
    net, path = torch.nn.Conv2d(1, 1, 1), tmp_path / "w.pt"
    shapes = {"weight": torch.zeros(1, 1, 1, 1), "bias": torch.tensor([torch.nan])}
    for state in ({"weight": torch.zeros(2), "bias": torch.zeros(1)}, shapes):
        with pytest.raises(DetectionError, match="no (weight|bias) of the right shape and of fin"):
            fill(net, state, "file")
    torch.save([torch.zeros(1)], path)
    (tmp_path / "w.safetensors").write_bytes(b"nothing")
    for name in ("w.pt", "missing.pt", "w.safetensors", "missing.safetensors"):
        with pytest.raises(DetectionError, match="cannot be read .*give a file of tensors by name"):
            read("resnet18", str(tmp_path / name))


def test_vgg_keeps_every_third_row_and_every_fourth_output() -> None:
    outputs = torch.arange(4096.0)
    state = {"classifier.0.weight": outputs[:, None].expand(4096, 512 * 49)}
    state |= {"classifier.0.bias": outputs, "classifier.3.bias": outputs}
    found = vgg_state(state | {"classifier.3.weight": outputs[:, None].expand(4096, 4096)})
    assert found["fc6.weight"].shape == (1024, 512, 3, 3) and found["fc6.weight"][5, 0, 0, 0] == 20
    assert found["fc7.weight"].shape == (1024, 1024, 1, 1) and found["fc7.bias"][5] == 20


def test_folded_norms_wake_and_change_nothing() -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential()
    for inputs, outputs in ((3, 8), (8, 4)):
        net.extend([torch.nn.Conv2d(inputs, outputs, 3, bias=False), torch.nn.BatchNorm2d(outputs)])
        net[-1].bias.data.normal_()  # what is left of a folded norm
    images = torch.randn(16, 3, 20, 20) + 0.5
    before = net.eval()(images)
    assert wake_norms(net, images) == 2 and wake_norms(net, images) == 0
    torch.testing.assert_close(net(images), before, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(net.train()(images), before, rtol=1e-4, atol=1e-3)
    net(images).sum().backward()  # and it still trains
