"""Writes docs/deployment.md from the trials."""

from collections import Counter
from importlib.metadata import PackageNotFoundError, version
from typing import Any

Row = dict[str, Any]
FORMS = ("original", "module", "graph", "dilate", "features", "dual path")
PACKAGES = """torch torchvision timm onnx onnxruntime openvino torchao torch-pruning accelerate
pytorch-lightning safetensors"""

WHY = {  # in words, before what the tool says
    "torch.jit.script": "TorchScript, which torch has deprecated, compiles no star arguments and no "
    "`super()`: rewritten graphs call functions that have the one, and a layer whose padding is by "
    "rule has the other. `torch.jit.trace` and `torch.export` take them all.",
    "PT2E quantization (torchao)": "The quantizer takes the calls of one module for one operator, and "
    "both paths of a dual path call the same modules. It refuses any network that calls one twice.",
}


def page(rows: list[Row]) -> str:
    """Return the page: a table of tools by forms, and what each failure says."""
    counts = Counter(row["network"] for row in rows)
    networks = [name for name, count in counts.items() if count == max(counts.values())]
    tools = list(dict.fromkeys(row["tool"] for row in rows))
    results = {(row["tool"], row["form"], row["network"]): row["result"] for row in rows}
    lines = [
        "# Deployment",
        "",
        "Which tools take operated models, beside what they do with the untouched one. Written by",
        "",
        "    python -m tests.tools --rows trials.jsonl",
        "",
        f"which really runs each tool on {', '.join(networks)}, at 64x64 pixels,",
        f"and compares what it makes with the model itself. {_versions()}.",
        "",
        "`module`, `graph` and `dilate` are what `eliminate` gives for S1L0, `features` and `dual "
        "path` return maps.",
        f"**{len(networks)}**: works on all {len(networks)} networks; a smaller number: on so "
        "many; -: on none; not run: not installed here.",
        "",
        f"| tool | {' | '.join(FORMS)} |",
        f"|---|{'---|' * len(FORMS)}",
    ]
    for tool in tools:
        cells = [_cell([results[tool, form, net] for net in networks]) for form in FORMS]
        lines.append(f"| {tool} | {' | '.join(cells)} |")
    lines += ["", "## What fails, and why", ""]
    for tool in tools:
        found: dict[str, list[str]] = {}
        for form in FORMS:
            for net in networks:
                if (result := results[tool, form, net]) not in ("works", "not run"):
                    found.setdefault(result, []).append(f"{net} ({form})")
        if found:
            lines += [f"**{tool}** {WHY.get(tool, '')}".rstrip(), ""]
            lines += [f"- `{why.replace('`', '')}`: {', '.join(who)}" for why, who in found.items()]
            lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _cell(results: list[str]) -> str:
    if "not run" in results:
        return "not run"
    count = results.count("works")
    return f"**{count}**" if count == len(results) else str(count or "-")


def _versions() -> str:
    found = []
    for package in PACKAGES.split():
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)
