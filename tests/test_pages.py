"""The python blocks of the README and of docs/ run, each page as one program, and print the text that stands below."""

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import stridesurgery as ss

ROOT = Path(__file__).parent.parent
FENCE = re.compile(r"^```(\S*).*\n([\s\S]*?)^```$", re.M)


class Block(NamedTuple):
    line: int  # of the page, of the block's first
    language: str
    text: str


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    return [Block(text.count("\n", 0, found.start(2)), found[1], found[2]) for found in FENCE.finditer(text)]


def programs(page: Path) -> Iterator[tuple[Block, str | None]]:
    """Every python block with the text block that follows it, which is what it prints."""
    for block, following in pairwise([*blocks(page), Block(0, "", "")]):
        if block.language == "python":
            yield block, following.text if following.language == "text" else None


# none of them in an installed copy of the tests
PAGES = [page for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if page.is_file()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_blocks_are_code_that_runs_or_its_output(page: Path) -> None:
    before = ""
    for block in blocks(page):
        allowed = block.language == "python" or block.language.startswith("{")  # a directive of Sphinx
        assert allowed or (block.language == "text" and before == "python"), f"{page.name}, line {block.line}"
        before = block.language


@pytest.mark.skipif(not PAGES, reason="an installed copy of the tests has no pages")
def test_the_reference_has_every_public_name() -> None:
    reference = (ROOT / "docs" / "api.md").read_text()
    assert sorted(re.findall(r"^\.\. auto\w+:: (\w+)$", reference, re.M)) == sorted(ss.__all__)


@pytest.mark.parametrize("page", [page for page in PAGES if any(programs(page))], ids=lambda page: page.name)
def test_code_prints_what_is_shown(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # what they save stays out of the repository
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # nothing is downloaded
    namespace: dict[str, Any] = {"__name__": page.stem}
    for block, shown in programs(page):
        exec(compile("\n" * block.line + block.text, str(page), "exec"), namespace)  # errors name the page's line
        printed = capsys.readouterr().out
        assert shown is None or printed == shown, f"{page.name}, line {block.line}"
