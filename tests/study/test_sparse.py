"""The page of the sparse path says what the records say."""

from collections.abc import Mapping
from typing import Any

import pytest

from examples.study import records

PAGE = (records.RESULTS.parent / "sparse.md").read_text()
NAMES = ("ap", "ap_small", "ap_medium", "ap_large")


def table(record: Mapping[str, Any]) -> str:
    """Return the lines of a record's table."""
    named, lines = {"as is": "as is", "fine": "dual path, whole"}, []
    spent = record["processor seconds"]
    for name, row in record["rows"].items():
        shown = named.get(name) or "tile {}, margin {}, threshold {}".format(*name.split())
        aps = " | ".join(f"{row[n]:.1f}" for n in NAMES)
        ran = f"{row['ran']:.2f}" if "ran" in row else "1.00" if name == "fine" else "0"
        times = f"{row['compute']:.2f} | {spent[name] / spent['as is']:.2f}"
        lines.append(f"| {shown} | {aps} | {ran} | {times} |")
    return "\n".join(lines)


@pytest.mark.parametrize("size", (300, 600))
def test_the_page_has_the_records_figures(size: int) -> None:
    record = records.read(records.RESULTS / "sparse" / f"{size} pixels.json")
    assert table(record) in PAGE
    assert f"{record['settings']['photographs']} photographs" in " ".join(PAGE.split())
