"""Save operated models with their recipe, and load them."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import safetensors.torch
import torch
from safetensors import safe_open
from timm.models import clean_state_dict
from torch import Tensor, nn

from stridesurgery._analysis import FeatureInfo
from stridesurgery._rewrite.eliminate import eliminate
from stridesurgery._rewrite.recipe import ENTRY, recipes_in
from stridesurgery._trace import check_plain
from stridesurgery.errors import RequestError
from stridesurgery.surgery import Surgery

M = TypeVar("M", bound=nn.Module)
SUFFIX = ".safetensors"
_WHOLE = ("", "module", "_orig_mod")  # the model itself in its state_dict, and in that of a wrapper
_CHECKPOINT = ("state_dict_ema", "model_ema", "state_dict", "model")  # where timm looks for weights


def save(model: nn.Module, path: str | Path, *, metadata: Mapping[str, str] | None = None) -> None:
    """Save an operated model: its weights as safetensors, its recipe in the file's metadata.

    Any other program reads the weights as those of the model as it was before. The file is
    written whole or not at all.

    Args:
        model: what `eliminate` returned, trained or not. Of what `features` makes of it, the
            whole operated model is saved.
        path: ends in .safetensors.
        metadata: other entries for the file's metadata.

    Raises:
        RequestError: the model has no surgery, has two paths, or its state_dict holds something
            other than tensors; or the path has another ending.
        ModelError: the model is wrapped, compiled or scripted.
        OSError: the file cannot be written.

    Example:
        >>> import tempfile, timm, stridesurgery as ss
        >>> fine = ss.eliminate(timm.create_model("resnet18"), "S1L0", input_size=64)
        >>> path = tempfile.mkdtemp() + "/fine.safetensors"
        >>> ss.save(fine, path)
        >>> ss.load(timm.create_model("resnet18"), path).surgery == fine.surgery
        True
    """
    path = Path(path)
    if not _is_safe(path):
        raise RequestError(f"{path}: the name must end in {SUFFIX}")
    entries = {"format": "pt", **(metadata or {}), ENTRY: surgery_of(model).to_json()}
    state = model.state_dict()
    odd = [key for key, value in state.items() if not isinstance(value, Tensor)]
    if odd:
        raise RequestError(
            f"{odd[0]} of the state_dict is not a tensor, which safetensors cannot hold; "
            "torch.save(model.state_dict(), file) holds it, and the recipe: load reads that too"
        )
    # the format cannot hold two tensors that share memory
    copies = {key: value.detach().to("cpu", copy=True).contiguous() for key, value in state.items()}
    # `save_file` is not used: other users could not read its file
    with written_whole(path) as part:
        part.write_bytes(safetensors.torch.save(copies, entries))


def load(model: M | Callable[[], M], path: str | Path) -> M:
    """Load an operated model: carry out the surgery that a file records, and load its weights.

    Args:
        model: the model as it was before the surgery, which stays as it is, or a function that
            builds it. Its weights do not matter.
        path: a file of `save` or of the command line, or of `torch.save` if it holds the
            state_dict of an operated model, alone or as "state_dict" or "model".

    Returns:
        The operated model, with the recipe attached as `.surgery`.

    Raises:
        RequestError: the file has no recipe, or its weights do not fit the model.
        OSError: the file cannot be read.

    Example:
        >>> import tempfile, timm, torch, stridesurgery as ss
        >>> fine = ss.eliminate(timm.create_model("resnet18"), "S1L0", input_size=64).eval()
        >>> path = tempfile.mkdtemp() + "/fine.pt"
        >>> torch.save(fine.state_dict(), path)
        >>> again = ss.load(lambda: timm.create_model("resnet18").eval(), path)
        >>> image = torch.rand(1, 3, 64, 64)
        >>> torch.equal(again(image), fine(image))
        True
    """
    surgery, state = read(path)
    if surgery is None:
        raise RequestError(f"{path} records no surgery; load_state_dict loads its weights")
    original: M = model if isinstance(model, nn.Module) else model()  # type: ignore[assignment]
    if isinstance(getattr(original, "surgery", None), Surgery):
        raise RequestError("the model is operated already; give the model as it was before")
    operated = eliminate(original, surgery)
    fill(operated, state, str(path))
    return operated


def surgery_of(model: nn.Module) -> Surgery:
    """Return the surgery that makes a model again.

    Raises:
        RequestError: there is none, or the model is more than what it makes.
        ModelError: the model is wrapped, compiled or scripted.
    """
    check_plain(model)
    surgery = getattr(model, "surgery", None)
    if not isinstance(surgery, Surgery):
        raise RequestError(
            f"this {type(model).__name__} has no .surgery, so there is no recipe to save; "
            "safetensors.torch.save_model saves the weights alone"
        )
    maps = getattr(model, "feature_info", None)
    if isinstance(maps, FeatureInfo) and any(
        source.network != "operated" for map_ in maps.features for source in map_.sources
    ):
        raise RequestError(
            "the model has two paths, which its surgery alone does not make: save its state_dict; "
            "dual_path with the same arguments and load_state_dict bring it back"
        )
    return surgery


def read(path: str | Path) -> tuple[Surgery | None, dict[str, Any]]:
    """Return the recipe and the weights in a file. No code in the file is run.

    Raises:
        OSError: the file does not exist, or holds no weights that can be read.
        RequestError: the recipe is no surgery, or that of a part of the model.
    """
    path = Path(path)
    with path.open("rb"):  # says it in the usual words if it cannot be read
        pass
    try:
        recipes, state = _safetensors(path) if _is_safe(path) else _pickled(path)
    except Exception as problem:  # torch.load raises all kinds
        raise OSError(
            f"{path} cannot be read as weights: {type(problem).__name__}: {problem}"
        ) from problem
    recipe = next((recipes[part] for part in _WHOLE if part in recipes), None)
    if recipe is None and recipes:
        raise RequestError(
            f"the surgery that {path} records is that of {next(iter(recipes))!r}: operate that "
            "part of the model (`at`), then load_state_dict"
        )
    return None if recipe is None else Surgery.from_json(recipe), state


def _is_safe(path: Path) -> bool:
    return path.suffix.lower() == SUFFIX


def _safetensors(path: Path) -> tuple[dict[str, str], dict[str, Any]]:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        state = {key: file.get_tensor(key) for key in file.keys()}
    return {"": metadata[ENTRY]} if ENTRY in metadata else {}, state


def _pickled(path: Path) -> tuple[dict[str, str], dict[str, Any]]:
    found = torch.load(path, map_location="cpu", weights_only=True)
    inside = (found.get(key) for key in _CHECKPOINT)
    state = next((value for value in inside if isinstance(value, Mapping)), found)
    return recipes_in(state), clean_state_dict(dict(state))


def fill(model: nn.Module, state: Mapping[str, Any], source: str) -> None:
    """Load a state_dict into a model.

    Raises:
        RequestError: it does not fit.
    """
    try:
        model.load_state_dict(state)
    except RuntimeError as problem:
        misfit = _misfit(model.state_dict(), state) or str(problem)
        raise RequestError(f"{source} does not fit {type(model).__name__}: {misfit}") from problem


def _misfit(own: Mapping[str, Any], state: Mapping[str, Any]) -> str:
    shapes = {key: tuple(getattr(value, "shape", ())) for key, value in state.items()}
    other = [
        f"{key} {shapes[key]} instead of {tuple(value.shape)}"
        for key, value in own.items()
        if key in shapes and shapes[key] != tuple(value.shape)
    ]
    found = {
        "missing": [key for key in own if key not in state],
        "unknown": [key for key in state if key not in own],
        "of another shape": other,
    }
    return "; ".join(f"{len(keys)} {what} ({_few(keys)})" for what, keys in found.items() if keys)


def _few(names: list[str]) -> str:
    return ", ".join(names[:2]) + (", ..." if len(names) > 2 else "")


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a path to write to.

    At the end, the file there replaces `path` in one step. It does so only if nothing was raised.

    Raises:
        OSError: the file cannot be written.
    """
    path = path.resolve()  # a link stays a link
    try:
        with TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            part = Path(folder) / path.name
            yield part
            with part.open("rb+") as file:
                os.fsync(file.fileno())
            os.replace(part, path)
    except OSError as problem:
        why = f"cannot be written: {problem.strerror or problem}"
        raise type(problem)(problem.errno, why, str(path)) from problem
