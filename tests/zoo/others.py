"""Operate transformers' vision backbones at every transition, and write docs/transformers.md.

    python -m tests.zoo.others

Every backbone class and every model class with image classification is built from its default
configuration, without weights, where that needs no other package.
"""

import inspect
import logging
import re
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers.models.auto import modeling_auto

import stridesurgery as ss

PAGE = Path(__file__).parents[2] / "docs" / "transformers.md"
Row = dict[str, Any]


def classes() -> list[str]:
    """Return the names of the classes that take images, backbones first."""
    models = modeling_auto.MODEL_MAPPING_NAMES
    found = list(modeling_auto.MODEL_FOR_BACKBONE_MAPPING_NAMES.values())
    for family in modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES:
        names = models.get(family)
        found += [names] if isinstance(names, str) else list(names or ())
    return [name for name in dict.fromkeys(found) if hasattr(transformers, name)]


def build(name: str) -> nn.Module | None:
    """Return a model without weights, or None where it takes no image or cannot be built as it is."""
    kind = getattr(transformers, name)
    first = list(inspect.signature(kind.forward).parameters)[1:2]
    for device in ("meta", "cpu") if first == ["pixel_values"] else ():
        try:  # some read numbers while they are built, which tensors without numbers do not have
            with torch.device(device):
                return kind(kind.config_class()).eval()
        except Exception:  # needs timm's name of a model, a package, or other settings than its own
            continue
    return None


def row(name: str, net: nn.Module) -> Row:
    """Return what happens at every transition of one model."""
    found: Row = {"name": name, "convolutional": _is_convolutional(net), "done": [], "why": {}}
    size = getattr(net.config, "image_size", None)
    try:
        report = ss.inspect(net, size if isinstance(size, int) else 224)
    except ss.SurgeryError as problem:
        return {**found, "transitions": 0, "why": {"not recorded": _shortly(problem)}}
    found["transitions"] = len(report.transitions)
    for transition in report.transitions:
        layer = transition.layers[0]
        try:
            ss.eliminate(net, L=layer, input_size=report.input_size)
            found["done"].append(layer)
        except ss.SurgeryError as problem:
            found["why"][layer] = _shortly(problem)
    return found


def _is_convolutional(net: nn.Module) -> bool:
    """Tell whether a network has no attention among its modules."""
    return not any("attention" in type(m).__name__.lower() for m in net.modules())


def _shortly(problem: Exception) -> str:
    text = re.sub(r"^S\d+L[\d-]+ is not possible: ", "", " ".join(str(problem).split()))
    return f"{type(problem).__name__}: {text.split('. ')[0][:160]}"


def page(rows: list[Row]) -> str:
    """Return the page: counts, and one line for each model."""
    strided = [r for r in rows if r["transitions"]]
    whole = [r for r in strided if len(r["done"]) == r["transitions"]]
    cnns = [r for r in strided if r["convolutional"]]
    done = sum(len(r["done"]) for r in strided)
    lines = [
        "# transformers",
        "",
        f"What `stridesurgery` makes of {len(rows)} vision backbones and models of transformers",
        f"{transformers.__version__}, built from their default configurations. Written by",
        "",
        "    python -m tests.zoo.others",
        "",
        f"{len(whole)} of {len(strided)} are operated at every transition, {done} of "
        f"{sum(r['transitions'] for r in strided)} transitions in all; of those without attention",
        f"{sum(r in whole for r in cnns)} of {len(cnns)}.",
        "",
        "| class | attention | transitions | operated at | refused |",
        "|---|---|---|---|---|",
    ]
    for r in sorted(rows, key=lambda r: r["name"]):
        done_at = "all" if r in whole else ", ".join(map(str, r["done"])) or "-"
        reasons: dict[str, list[str]] = {}
        for layer, why in r["why"].items():
            reasons.setdefault(why, []).append(str(layer))
        refused = "<br>".join(f"{', '.join(ls)}: {why}" for why, ls in reasons.items()) or "-"
        attention = "" if r["convolutional"] else "yes"
        cells = (r["name"], attention, r["transitions"], done_at, refused.replace("|", "\\|"))
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Operate every model, and write the page."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    rows = [row(name, net) for name in classes() if (net := build(name)) is not None]
    PAGE.write_text(page(rows))


if __name__ == "__main__":
    main()
