"""The figures that the paper prints, from the networks as built."""

import json

import pytest

from examples.ssd import counting, model, tables
from examples.ssd.configurations import ROWS, find
from examples.ssd.errors import RequestError
from examples.ssd.paper import DELTAS, TABLE_1, TABLE_2, TABLE_3
from tests.ssd.conftest import built

PRINTED = sorted({*TABLE_1, *TABLE_2, *TABLE_3} - {*tables.EXPLAINED})


def compute(name: str) -> float:
    return counting.two_decimals(counting.compute(built(name), ROWS[name].size) / 1e9)


@pytest.mark.parametrize("name", PRINTED)
def test_printed_figures_come_out(name: str) -> None:
    for table in (TABLE_1, TABLE_2, TABLE_3):
        if name in table:
            assert tables.as_printed(counting.parameters(built(name)) / 1e6) == table[name].params
            if table[name].compute is not None:
                assert counting.to_one_decimal(compute(name)) == table[name].compute


def test_the_explained_figures() -> None:
    """VGG S1L2's compute is cut off instead of rounded; Pelee's parameters are those for 21 classes."""
    assert set(tables.EXPLAINED) == {"SSD-VGG16-S1L2", "PeleeNet"}
    assert compute("SSD-VGG16-S1L2") == 128.97 and TABLE_2["SSD-VGG16-S1L2"].compute == 128.9
    counted, pool1_input = counting.compute(built("SSD-VGG16-S1L2"), 300), 64 * 300 * 300
    assert counting.two_decimals((counted + pool1_input) / 1e9) == 128.98
    for figure in ("128.97", "128.98", "129.0", "128.9,"):
        assert figure in tables.EXPLAINED["SSD-VGG16-S1L2"]
    assert (
        tables.as_printed(counting.parameters(built("SSD-VGG16-S1L2")) / 1e6)
        == TABLE_2["SSD-VGG16-S1L2"].params
    )
    assert counting.to_one_decimal(compute("PeleeNet")) == TABLE_3["PeleeNet"].compute
    assert (
        tables.as_printed(counting.parameters(model.build(find("PeleeNet"), 21)) / 1e6)
        == TABLE_3["PeleeNet"].params
    )


@pytest.mark.parametrize("delta", DELTAS, ids=lambda d: d.row)
def test_the_texts_differences_come_out(delta) -> None:
    if delta.compute is not None:
        digits = len(str(delta.compute).partition(".")[2])
        assert round(compute(delta.row) - compute(delta.base), digits) == delta.compute
    if delta.params is not None:
        sizes = [
            counting.two_decimals(counting.parameters(built(n)) / 1e6)
            for n in (delta.row, delta.base)
        ]
        assert round(sizes[0] - sizes[1], 1) == delta.params


@pytest.mark.parametrize(
    ("name", "maps"),
    [
        ("SSDMnetv1", (19, 10, 5, 3, 2, 1)),
        ("SSDMnetv1-Size512", (32, 16, 8, 4, 2, 1)),
        ("SSDMnetv1-Early", (38, 19, 10, 5, 3, 2, 1)),
        ("SSDMnetv1-S1L0", (38, 19, 10, 5, 3, 2)),
        ("SSDMnetv1-S1L0-Fmap1", (38, 19, 10, 5, 3, 1)),
        ("SSDMnetv1-S1L0-DualPath19-10-C", (38, 19, 10, 5, 3, 1)),
        ("SSDMnetv1-S1L0-DualPath19-10-S", (38, 19, 5, 3, 2, 1)),
        ("SSDMnetv1-S2L4-6", (75, 38, 19, 10, 5, 3)),
        ("SSDMnetv1-S2L0-6", (75, 38, 19, 10, 5, 3)),
        ("SSD-VGG16", (38, 19, 10, 5, 3, 1)),
        ("SSD-VGG16-S1L2", (75, 37, 19, 10, 5, 3)),
        ("SSD-VGG16-S1L2-DualPath", (75, 37, 10, 5, 3, 1)),
        ("SSDMnetv1-Size600", (38, 19, 10, 5, 3, 2)),
        ("SSDMnetv1-Anchor10-45", (19, 10, 5, 3, 2, 1)),
        ("SSD-VGG16-S1L2-Restored", (38, 19, 10, 5, 3, 1)),
        ("RFB-Net-300", (38, 19, 10, 5, 3, 1)),
        ("PeleeNet", (19, 19, 10, 5, 3, 1)),
    ],
)
def test_maps_and_numbers_of_priors(name: str, maps: tuple[int, ...]) -> None:
    assert model.map_sizes(built(name)) == [(side, side) for side in maps]
    expected = sum(side * side * boxes for side, boxes in zip(maps, ROWS[name].boxes, strict=True))
    assert built(name).priors.shape == (expected, 4)


def test_a_larger_input_that_costs_what_s1l0_costs() -> None:
    assert compute("SSDMnetv1-Size600") == compute("SSDMnetv1-S1L0")


def test_the_split_paths_add_no_parameter() -> None:
    assert counting.parameters(built("SSDMnetv1-S1L0-DualPath19-10-S")) == counting.parameters(
        built("SSDMnetv1")
    )


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    tables.main(["--rows", "SSDMnetv1", "--json"])
    [base] = json.loads(capsys.readouterr().out)
    assert list(base) == [
        "row",
        "params",
        "gmacs",
        "feature_maps",
        "priors",
        "paper_params_m",
        "paper_gflops",
    ]
    assert (
        base["row"] == "SSDMnetv1"
        and base["feature_maps"][0] == [19, 19]
        and base["paper_gflops"] == 2.5
    )
    assert base["gmacs"] != round(base["gmacs"], 2) and base["params"] == counting.parameters(
        built("SSDMnetv1")
    )


def test_the_text_has_the_papers_figures_beside(capsys: pytest.CaptureFixture[str]) -> None:
    tables.main(["--rows", "SSDMnetv1"])
    text = capsys.readouterr().out
    assert "2.54    2.5" in text and "114" in text and "Table 2" in text


def test_an_unknown_row_is_told_with_the_known_ones() -> None:
    with pytest.raises(RequestError, match="no configuration 'S1L0'. There are: SSDMnetv1, "):
        find("S1L0")
