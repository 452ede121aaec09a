"""What the pictures show is what `inspect`, `cost`, `features` and `search` tell; they can be read without colours."""

import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import timm
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from timm.layers import GroupNorm

import examples.pictures
import stridesurgery as ss
from stridesurgery import plot
from stridesurgery._cli import main
from stridesurgery.plot.marks import AS_IS, marks
from tests.models import create

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    """matplotlib warns where labels do not fit."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", module="matplotlib")
        yield


def drawn(figure: Figure, path: Path) -> list[Axes]:
    """The panels of a figure that can be written."""
    figure.savefig(path / "picture.png", dpi=50)
    assert (path / "picture.png").read_bytes().startswith(b"\x89PNG")
    return figure.axes


def values(axes: Axes, number: int) -> dict[int, float]:
    """The line of one network, by layer."""
    lines = [
        line
        for line in axes.lines
        if line.get_label() and not str(line.get_label()).startswith("_")
    ]
    return dict(
        zip(map(int, lines[number].get_xdata()), map(float, lines[number].get_ydata()), strict=True)
    )


@pytest.mark.parametrize(
    "name, size, surgeries",
    [
        (
            "resnet18",
            64,
            ["S1L0", ss.Surgery(1, (6,), form="graph"), ss.Surgery(1, (16,), dilate=True)],
        ),
        (
            "inception_v3",
            192,
            [ss.Surgery(1, (50,), axis="w")],
        ),  # functional pools among its layers
        ("convnextv2_atto", 64, [ss.Surgery(1, (0,), stride=2)]),
    ],
)
def test_a_profile_has_every_map_and_every_operation(
    name: str, size: int, surgeries: list[str | ss.Surgery], tmp_path: Path
) -> None:
    net = create(name)
    upper, lower = drawn(plot.profile(net, surgeries, size), tmp_path)
    names = [layer.name for layer in ss.inspect(net, size)]
    for number, surgery in enumerate([None, *surgeries]):
        built = net if surgery is None else ss.eliminate(net, surgery, input_size=size)
        sides = {
            names.index(la.name): (la.out_grid[0] * la.out_grid[1]) ** 0.5
            for la in ss.inspect(built, size)
        }
        assert values(upper, number) == pytest.approx(sides)
        assert sum(values(lower, number).values()) == pytest.approx(ss.cost(built, size).macs / 1e9)


def test_compute_stays_with_its_layer_when_a_shortcut_is_a_layer_no_more() -> None:
    net = create("resnet18")
    before, after = (values(plot.profile(net, "S1L16", 64).axes[1], number) for number in (0, 1))
    assert before.keys() == after.keys()
    last = before.pop(20)  # has the classifier as well, which sees one vector
    assert last < after[20] < 4 * last
    assert {layer: after[layer] for layer in before} == {
        la: macs * (4 if la >= 16 else 1) for la, macs in before.items()
    }


def test_marks_differ_without_colour() -> None:
    many = [AS_IS, *marks(12)]
    assert len({(mark.marker, mark.dash) for mark in many}) == len(many)
    assert all(a.colour != b.colour for a, b in zip(many, many[1:], strict=False))


@pytest.mark.parametrize(
    "surgeries", [[], ["S1L0"], [ss.Surgery(1, (0,), axis="w"), "S2L0-1"]], ids=len
)
def test_a_field_is_where_the_cells_look(surgeries: list[str | ss.Surgery], tmp_path: Path) -> None:
    net, size = timm.create_model("resnet18"), (96, 64)
    panels = drawn(plot.field(net, "layer2", surgeries, size), tmp_path)
    assert len(panels) == 1 + len(surgeries)
    for axes, surgery in zip(panels, [None, *surgeries], strict=True):
        built = net if surgery is None else ss.eliminate(net, surgery, input_size=size)
        maps = ss.features(built, "layer2", input_size=size)
        geometry = maps.feature_info.geometry(0)
        grid = [s // int(r) for s, r in zip(size, geometry.step, strict=True)]
        rows, columns = (
            centres - 0.5 for centres in geometry.centres(grid)
        )  # imshow has pixel 0 at 0
        dots = np.asarray(axes.collections[0].get_offsets())
        assert {(x, y) for x, y in dots} == {(float(x), float(y)) for x in columns for y in rows}
        step, _, seen = (patch for patch in axes.patches if isinstance(patch, Rectangle))
        assert (step.get_height(), step.get_width()) == geometry.step
        assert (seen.get_height(), seen.get_width()) == geometry.receptive_field
        middle = seen.get_x() + seen.get_width() / 2, seen.get_y() + seen.get_height() / 2
        assert middle == (columns[len(columns) // 2], rows[len(rows) // 2])


def test_a_field_over_a_photograph(tmp_path: Path) -> None:
    net, photograph = timm.create_model("resnet18"), np.zeros((64, 96, 3), np.uint8)
    (axes,) = drawn(plot.field(net, 1, image=photograph), tmp_path)
    assert axes.images[0].get_array().shape == (64, 96, 3)  # type: ignore[union-attr]
    assert len(axes.collections[0].get_offsets()) == 16 * 24
    with pytest.raises(ss.RequestError, match="64x96 pixels and the input 64x64"):
        plot.field(net, 1, (), 64, image=photograph)
    with pytest.raises(ss.RequestError, match="image is an array"):
        plot.field(net, 1, image=[1, 2, 3])
    with pytest.raises(ss.RequestError, match="inside a residual"):
        plot.field(net, 2, (), 64)
    with pytest.raises(ss.GridError, match="not evenly spaced"):
        grouped = timm.create_model("resnet18", norm_layer=GroupNorm)
        plot.field(grouped, "layer3", ss.Surgery(1, (0,), dilate=True), 64)  # its phases run


def test_what_sees_everything_is_said_to(tmp_path: Path) -> None:
    (axes,) = drawn(plot.field(timm.create_model("pvt_v2_b0"), "stages.0", (), 64), tmp_path)
    assert "each sees everything" in axes.get_title() and len(axes.patches) == 1


def test_a_front_is_what_the_search_found(tmp_path: Path) -> None:
    found = ss.search(timm.create_model("resnet18"), 6.0, taps=["layer3", "layer4"], input_size=64)
    (axes,) = drawn(plot.front(found), tmp_path)
    assert [label.get_text() for label in axes.get_yticklabels()] == [c.name for c in found.front]
    base, costs = found.original, ("macs", "activation_bytes", "peak_bytes")
    for line, cost in zip(axes.lines, costs, strict=False):
        assert list(line.get_xdata()) == [
            getattr(c, cost) / getattr(base, cost) for c in found.front
        ]
    with pytest.raises(ss.RequestError, match="nothing to draw"):
        plot.front(ss.search(timm.create_model("resnet18"), 1.0, input_size=64))


def test_the_command_line_draws_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (200, 50)).save("photo.png")
    commands = {
        "profile.svg": ["profile", "timm:test_resnet", "S1L0", "--input-size=64"],
        "field.pdf": [
            "field",
            "timm:test_resnet",
            "--tap=0",
            "--image=photo.png",
            "S1L0",
            "--input-size=64x48",
        ],
        "front.png": ["front", "timm:test_resnet", "--budget=9", "--input-size=64"],
    }
    for name, argv in commands.items():
        assert main(["plot", *argv, "--out", name]) == 0
        assert Path(name).read_bytes()[:4] in (b"<?xm", b"%PDF", b"\x89PNG")


def test_the_pictures_of_the_pages_are_made_from_the_code(tmp_path: Path) -> None:
    examples.pictures.main(["--out", str(tmp_path)])
    made = {path.name for path in tmp_path.iterdir()}
    kept = {path.name for path in (ROOT / "docs" / "pictures").iterdir()} - {"coins.jpg"}
    assert made == kept or made == kept - {"maps.png"} and "STRIDESURGERY_DATA" not in os.environ


def test_without_matplotlib_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delattr(ss, "plot")
    for name in [
        name for name in sys.modules if name.startswith(("stridesurgery.plot", "matplotlib"))
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["plot", "profile", "timm:test_resnet", "--out", str(tmp_path / "a.png")]) == 2
    assert "need matplotlib, the extra stridesurgery[plot]" in capsys.readouterr().err
