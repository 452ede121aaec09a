"""Figures of the page: precision and recall against compute and by size of object, and what the size bound does."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from examples.experiments.page.looks import Look, looks, trained_looks
from examples.experiments.page.reading import SIZES, Record, figure

ASIDE = 0.02  # of its compute: no point is drawn further from its place
COMPUTE = "compute (GMAC)"
DPI = 90


# ---- against compute


def against_compute(rows: Mapping[str, Record], out: Path) -> None:
    """The paper's Figure 6: one point a row, with its interval."""
    panels = Figure(figsize=(11, 14), layout="constrained")
    axes = panels.subplots(1 + len(SIZES), 2, sharex=True)
    for line, size in zip(axes, ("", *SIZES), strict=True):
        for panel, measure in zip(line, ("ap", "ar"), strict=True):
            draw_points(panel, rows, looks(list(rows)), f"{measure}_{size}" if size else measure)
            panel.set_title(f"{size or 'all'} objects", fontsize="medium")
            panel.set_ylabel(f"{measure.upper()} (%)")
    for panel in axes[-1]:
        panel.set_xlabel(compute_label(rows))
    panels.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    panels.savefig(out, dpi=DPI)


def trained_against_compute(groups: Mapping[str, Mapping[str, Record]], out: Path) -> None:
    """AP of trained rows, a panel for each set: one point a row, with its interval."""
    panels, all_axes = grid(len(groups))
    for axes, (title, rows) in zip(all_axes, groups.items(), strict=True):
        draw_points(axes, rows, trained_looks(rows), "ap")
        axes.set_xlabel(compute_label(rows))
        axes.set_ylabel("AP (%)")
        axes.set_title(title, fontsize="medium")
        legend_below(axes)
    panels.savefig(out, dpi=DPI)


def draw_points(
    panel: Axes, rows: Mapping[str, Record], look: Mapping[str, Look], name: str
) -> None:
    """One figure of each row over its compute; rows with too few such objects are left out."""
    drawn_at = places({title: record["gmacs"] for title, record in rows.items()})
    for title, record in rows.items():
        value = figure(record, name)
        if value is None:
            continue
        panel.errorbar(
            drawn_at[title],
            value.value,
            (value.high - value.low) / 2,
            fmt=look[title].marker,
            ms=7,
            color=look[title].colour,
            mfc="none" if look[title].hollow else look[title].colour,
            zorder=3 if look[title].hollow else 2,  # what is filled would hide it
            elinewidth=0.9,
            label=title,
        )
    panel.set_xscale("log")
    panel.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    panel.xaxis.set_major_formatter("{x:g}")
    panel.minorticks_off()
    panel.set_ylim(bottom=0)


def places(gmacs: Mapping[str, float]) -> dict[str, float]:
    """Where rows are drawn: at their compute; those of equal compute beside each other, around it."""
    shared = {
        value: [title for title, own in gmacs.items() if own == value] for value in gmacs.values()
    }
    return {
        title: value * (1 + ASIDE) ** step
        for value, titles in shared.items()
        for title, step in zip(
            titles, np.linspace(-1, 1, len(titles)) if len(titles) > 1 else [0.0], strict=True
        )
    }


def compute_label(rows: Mapping[str, Record]) -> str:
    distinct = {record["gmacs"] for record in rows.values()}
    return (
        COMPUTE
        if len(distinct) == len(rows)
        else f"{COMPUTE}; equal ones are spread by up to {100 * ASIDE:g} %"
    )


# ---- by size of object


def by_size(groups: Mapping[str, Mapping[str, Record]], out: Path) -> None:
    """AP by size of trained rows, a panel for each set."""
    panels, all_axes = grid(len(groups))
    for axes, (title, rows) in zip(all_axes, groups.items(), strict=True):
        draw_bars(axes, rows)
        axes.set_title(title, fontsize="medium")
        legend_below(axes)
    panels.savefig(out, dpi=DPI)


def draw_bars(axes: Axes, rows: Mapping[str, Record]) -> None:
    """A bar for each size and row, unless there are too few objects of that size."""
    width, look, shown = 0.8 / len(rows), trained_looks(rows), set()
    for number, (title, record) in enumerate(rows.items()):
        values = {k: figure(record, f"ap_{size}") for k, size in enumerate(SIZES)}
        known = {k: value for k, value in values.items() if value is not None}
        shown |= set(known)
        axes.bar(
            [k + (number + 0.5) * width - 0.4 for k in known],
            [value.value for value in known.values()],
            width,
            yerr=[(value.high - value.low) / 2 for value in known.values()],
            error_kw={"elinewidth": 0.9, "capsize": 2, "ecolor": "#666666"},
            color=look[title].colour,
            hatch=look[title].hatch,
            edgecolor="white",
            label=title,
        )
    axes.set_xticks(
        range(len(SIZES)), [s if k in shown else f"{s}: too few" for k, s in enumerate(SIZES)]
    )
    axes.set_xlim(-0.5, len(SIZES) - 0.5)
    axes.set_xlabel("size of the objects")
    axes.set_ylim(bottom=0)
    axes.set_ylabel("AP (%)")


# ---- the size bound


def sweeps(rows: Mapping[str, Record], out: Path) -> None:
    """AP on all photographs, by the bound below which a finer view's boxes are used."""
    panel = Figure(figsize=(9, 4.2), layout="constrained")
    axes = panel.subplots()
    draw_sweeps(axes, rows)
    panel.legend(loc="outside right upper", fontsize="small")
    panel.savefig(out, dpi=DPI)


def draw_sweeps(axes: Axes, rows: Mapping[str, Record]) -> None:
    tried: set[float] = set()
    for title, record in rows.items():
        if "sweep" in record:
            points = {float(bound): values[2] for bound, values in record["sweep"].items()}
            style = "--" if "pyramid" in title else "-"
            axes.plot(
                sorted(points),
                [points[b] for b in sorted(points)],
                style,
                marker="o",
                ms=4,
                label=title,
            )
            tried |= set(points)
    axes.axhline(rows["as is"]["figures"]["ap"][0], color="#999999", lw=0.8, label="as is")
    axes.set_xticks(
        sorted(tried), [f"{bound:g}" if bound else "0 (none)" for bound in sorted(tried)]
    )
    axes.set_xlabel("bound on the finer view's boxes (side in pixels of the photograph)")
    axes.set_ylabel("AP (%)")


# ---- panels


def grid(count: int) -> tuple[Figure, list[Axes]]:
    """Panels in lines of two."""
    columns, lines = min(count, 2), -(-count // 2)
    panels = Figure(figsize=(5.5 * columns, 4.4 * lines), layout="constrained")
    return panels, [panels.add_subplot(lines, columns, place) for place in range(1, count + 1)]


def legend_below(axes: Axes) -> None:
    axes.legend(
        loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, fontsize="small", frameon=False
    )
