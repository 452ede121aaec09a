"""The page of the sparse path says what the records say."""

import pytest

from examples.study import records
from examples.study.sparse import LAYOUTS, table

PAGE = (records.RESULTS.parent / "sparse.md").read_text()


@pytest.mark.parametrize("size", LAYOUTS)
def test_the_page_has_the_records_figures(size: int) -> None:
    record = records.read(records.RESULTS / "sparse" / f"{size} pixels.json")
    assert table(record) in PAGE
    assert f"{record['settings']['photographs']} photographs" in " ".join(PAGE.split())
