"""Checkpoints: whole or not at all, told apart, taken over."""

import random
from pathlib import Path

import pytest
import torch

from examples.ssd import checkpoint, custom, model
from examples.ssd.annotations import Categories
from examples.ssd.configurations import ROWS
from examples.ssd.errors import CheckpointError
from examples.ssd.evaluate import check_categories
from examples.ssd.files import write_atomically
from examples.ssd.starting import take_over
from examples.ssd.weights import fill, read, vgg_state, wake_norms


def test_a_detector_comes_back_as_it_was(trained: Path) -> None:
    known = checkpoint.detector(trained / "last.pt")
    assert known.row.name == "SSD-test_resnet-S1L0" and known.categories.names[0] == "disc"
    again = checkpoint.load(trained / "last.pt")["model"]
    assert all(torch.equal(v, again[k]) for k, v in known.ssd.state_dict().items())
    assert not known.ssd.training


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_cut_off_checkpoint_is_told(trained: Path, tmp_path: Path, share: float) -> None:
    content = (trained / "last.pt").read_bytes()
    cut = tmp_path / "cut.pt"
    cut.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match="cut off or no checkpoint"):
        checkpoint.load(cut)


def test_one_wrong_bit_is_told_or_does_no_harm(trained: Path, tmp_path: Path) -> None:
    """Of the bytes between tensors nothing depends."""
    whole = bytearray((trained / "last.pt").read_bytes())
    weights, told, chance = checkpoint.load(trained / "last.pt")["model"], 0, random.Random(0)
    for _ in range(30):
        damaged = whole.copy()
        damaged[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        (tmp_path / "damaged.pt").write_bytes(damaged)
        try:
            found = checkpoint.load(tmp_path / "damaged.pt")["model"]
        except CheckpointError:
            told += 1
        else:
            assert all(torch.equal(v, found[k]) for k, v in weights.items())
    assert told > 10


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("model", None),
        ("model", {"weight": 1}),
        ("average", [torch.zeros(1)]),
        ("configuration", 3),
        ("configuration", {"name": "x"}),
        ("categories", {"ids": (1, 2), "names": ("a",)}),
        ("categories", None),
        ("format", torch.zeros(2)),
    ],
)
def test_a_part_of_another_type_is_told(
    trained: Path, tmp_path: Path, part: str, value: object
) -> None:
    content = checkpoint.load(trained / "last.pt")
    torch.save({**content, part: value}, tmp_path / "edited.pt")
    with pytest.raises(CheckpointError):
        checkpoint.detector(tmp_path / "edited.pt")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("size", "300"),
        ("small", 11),
        ("boxes", ("a",) * 6),
        ("neck", "none"),
        ("recipe", None),
        ("dilated", 1),
    ],
)
def test_a_configuration_of_another_type_is_told(trained: Path, field: str, value: object) -> None:
    stored = checkpoint.load(trained / "last.pt")["configuration"]
    with pytest.raises(CheckpointError, match="configuration is not understood"):
        checkpoint.configuration_in({"configuration": {**stored, field: value}})


def test_other_files_are_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        checkpoint.load(tmp_path / "missing.pt")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="no checkpoint of these programs"):
        checkpoint.load(tmp_path / "other.pt")
    torch.save(custom.steps, tmp_path / "code.pt")  # a pickled function is not loaded
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoint.load(tmp_path / "code.pt")


