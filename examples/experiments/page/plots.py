"""Figures of the page: precision and recall by size against compute, and what the size bound does."""

from collections.abc import Mapping
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from examples.experiments.page.reading import SIZES, Record, figure

COLOURS = {
    "as is": "#000000",
    "by hand": "#999999",
    "eliminated": "#0072b2",
    "dual path": "#d55e00",
    "larger input": "#009e73",
}
MARKERS = {"S1L0": "o", "S1L4": "s", "S1L6": "^", "S2L4-6": "D", "S1L12": "v", "pyramid": "P", "600": "X"}
TICKS = (0.75, 1, 1.5, 2, 3, 4, 6, 9)  # GMAC


def kind(title: str) -> str:
    """Which family a row of the training-free table belongs to."""
    if title == "as is":
        return title
    if "by hand" in title:
        return "by hand"
    if "pixels" in title:
        return "larger input"
    return "dual path" if "dual path" in title else "eliminated"


def against_compute(rows: Mapping[str, Record], out: Path) -> None:
    """The paper's Figure 6: one point a row, with its interval."""
    panels = Figure(figsize=(16, 7), layout="constrained")
    axes = panels.subplots(2, 1 + len(SIZES), sharex=True)
    for line, (measure, name) in zip(axes, (("ap", "AP"), ("ar", "AR")), strict=True):
        for panel, size in zip(line, ("", *(f"_{size}" for size in SIZES)), strict=True):
            draw_panel(panel, rows, f"{measure}{size}")
            panel.set_title(f"{name}, {size[1:] or 'all'} objects", fontsize="medium")
    for panel in axes[1]:
        panel.set_xlabel("compute (GMAC)")
    panels.legend(*axes[0][0].get_legend_handles_labels(), loc="outside right upper", fontsize="small")
    panels.savefig(out, dpi=80)


def draw_panel(panel: Axes, rows: Mapping[str, Record], name: str) -> None:
    for title, record in rows.items():
        value = figure(record, name)
        if value is None:
            continue
        family = kind(title)
        aside = 1 + 0.02 * list(COLOURS).index(family)  # rows of equal compute stand side by side
        marker = next((m for start, m in MARKERS.items() if title.startswith(start)), "*")
        hollow = "enlarged" in title
        panel.errorbar(
            aside * record["gmacs"],
            value.value,
            (value.high - value.low) / 2,
            fmt=marker,
            ms=6,
            color=COLOURS[family],
            mfc="white" if hollow else COLOURS[family],
            elinewidth=0.7,
            label=title,
        )
    panel.set_xscale("log")
    panel.set_xticks(TICKS, [f"{tick:g}" for tick in TICKS])
    panel.minorticks_off()
    panel.set_ylim(bottom=0)


def sweeps(rows: Mapping[str, Record], out: Path) -> None:
    """AP on all photographs, by the bound below which a finer view's boxes are used."""
    panel = Figure(figsize=(6.5, 4), layout="constrained")
    axes = panel.subplots()
    for title, record in rows.items():
        if "sweep" in record:
            bounds = sorted(map(float, record["sweep"]))
            points = {float(bound): values[2] for bound, values in record["sweep"].items()}
            style = "--" if "pyramid" in title else "-"
            axes.plot(bounds, [points[b] for b in bounds], style, marker="o", ms=3, label=title)
    axes.axhline(rows["as is"]["figures"]["ap"][0], color="#999999", lw=0.8, label="as is")
    axes.set_xlabel("bound on the finer view's boxes (side in pixels of the photograph)")
    axes.set_ylabel("AP (%)")
    axes.legend(fontsize="x-small")
    panel.savefig(out, dpi=80)


def by_size(groups: Mapping[str, Mapping[str, Record]], out: Path) -> None:
    """AP by size of trained rows, a panel for each set."""
    panels = Figure(figsize=(5.5 * len(groups), 3.6), layout="constrained")
    for axes, (title, rows) in zip(panels.subplots(1, len(groups), squeeze=False)[0], groups.items(), strict=True):
        for number, (name, record) in enumerate(rows.items()):
            values = [figure(record, f"ap_{size}") for size in SIZES]
            places = [k + number * 0.8 / len(rows) for k in range(len(SIZES))]
            heights = [0.0 if v is None else v.value for v in values]
            spread = [0.0 if v is None else (v.high - v.low) / 2 for v in values]
            axes.bar(places, heights, 0.8 / len(rows), yerr=spread, error_kw={"elinewidth": 0.8}, label=name)
        axes.set_xticks([k + 0.4 - 0.4 / len(rows) for k in range(len(SIZES))], SIZES)
        axes.set_ylim(bottom=0)
        axes.set_ylabel("AP (%)")
        axes.set_title(title, fontsize="medium")
        axes.legend(fontsize="x-small")
    panels.savefig(out, dpi=80)
