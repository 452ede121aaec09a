"""Every cell of the notebook runs and shows what is stored in it: the same at a prompt and as HTML."""

import ast
import json
from pathlib import Path
from typing import Any

import pytest

TOUR = Path(__file__).parent.parent / "docs" / "tour.ipynb"


def shown(source: str, namespace: dict[str, Any]) -> Any:
    """Run a cell and return the value of its last line, if that is an expression."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, TOUR.name, "exec"), namespace)
    if isinstance(last, ast.Expr):
        return eval(compile(ast.Expression(last.value), TOUR.name, "eval"), namespace)
    return None


@pytest.mark.skipif(not TOUR.is_file(), reason="an installed copy of the tests has no pages")
def test_the_tour_shows_what_is_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {}
    tables = 0
    for cell in json.loads(TOUR.read_text())["cells"]:
        if cell["cell_type"] != "code":
            continue
        value = shown("".join(cell["source"]), namespace)
        stored = {
            kind: "".join(text)
            for output in cell["outputs"]
            for kind, text in output["data"].items()
        }
        assert stored.get("text/plain", "None") == repr(value)
        if "text/html" in stored:
            assert stored["text/html"] == value._repr_html_()
            tables += 1
    assert tables == 5
