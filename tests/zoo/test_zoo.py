"""The whole zoo, an hour or more (`-m zoo`): goes on where the last sweep stopped, and writes docs/coverage.md."""

import pytest

from tests.zoo.coverage import failures, standing
from tests.zoo.maps import differences, reason
from tests.zoo.models import names
from tests.zoo.sweep import sweep, write_page

pytestmark = pytest.mark.zoo


@pytest.fixture(scope="module")
def rows():
    found = sweep()
    write_page(found)
    return found


def test_every_model_is_traced_in_both_modes(rows):
    assert [row["name"] for row in rows] == names()
    assert not [row["name"] for row in rows if row["traced"] != {"eval": "", "train": ""}]


def test_as_many_models_can_be_operated_as_promised(rows):
    kinds = [standing(row) for row in rows]
    assert kinds.count("exact") >= 195
    assert kinds.count("exact") + kinds.count("rounded") >= 220


def test_what_is_not_operated_is_refused_by_name(rows):
    assert not [
        (row["name"], o) for row in rows for o in row["outcomes"] if o["why"].startswith("CRASH")
    ]


def test_no_operated_network_is_silently_off_the_grid(rows):
    assert not [(row["name"], failures(row)) for row in rows if failures(row)]


def test_the_witness_sees_the_strides_that_inspect_lists(rows):
    assert not [(row["name"], row["witness"]["open"]) for row in rows if row["witness"]["open"]]


def test_maps_are_those_that_timm_lists_or_the_reason_is_known():
    listed = [name.removeprefix("timm/") for name in names() if name.startswith("timm/")]
    assert not [
        (name, found) for name in listed if bool(found := differences(name)) != bool(reason(name))
    ]