def test_a_write_that_fails_leaves_the_file_before(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    path.write_text("good")
    with pytest.raises(RuntimeError), write_atomically(path) as part:
        part.write_text("half")
        raise RuntimeError
    assert path.read_text() == "good" and list(tmp_path.iterdir()) == [path]


def test_another_number_of_classes_is_told(trained: Path) -> None:
    content = checkpoint.load(trained / "last.pt")
    ssd = model.build(checkpoint.configuration_in(content), 3)
    with pytest.raises(CheckpointError, match="of another shape, such as heads.scores.0.bias"):
        checkpoint.restore(ssd, content["model"], "it")
    known, asked = Categories((1, 2), ("a", "b")), Categories((1,), ("a",))
    with pytest.raises(
        CheckpointError, match=r"knows 2 categories \(a, b\), the annotations have 1"
    ):
        check_categories(known, asked)


def test_taking_over_says_what_was_taken_and_what_not(trained: Path) -> None:
    content = checkpoint.load(trained / "last.pt")
    ssd = model.build(checkpoint.configuration_in(content), 3)
    told = take_over(ssd, Categories((1, 2), ("a", "b")), trained / "last.pt")
    assert "of another shape: heads.scores.0.bias" in told
    own = ssd.state_dict()
    assert torch.equal(own["heads.offsets.0.weight"], content["model"]["heads.offsets.0.weight"])
    with pytest.raises(CheckpointError, match="no weight of"):
        take_over(torch.nn.Linear(2, 2), Categories((1,), ("a",)), trained / "last.pt")  # type: ignore[arg-type]


def test_class_scores_of_other_categories_are_not_taken(trained: Path) -> None:
    known = checkpoint.detector(trained / "last.pt")
    renamed = Categories(known.categories.ids, tuple(reversed(known.categories.names)))
    for categories in (known.categories, renamed):
        ssd = model.build(known.row, categories.classes)
        told = take_over(ssd, categories, trained / "last.pt")
        same = categories == known.categories
        assert (
            "of other categories (disc, square, triangle, ...; now bar, cross, ring, ...)" in told
        ) is not same
        pairs = zip(ssd.heads.scores, known.ssd.heads.scores, strict=True)
        assert all(torch.equal(a.weight, b.weight) is same for a, b in pairs)
        assert torch.equal(ssd.heads.offsets[0].weight, known.ssd.heads.offsets[0].weight)


def test_every_configuration_survives_a_checkpoint(tmp_path: Path) -> None:
    categories = Categories((1,), ("a",))
    for row in ROWS.values():
        checkpoint.save(tmp_path / "row.pt", {**checkpoint.described(row, categories), "model": {}})
        assert checkpoint.configuration_in(checkpoint.load(tmp_path / "row.pt")) == row


# ---- backbone weights


def test_weights_that_do_not_fit_are_told(tmp_path: Path) -> None:
    net = torch.nn.Conv2d(1, 1, 1)
    with pytest.raises(CheckpointError, match="file has no weight of the right shape"):
        fill(net, {"weight": torch.zeros(2), "bias": torch.zeros(1)}, "file")
    with pytest.raises(CheckpointError, match="no weight file"):
        read(tmp_path / "missing.pt")
    (tmp_path / "w.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="holds no weights"):
        read(tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([torch.zeros(1)], "but list"),
        (
            {"state_dict": {"weight": torch.zeros(1)}, "epoch": 3},
            "but state_dict, epoch; save the state_dict alone",
        ),
        ({"weight": torch.zeros(1).to_sparse()}, "no state_dict"),
        (
            {"weight": torch.zeros(1, 1, 1, 1), "bias": torch.tensor([torch.nan])},
            "bias holds values that are no",
        ),
    ],
)
def test_files_without_weights_are_told(tmp_path: Path, content: object, words: str) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=words):
        fill(torch.nn.Conv2d(1, 1, 1), read(tmp_path / "w.pt"), "w.pt")


def test_a_classifier_that_is_not_vggs_is_told() -> None:
    with pytest.raises(CheckpointError, match="classifier is not VGG-16's"):
        vgg_state({"classifier.0.weight": torch.zeros(3, 4)})


def test_vgg_keeps_every_third_row_and_every_fourth_output() -> None:
    fc6 = torch.arange(4096).float()[:, None].expand(4096, 512 * 49)
    state = vgg_state(
        {
            "features.0.weight": torch.zeros(1),
            "classifier.0.weight": fc6,
            "classifier.0.bias": torch.arange(4096).float(),
            "classifier.3.weight": torch.arange(4096).float()[:, None].expand(4096, 4096),
            "classifier.3.bias": torch.arange(4096).float(),
            "classifier.6.weight": torch.zeros(1),
        }
    )
    assert state["fc6.weight"].shape == (1024, 512, 3, 3) and state["fc6.weight"][5, 0, 0, 0] == 20
    assert state["fc7.weight"].shape == (1024, 1024, 1, 1) and state["fc7.bias"][5] == 20
    assert "classifier.6.weight" not in state and "features.0.weight" in state


def test_folded_norms_wake_and_change_nothing() -> None:
    torch.manual_seed(0)
    conv, norm = torch.nn.Conv2d(3, 8, 3, bias=False), torch.nn.BatchNorm2d(8)
    norm.bias.data.normal_()  # what is left of a folded norm
    net = torch.nn.Sequential(conv, norm, torch.nn.ReLU()).eval()
    images = torch.randn(16, 3, 20, 20) + 0.5
    before = net(images)
    assert wake_norms(net, images) == 1 and wake_norms(net, images) == 0
    torch.testing.assert_close(net(images), before, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        net.train()(images), before, rtol=1e-4, atol=1e-4
    )  # asleep, it would differ
    assert norm.running_var is not None and not torch.allclose(
        norm.running_var, torch.ones(8), atol=0.1
    )
