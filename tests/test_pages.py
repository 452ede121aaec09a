"""The python and console blocks of the README and of docs/ run, each page as one program, and print what is shown."""

import doctest
import re
import shlex
import types
from collections.abc import Iterator
from itertools import pairwise
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import stridesurgery as ss
from stridesurgery._cli import main

ROOT = Path(__file__).parent.parent
FENCE = re.compile(r"^```(\S*).*\n([\s\S]*?)^```$", re.M)


class Block(NamedTuple):
    line: int  # of the page, of the block's first
    language: str
    text: str


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    return [
        Block(text.count("\n", 0, found.start(2)), found[1], found[2])
        for found in FENCE.finditer(text)
    ]


def steps(page: Path) -> Iterator[tuple[Block, str | None]]:
    """What is run, in order, with what it prints: every python block and the text below it, every command likewise."""
    for block, following in pairwise([*blocks(page), Block(0, "", "")]):
        if block.language == "python":
            yield block, following.text if following.language == "text" else None
        if block.language == "console":
            for command in re.finditer(r"^\$ (.*\n)([^$]*)", block.text, re.M):
                line = block.line + block.text.count("\n", 0, command.start())
                yield Block(line, "console", command[1]), command[2]


def command(text: str) -> None:
    program, *arguments = shlex.split(text)
    assert program == "stridesurgery"
    main(arguments)


# none of them in an installed copy of the tests
PAGES = [
    page for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if page.is_file()
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_blocks_are_code_that_runs_or_its_output(page: Path) -> None:
    before = ""
    for block in blocks(page):
        allowed = block.language in ("python", "console") or block.language.startswith(
            "{"
        )  # a directive of Sphinx
        assert allowed or (block.language == "text" and before == "python"), (
            f"{page.name}, line {block.line}"
        )
        before = block.language


@pytest.mark.skipif(not PAGES, reason="an installed copy of the tests has no pages")
def test_the_reference_has_every_public_name() -> None:
    reference = (ROOT / "docs" / "api.md").read_text()
    names = [name for name in ss.__all__ if name != "detection"]  # a room of names of its own
    assert sorted(re.findall(r"^\.\. auto\w+:: (\w+)$", reference, re.M)) == sorted(names)
    inside = re.findall(r"^\.\. auto\w+:: stridesurgery\.detection\.(\w+)$", reference, re.M)
    assert sorted(inside) == sorted(ss.detection.__all__)


@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(steps(page))], ids=lambda page: page.name
)
def test_code_prints_what_is_shown(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # what they save stays out of the repository
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # nothing is downloaded
    namespace: dict[str, Any] = {"__name__": page.stem}
    for step, shown in steps(page):
        if step.language == "console":
            command(step.text)
        else:
            code = compile("\n" * step.line + step.text, str(page), "exec")
            try:
                exec(code, namespace)  # errors name the page's line
            except ModuleNotFoundError as lacking:
                if lacking.name not in OTHERS:
                    raise
                pytest.skip(f"{page.name} shows {lacking.name}, which is not installed")
        out, errors = capsys.readouterr()
        printed = out or errors if step.language == "console" else out
        assert shown is None or printed == shown, f"{page.name}, line {step.line}"


OTHERS = ("transformers", "ultralytics")  # libraries of detectors that no extra of ours brings


NAMES = [*ss.__all__, *(f"detection.{name}" for name in ss.detection.__all__)]


@pytest.mark.parametrize("name", NAMES)
def test_examples_in_docstrings(name: str) -> None:
    """Every public function has an example, and all examples print what they show."""
    thing = attrgetter(name)(ss)
    options = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    tests = [test for test in doctest.DocTestFinder().find(thing, name, globs={}) if test.examples]
    assert tests or not isinstance(thing, types.FunctionType), f"{name} has no example"
    for test in tests:
        assert doctest.DocTestRunner(optionflags=options).run(test).failed == 0
