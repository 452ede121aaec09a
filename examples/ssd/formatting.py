"""Tables of plain text."""

from collections.abc import Iterable, Sequence


def as_table(
    header: Sequence[str], rows: Iterable[Sequence[str]], left: Iterable[int] = (0,)
) -> str:
    """Columns as wide as their widest cell, aligned right but for the ones in `left`."""
    lines = [tuple(header), *map(tuple, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    flush = frozenset(left)
    return "\n".join(
        "  ".join(
            cell.ljust(width) if index in flush else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
