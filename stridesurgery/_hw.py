"""Pairs of (rows, columns), and how they are written."""

import math
from fractions import Fraction

Pair = tuple[int, int]


def _both(sides: tuple[float, float]) -> str:
    return f"{sides[0]:g}x{sides[1]:g}"


def _equal(sides: tuple[float, float]) -> str:
    if any(math.isnan(s) for s in sides):
        return "?"
    if sides[0] == sides[1]:
        return "all" if math.isinf(sides[0]) else f"{sides[0]:g}"
    return _both(sides)


def _floats(r: tuple[Fraction, Fraction]) -> tuple[float, float]:
    rows, columns = (int(f) if f.denominator == 1 else float(f) for f in r)
    return rows, columns
