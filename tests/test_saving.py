"""A surgery is never lost silently: saved in any way, it is brought back, or a warning says that it is not."""

import copy
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from safetensors import safe_open
from torch import nn

import stridesurgery as ss
from stridesurgery._cli import main
from tests.models import awake, create, image

NAME, SIZE = "test_resnet", 64
SURGERIES = ("surgery", "chain", "dilate", "graph")


def build() -> nn.Module:
    return timm.create_model(NAME).eval()


def operated(kind: str, model: nn.Module | None = None) -> nn.Module:
    """An operated model whose head was trained on."""
    model = model or create(NAME)
    if kind == "chain":
        model = ss.eliminate(model, "S1L0", input_size=SIZE)
    options: dict[str, Any] = {"dilate": {"dilate": True}, "graph": {"form": "graph"}}.get(kind, {})
    last = ss.inspect(model, SIZE).transitions[-1].layers[0]
    return awake(ss.eliminate(model, L=last, input_size=SIZE, **options))


@pytest.fixture(params=SURGERIES)
def fine(request: pytest.FixtureRequest) -> nn.Module:
    return operated(request.param)


def by_the_library(fine: nn.Module, folder: Path) -> Path:
    ss.save(fine, folder / "fine.safetensors", metadata={"epoch": "3"})
    return folder / "fine.safetensors"


def by_torch(fine: nn.Module, folder: Path) -> Path:
    torch.save(fine.state_dict(), folder / "fine.pt")
    return folder / "fine.pt"


def by_a_training_loop(fine: nn.Module, folder: Path) -> Path:
    torch.save({"model": nn.DataParallel(fine).state_dict(), "epoch": 3}, folder / "fine.pth")
    return folder / "fine.pth"


def by_timm(fine: nn.Module, folder: Path) -> Path:
    timm.models._hub.save_for_hf(fine, str(folder))
    return folder / "pytorch_model.bin"


def by_timm_and_the_library(fine: nn.Module, folder: Path) -> Path:
    timm.models._hub.save_for_hf(fine, str(folder), safe_serialization=True)
    ss.save(fine, folder / "model.safetensors")  # the same weights, and the recipe
    return folder / "model.safetensors"


WRITERS = (by_the_library, by_torch, by_a_training_loop, by_timm, by_timm_and_the_library)


@pytest.mark.parametrize("write", WRITERS)
def test_what_is_written_is_brought_back(
    fine: nn.Module, write: Callable[[nn.Module, Path], Path], tmp_path: Path
) -> None:
    path, original = write(fine, tmp_path), build()
    before = copy.deepcopy(original.state_dict())
    for again in (ss.load(original, path), ss.load(build, path)):
        assert again.surgery == fine.surgery and type(again).__name__ == type(fine).__name__
        for x in (image(SIZE), image(SIZE, 96, batch=3)):
            assert torch.equal(again(x), fine(x))
    assert all(torch.equal(value, before[key]) for key, value in original.state_dict().items())


def test_the_command_line_carries_on_with_its_own_file(tmp_path: Path) -> None:
    for fine in map(operated, ("surgery", "chain", "graph")):
        path, out = by_the_library(fine, tmp_path), tmp_path / "finer.safetensors"
        name = f"S1L{ss.inspect(fine, SIZE).transitions[0].layers[0]}"
        argv = ["eliminate", f"timm:{NAME}", name, "--weights", str(path), "--out", str(out)]
        assert main(argv) == 0
        found = ss.load(build, out)
        assert found.surgery.after == fine.surgery and found.surgery.name == name
        assert torch.equal(found(image(SIZE)), ss.eliminate(fine, name)(image(SIZE)))


