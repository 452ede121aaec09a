"""Operate transformers' vision backbones at every transition, and write docs/transformers.md.

    python -m tests.zoo.others

Every backbone class and every model class with image classification is built from its default
configuration, without weights; the page names those that cannot be.
"""

import inspect
import logging
import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers.models.auto import modeling_auto

import stridesurgery as ss

PAGE = Path(__file__).parents[2] / "docs" / "transformers.md"
SETTINGS = {"TimmBackbone": {"backbone": "resnet18"}}  # what has no default
Row = dict[str, Any]


def classes() -> list[str]:
    """Return the names of the classes that take images, backbones first."""
    models = modeling_auto.MODEL_MAPPING_NAMES
    found = list(modeling_auto.MODEL_FOR_BACKBONE_MAPPING_NAMES.values())
    for family in modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES:
        names = models.get(family)
        found += [names] if isinstance(names, str) else list(names or ())
    return [name for name in dict.fromkeys(map(_tower, found)) if hasattr(transformers, name)]


def _tower(name: str) -> str:
    """Return the class of the part that takes images, where a model takes text too."""
    vision = name.replace("Model", "VisionModel")
    return vision if hasattr(transformers, vision) else name


def build(name: str) -> nn.Module | str:
    """Return a model without weights, or why it cannot be built."""
    kind = getattr(transformers, name)
    first = list(inspect.signature(kind.forward).parameters)[1]
    if first != "pixel_values":
        return f"takes `{first}`, not an image"
    for device in ("meta", "cpu"):  # some read numbers while they are built
        for listed in (False, True):  # some add lists to what is a tuple by default
            config = kind.config_class(**SETTINGS.get(name, {}))
            for key, value in vars(config).items():
                if listed and isinstance(value, tuple):
                    setattr(config, key, list(value))
            try:
                with torch.device(device):
                    return kind(config).eval()
            except Exception as problem:
                why = _shortly(problem)
    return why


def row(name: str, net: nn.Module) -> Row:
    """Return what happens at every transition of one model."""
    found: Row = {"name": name, "convolutional": _is_convolutional(net)}
    size = getattr(net.config, "image_size", None)
    try:
        report = ss.inspect(net, size if isinstance(size, int) else 224)
    except ss.SurgeryError as problem:
        return {**found, "transitions": [], "plain": {"not recorded": _shortly(problem)}}
    found["transitions"] = [transition.layers[0] for transition in report.transitions]
    found["plain"] = _refused(net, found["transitions"], input_size=report.input_size)
    still = {"input_size": report.input_size, "positions": "resample"}
    return {**found, "still": _refused(net, found["plain"], **still)}


def _refused(net: nn.Module, layers: Iterable[int], **options: Any) -> dict[int, str]:
    """Return why, by the first layer of each transition that is refused."""
    found = {}
    for layer in layers:
        try:
            ss.eliminate(net, L=layer, **options)
        except ss.SurgeryError as problem:
            found[layer] = _shortly(problem)
    return found


def _is_convolutional(net: nn.Module) -> bool:
    """Tell whether a network has no attention among its modules."""
    return not any("attention" in type(m).__name__.lower() for m in net.modules())


def _shortly(problem: Exception) -> str:
    text = re.sub(r"^S\d+L[\d-]+ is not possible: ", "", " ".join(str(problem).split()))
    return f"{type(problem).__name__}: {text.split('. ')[0][:160]}"


def page(rows: list[Row], left_out: dict[str, str]) -> str:
    """Return the page: counts, one line for each model, and what could not be built."""
    strided = [r for r in rows if r["transitions"]]
    cnns = [r for r in strided if r["convolutional"]]

    def counted(rows: list[Row], refusals: str) -> str:
        done = sum(len(r["transitions"]) - len(r[refusals]) for r in rows)
        total = sum(len(r["transitions"]) for r in rows)
        whole = sum(not r[refusals] for r in rows)
        return f"{whole} of {len(rows)} | {done} of {total}"

    lines = [
        "# transformers",
        "",
        f"What `stridesurgery` makes of {len(rows)} vision backbones and models of transformers",
        f"{transformers.__version__}, built from their default configurations. Written by",
        "",
        "    python -m tests.zoo.others",
        "",
        "| | models operated at every transition | transitions |",
        "|---|---|---|",
        f"| all | {counted(strided, 'plain')} |",
        f'| all, with `positions="resample"` | {counted(strided, "still")} |',
        f"| without attention | {counted(cnns, 'plain')} |",
        "",
        'Layers name their transitions. **With positions** says what `positions="resample"` adds',
        'where a transition is refused: "all", or which are refused still.',
        "",
        "| class | attention | transitions | operated at | refused | with positions |",
        "|---|---|---|---|---|---|",
    ]
    for r in sorted(rows, key=lambda r: r["name"]):
        done = [layer for layer in r["transitions"] if layer not in r["plain"]]
        whole = bool(done) and not r["plain"]
        adds = "-" if not r["plain"] or not r["transitions"] else _reasons(r["still"]) or "all"
        cells = (
            r["name"], "" if r["convolutional"] else "yes", len(r["transitions"]),
            "all" if whole else ", ".join(map(str, done)) or "-", _reasons(r["plain"]) or "-", adds,
        )  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    lines += ["", "## Not built", ""]
    lines += [f"- {name}: {why}" for name, why in sorted(left_out.items())]
    return "\n".join(lines) + "\n"


def _reasons(refusals: dict[int, str]) -> str:
    """Return each reason once, behind the layers that have it."""
    layers: dict[str, list[str]] = {}
    for layer, why in refusals.items():
        layers.setdefault(why.replace("|", "\\|"), []).append(str(layer))
    return "<br>".join(f"{', '.join(found)}: {why}" for why, found in layers.items())


def main() -> None:
    """Operate every model, and write the page."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    rows, left_out = [], {}
    for name in classes():
        net = build(name)
        if isinstance(net, str):
            left_out[name] = net
        else:
            rows.append(row(name, net))
    PAGE.write_text(page(rows, left_out))


if __name__ == "__main__":
    main()
