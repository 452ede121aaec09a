"""Pairs of (h, w), also called (rows, columns), and their text."""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, TypeVar

T = TypeVar("T")
HW = tuple[T, T]  # (h, w): rows first, as torch has it


def hw_text(sides: Sequence[Any]) -> str:
    """Write both sides, such as "3x1"."""
    return "x".join(f"{float(side):g}" for side in sides)


def hw_short(sides: Sequence[Any]) -> str:
    """Write one number where both sides are equal; "all" if infinite, "?" if one is unknown."""
    if any(math.isnan(side) for side in sides):
        return "?"
    if sides[0] != sides[1]:
        return hw_text(sides)
    return "all" if math.isinf(sides[0]) else f"{float(sides[0]):g}"


def hw_numbers(sides: Sequence[Fraction]) -> HW[float]:
    """Return fractions as ints where they are whole, else as floats."""
    rows, columns = (int(side) if side.denominator == 1 else float(side) for side in sides)
    return rows, columns
