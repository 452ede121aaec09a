"""Text of tables, of units and of ratios."""

from collections.abc import Container, Sequence


def table(rows: Sequence[Sequence[str]], left: Container[int]) -> list[str]:
    """Align the cells of rows; the columns in `left` to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            c.ljust(w) if i in left else c.rjust(w)
            for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def mib(count: float) -> str:
    """Write a number of bytes in MiB."""
    return f"{count / 2**20:.1f} MiB"


def gmac(count: float) -> str:
    """Write a number of multiply-accumulates in billions."""
    return f"{count / 1e9:.3f} GMAC"


def ratio(value: float | None, base: float | None) -> str:
    """Write how many times a base a value is; "?" where one is unknown."""
    return f"{value / base:.2f}" if value is not None and base else "?"