def test_the_command_line_shows_the_surgery_of_its_weights(
    fine: nn.Module, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (by_the_library(fine, tmp_path), by_torch(fine, tmp_path)):
        assert (
            main(["inspect", f"timm:{NAME}", f"--input-size={SIZE}", "--weights", str(path)]) == 0
        )
        assert capsys.readouterr().out == f"{ss.inspect(fine, SIZE)}\n"


def test_transformers_bring_it_back(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    settings = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
    config = transformers.ResNetConfig(**settings, layer_type="basic")
    fine = operated("surgery", awake(transformers.ResNetForImageClassification(config)).eval())
    fine.save_pretrained(tmp_path)
    ss.save(fine, tmp_path / "model.safetensors")
    original = transformers.ResNetForImageClassification.from_pretrained(tmp_path).eval()
    again = ss.load(original, tmp_path / "model.safetensors")
    assert torch.equal(again(image(SIZE)).logits, fine(image(SIZE)).logits)
    assert not torch.equal(original(image(SIZE)).logits, fine(image(SIZE)).logits)


class Detector(nn.Module):
    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone


@pytest.mark.parametrize("handed", [lambda state: state, copy.deepcopy])
def test_an_untouched_model_warns(fine: nn.Module, handed: Callable[[Any], Any]) -> None:
    for untouched, given in ((build(), fine), (Detector(build()), Detector(fine))):
        for model in (untouched, given, untouched):
            state = handed(given.state_dict())
            with warnings.catch_warnings(record=True) as found:
                warnings.simplefilter("always")
                model.load_state_dict(state)
            if model is given:
                assert not found
            else:
                (warning,) = found
                assert "stridesurgery.load" in str(warning.message)
                assert isinstance(model, Detector) or warning.filename == __file__


def test_another_surgery_warns_also_from_a_file(tmp_path: Path) -> None:
    first, second = operated("surgery"), operated("chain")
    saved = torch.load(by_torch(first, tmp_path), weights_only=True)
    with pytest.warns(UserWarning, match="stridesurgery.load") as found:
        ss.eliminate(create(NAME), "S1L0").load_state_dict(saved)
    assert found[0].filename == __file__
    again = ss.eliminate(ss.eliminate(create(NAME), "S1L0"), L=second.surgery.L)  # another size
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for model, state in (
            (second, ss.eliminate(create(NAME), "S1L0").state_dict()),  # the one before
            (second, create(NAME).state_dict()),
            (again, second.state_dict()),
            (copy.deepcopy(second), second.state_dict()),
            (operated("graph"), saved),
        ):
            model.load_state_dict(state)


def test_the_state_dict_holds_nothing_but_plain_data(fine: nn.Module, tmp_path: Path) -> None:
    path = by_torch(fine, tmp_path)
    assert b"stridesurgery" not in path.read_bytes()
    assert list(fine.state_dict()) == list(build().state_dict())
    weights = safetensors.torch.load_file(by_the_library(fine, tmp_path))
    assert all(torch.equal(value, weights[key]) for key, value in fine.state_dict().items())
    with safe_open(tmp_path / "fine.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt", "epoch": "3", "surgery": fine.surgery.to_json()}


def test_a_whole_model_keeps_its_recipe(fine: nn.Module, tmp_path: Path) -> None:
    torch.save(fine, tmp_path / "whole.pt")
    whole = torch.load(tmp_path / "whole.pt", weights_only=False)
    ss.save(copy.deepcopy(whole), tmp_path / "again.safetensors")
    assert torch.equal(
        ss.load(build, tmp_path / "again.safetensors")(image(SIZE)), fine(image(SIZE))
    )


def refused() -> Iterator[tuple[Callable[[Path], Any], type[Exception], str]]:
    def save(model: nn.Module, name: str = "a.safetensors") -> Callable[[Path], Any]:
        return lambda folder: ss.save(model, folder / name)

    def load(name: str, model: Any = build, written: Any = None) -> Callable[[Path], Any]:
        def run(folder: Path) -> Any:
            if written is not None:
                torch.save(written, folder / name)
            return ss.load(model, folder / name)

        return run

    fine = operated("surgery")
    yield save(build()), ss.RequestError, "no .surgery"
    yield save(ss.dual_path(create(NAME), "S1L0", input_size=SIZE)), ss.RequestError, "two paths"
    yield save(nn.DataParallel(fine)), ss.ModelError, r"\(.module\)"
    yield save(fine, "fine.pt"), ss.RequestError, "must end in .safetensors"
    yield save(fine, "no/a.safetensors"), FileNotFoundError, "cannot be written: .*a.safetensors"
    yield load("nowhere.pt"), FileNotFoundError, "nowhere.pt"
    yield load(""), IsADirectoryError, "Is a directory"
    yield load("a.pt", written=[1]), OSError, "cannot be read as weights"
    yield load("a.pt", written=build().state_dict()), ss.RequestError, "records no surgery"
    yield load("a.pt", fine, fine.state_dict()), ss.RequestError, "operated already"
    yield load("a.pt", written=Detector(fine).state_dict()), ss.RequestError, "that of 'backbone'"
    wide = timm.create_model(NAME, num_classes=3)
    yield load("a.pt", wide, fine.state_dict()), ss.RequestError, r"2 of another shape \(fc.weight"


def test_what_cannot_be_saved_or_loaded_is_refused(tmp_path: Path) -> None:
    for run, kind, said in refused():
        with pytest.raises(kind, match=said):
            run(tmp_path)
    assert not (tmp_path / "a.safetensors").exists()


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, fine = tmp_path / "fine.safetensors", operated("surgery")
    path.write_text("precious")
    monkeypatch.setattr(os, "fsync", lambda descriptor: os.write(-1, b""))  # as on a failing disk
    with pytest.raises(OSError, match="cannot be written"):
        ss.save(fine, path)
    assert path.read_text() == "precious" and len(list(tmp_path.iterdir())) == 1
