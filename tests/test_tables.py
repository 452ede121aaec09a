"""Results show themselves: the same table in a REPL, in a notebook, as plain data and as a data frame."""

import io
import json
import re
from html import unescape
from typing import Any

import pytest

import stridesurgery as ss
from stridesurgery import _tables
from tests.models import create

SIZE = 64


@pytest.fixture(scope="module", params=["inspect", "cost", "compare", "search", "verify"])
def shown(request: pytest.FixtureRequest) -> Any:
    net = create("test_resnet")
    if request.param == "inspect":
        return ss.inspect(net, SIZE)
    if request.param == "cost":
        return ss.cost(net, SIZE)
    if request.param == "compare":
        return ss.compare(net, ["S1L0", "S1L3"], SIZE, measure=True, rounds=2)
    if request.param == "search":
        return ss.search(net, 4, input_size=SIZE)
    return ss.verify(net, ss.eliminate(net, "S1L0", input_size=SIZE))


def test_a_prompt_shows_what_print_shows(shown: Any) -> None:
    assert repr(shown) == str(shown) and len(str(shown).splitlines()) > 2
    assert repr([shown]) == f"[{shown}]"


def test_a_notebook_shows_the_same_words(shown: Any) -> None:
    html = shown._repr_html_()
    words = unescape(re.sub("<[^>]*>", " ", html)).split()
    assert words == str(shown).split() and "<table>" in html


def test_plain_data_is_json(shown: Any) -> None:
    data = shown.to_dict()
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert len(data[shown._records]) > 1 or isinstance(shown, ss.Verification)


def test_a_data_frame_has_numbers(shown: Any) -> None:
    pytest.importorskip("pandas")
    frame = shown.to_pandas()
    assert len(frame) == len(shown.to_dict()[shown._records]) > 0
    column = {ss.Report: "channels", ss.Verification: "error"}.get(type(shown), "macs")
    assert frame[column].dtype.kind in "if"


def test_signs_of_html_are_text() -> None:
    report = ss.Report("<b>&", (1, 1), (), (), (), note="a < b")
    assert "&lt;b&gt;&amp; at 1x1" in report._repr_html_() and "a &lt; b" in report._repr_html_()


def test_progress_is_seen_in_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return terminal

    for terminal in (True, False):
        seen = Terminal()
        monkeypatch.setattr("sys.stderr", seen)
        monkeypatch.setattr(_tables, "DELAY", 0)
        assert list(_tables.in_sight(iter("abc"), 3, "letters")) == list("abc")
        assert ("letters" in seen.getvalue()) == terminal
