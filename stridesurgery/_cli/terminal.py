"""Fit tables and text to the width of a terminal."""

import re
import textwrap
from collections.abc import Sequence

GAP = "  "  # between the columns of a table


def fitted(text: str, width: int) -> str:
    """Break a text into lines of at most `width` where possible.

    Prose is wrapped, a table is folded. Lines with a gap inside are a table. A folded table
    continues below itself, with its first column repeated.
    """
    lines = text.splitlines()
    if max(map(len, lines), default=0) <= width:
        return text
    rows = [i for i, line in enumerate(lines) if GAP in line.strip()]
    out: list[str] = []
    for i, line in enumerate(lines):
        if i not in rows:
            out += textwrap.wrap(
                line, width, subsequent_indent=GAP, break_long_words=False, break_on_hyphens=False
            )
        elif i == rows[0]:
            out += _folded([lines[row] for row in rows], width)
    return "\n".join(out)


def _folded(table: Sequence[str], width: int) -> list[str]:
    first, *others = _columns(table)
    blocks = [first]
    for column in others:
        if blocks[-1] is not first and len(blocks[-1][0]) + len(GAP) + len(column[0]) > width:
            blocks.append(first)
        blocks[-1] = [line + GAP + cell for line, cell in zip(blocks[-1], column, strict=True)]
    return [line.rstrip() for i, block in enumerate(blocks) for line in ([""] if i else []) + block]


def _columns(table: Sequence[str]) -> list[list[str]]:
    """Return the cells of each column, padded to its widest cell."""
    lines = [line.ljust(max(map(len, table))) for line in table]
    used = "".join(" " if set(column) == {" "} else "x" for column in zip(*lines, strict=True))
    return [
        [line[a:b] for line in lines]
        for a, b in (m.span() for m in re.finditer(r"x+(?: x+)*", used))
    ]
