"""The page's plots draw each row at its compute, tell rows apart, and draw nothing where there are too few objects."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.container import BarContainer, ErrorbarContainer
from matplotlib.figure import Figure

from examples.experiments.page import looks, plots
from examples.experiments.page.reading import SIZES


def record(
    row: str,
    gmacs: float,
    *,
    few: tuple[str, ...] = (),
    backbone: str | None = None,
    steps: int = 9,
) -> dict:
    """A made-up row; `few`: the sizes of which there are too few objects."""
    named = {} if backbone is None else {"backbone": backbone}
    sizes = ["", *(f"_{size}" for size in SIZES)]
    return {
        **named,
        "row": row,
        "settings": {"steps": steps},
        "gmacs": gmacs,
        "figures": {f"{m}{size}": [10.0, 9.0, 11.0] for m in ("ap", "ar") for size in sizes},
        "objects": {size: 5 if size[1:] in few else 100 for size in sizes},
    }


SET = {  # ten rows of three backbones
    "as is": record("SSDMnetv1", 1.3, backbone="mobilenetv1_100"),
    "as is, S1L0's boxes": record("SSDMnetv1-Anchor10-45", 1.3, backbone="mobilenetv1_100"),
    "S1L0": record("SSDMnetv1-S1L0", 5.0, backbone="mobilenetv1_100"),
    "600 pixels": record("SSDMnetv1-Size600", 5.0, backbone="mobilenetv1_100"),
    "split": record("SSDMnetv1-S1L0-DualPath19-10-S", 5.9, backbone="mobilenetv1_100"),
    "mobilenet_v2": record("mobilenet_v2", 0.8, backbone="mobilenet_v2"),
    "mobilenet_v2:S1L0": record("mobilenet_v2:S1L0", 2.9, backbone="mobilenet_v2"),
    "resnet18": record("resnet18", 3.9, backbone="resnet18"),
    "resnet18:S1L0": record("resnet18:S1L0", 15.0, backbone="resnet18"),
    "resnet18:S1L0:dual": record("resnet18:S1L0:dual", 18.0, backbone="resnet18"),
}
TUNED = {
    "as is": record("base", 0.7),
    "as is, before training": record("base", 0.7, steps=0),
    "S1L0": record("S1L0", 2.9),
    "split": record("S1L0-Split", 3.4),
}


@pytest.fixture
def axes() -> Axes:
    return Figure().subplots()


def bars(axes: Axes) -> dict[str, BarContainer]:
    return {c.get_label(): c for c in axes.containers if isinstance(c, BarContainer)}


def test_a_row_is_drawn_at_its_compute(axes: Axes) -> None:
    plots.draw_points(axes, SET, looks.trained_looks(SET), "ap")
    drawn = {
        c.get_label(): c.lines[0].get_xdata().item()
        for c in axes.containers
        if isinstance(c, ErrorbarContainer)
    }
    assert set(drawn) == set(SET) and len(set(drawn.values())) == len(SET)
    assert all(abs(x / SET[title]["gmacs"] - 1) <= 0.02 + 1e-12 for title, x in drawn.items())
    assert drawn["split"] == 5.9  # no other row costs as much
    for equal in (("as is", "as is, S1L0's boxes"), ("S1L0", "600 pixels")):
        middle = np.prod([drawn[title] for title in equal]) ** 0.5
        assert middle == pytest.approx(SET[equal[0]]["gmacs"])


def test_the_label_says_that_equals_are_spread() -> None:
    assert "2 %" in plots.compute_label(SET)
    assert plots.compute_label({"as is": SET["as is"], "S1L0": SET["S1L0"]}) == "compute (GMAC)"


@pytest.mark.parametrize("rows", [SET, TUNED], ids=["set", "tuned"])
def test_trained_rows_are_told_apart(rows: dict) -> None:
    found = looks.trained_looks(rows)
    assert len({(look.colour, look.marker, look.hollow) for look in found.values()}) == len(rows)
    assert len({(look.colour, look.hatch) for look in found.values()}) == len(rows)
    assert {title for title, look in found.items() if look.hatch} == {
        t for t in rows if t.startswith(("mob", "res"))
    }


def test_a_row_has_the_colour_of_its_kind_by_any_title() -> None:
    kinds = {
        "as is": "as is",
        "S1L0": "S1L0",
        "split": "S1L0 dual path",
        "600 pixels": "pyramid, 600 pixels",
    }
    trained, free = looks.trained_looks(SET), looks.looks(list(kinds.values()))
    assert {title: look.colour for title, look in trained.items() if title in kinds} == {
        title: free[kind].colour for title, kind in kinds.items()
    }


def test_too_few_objects_give_no_bar(axes: Axes) -> None:
    rows = {
        "as is": record("base", 0.7, few=("small", "large")),
        "S1L0": record("S1L0", 2.9, few=("large",)),
    }
    plots.draw_bars(axes, rows)
    assert {title: len(found) for title, found in bars(axes).items()} == {"as is": 1, "S1L0": 2}
    assert [label.get_text() for label in axes.get_xticklabels()] == [
        "small",
        "medium",
        "large: too few",
    ]
    for found in bars(axes).values():
        assert all(
            bar.get_height() == 10 and round(bar.get_x() + bar.get_width() / 2) in (0, 1)
            for bar in found
        )


def test_the_legend_covers_no_bar(axes: Axes) -> None:
    plots.draw_bars(axes, SET)
    plots.legend_below(axes)
    axes.get_figure().draw_without_rendering()
    legend = axes.get_legend().get_window_extent()
    drawn = [bar for found in bars(axes).values() for bar in found]
    assert len(drawn) == 30 and not any(legend.overlaps(bar.get_window_extent()) for bar in drawn)


def test_a_bound_of_zero_is_named(axes: Axes) -> None:
    swept = {"sweep": {"48.0": [1, 2, 3.0], "0.0": [1, 2, 1.0], "128.0": [2, 3, 4.0]}}
    plots.draw_sweeps(
        axes, {"as is": record("as is", 0.7), "S1L0 dual path": {**record("", 3.6), **swept}}
    )
    line, *_ = axes.lines
    assert line.get_xdata().tolist() == [0, 48, 128] and line.get_ydata().tolist() == [1, 3, 4]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0 (none)", "48", "128"]


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("plot", [plots.by_size, plots.trained_against_compute])
def test_there_is_a_panel_for_each_set(
    plot: Callable[..., None], count: int, tmp_path: Path
) -> None:
    plot({f"set {number}": SET for number in range(count)}, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    figure, panels = plots.grid(count)
    assert figure.axes == panels and len(panels) == count
