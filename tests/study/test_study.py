"""The pages say what the records say."""

import re
from pathlib import Path

import pytest

from examples.ssd.programs import DetectionError
from examples.study import page, records, trained


def test_a_record_is_there_or_was_measured_otherwise(tmp_path: Path) -> None:
    path, settings = tmp_path / "new" / "row.json", {"images": 3, "rate": 0.1}
    assert not records.is_done(path, settings)
    records.write(path, {"settings": settings, "ap": float("nan"), "ms": 1.23456789})
    assert records.is_done(path, settings)
    assert records.read(path) == {"settings": settings, "ap": None, "ms": 1.23457}
    with pytest.raises(DetectionError, match=r"images 3 \(now 4\)"):
        records.is_done(path, {**settings, "images": 4})


@pytest.mark.parametrize("path", page.PAGES, ids=lambda path: path.name)
def test_every_table_of_the_pages_is_what_the_records_say(path: Path) -> None:
    text = path.read_text()
    assert page.rewritten(text) == text and len(page.MARK.findall(text)) > 0
    changed = text.replace("17.0 ±", "71.0 ±", 1)
    assert page.rewritten(changed) == text or "17.0 ±" not in text


@pytest.mark.parametrize("name", ["docs/results.md", "docs/results_details.md"])
def test_no_figure_stands_in_the_prose(name: str) -> None:
    """Percents are in tables only, which the records fill; so they cannot go stale."""
    prose = page.MARK.sub("", (page.ROOT / name).read_text())
    known = {"0.75", "1.96", "0.5"}  # the width of MobileNet, an interval, ShuffleNet's width
    assert {n for n in re.findall(r"\d+\.\d+", prose)} <= known


def test_the_first_page_is_one_screen() -> None:
    text = (page.ROOT / "docs/results.md").read_text()
    [table] = [m[0] for m in page.MARK.finditer(text)]
    assert len([line for line in table.splitlines() if line.startswith("|")]) - 2 <= 8
    assert text.count("![") == 1 and len(text.splitlines()) <= 45


def test_a_difference_is_bold_where_it_is_clear() -> None:
    record = {"objects": {"": 100, "_small": 3}, "figures": {}, "differences": {"as is": {}}}
    record["differences"]["as is"] = {"ap": [2.0, 1.0, 3.0], "ap_small": [9.0, 8.0, 10.0]}
    assert page.shown(record, "ap", "as is") == "**+2.0 ± 1.0**"
    assert page.shown(record, "ap_small", "as is") == page.shown(record, "ap", "else") == "–"
    record["differences"]["as is"]["ap"] = [2.0, -1.0, 5.0]
    assert page.shown(record, "ap", "as is") == "+2.0 ± 3.0"


def test_a_row_is_a_configuration_or_a_backbone() -> None:
    assert trained.named("SSDMnetv1-S1L0") == ["--config", "SSDMnetv1-S1L0"]
    dual = ["--backbone", "resnet18", "--surgery", "S1L0", "--dual"]
    assert trained.named("resnet18:S1L0:dual") == dual
