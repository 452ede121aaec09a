"""Figures that the paper prints (Mudassar and Mukhopadhyay, BMVC 2019): to compare with, never to compute."""

from collections.abc import Mapping
from typing import NamedTuple


class Printed(NamedTuple):
    """One row of Table 1, 2 or 3; None where the table has no such column."""

    params: float  # millions
    compute: float | None = None  # "GFLOPS"; `counting` says what it counts
    ap: float | None = None  # this and the following in percent
    ap_small: float | None = None
    ap_medium: float | None = None
    ap_large: float | None = None
    ar_small: float | None = None
    ar_medium: float | None = None
    ar_large: float | None = None


TABLE_1: Mapping[str, Printed] = {
    "SSDMnetv1": Printed(16.5, ap_small=1.8, ar_small=6.4),
    "SSDMnetv1-Size512": Printed(16.5, ap_small=6.3, ar_small=14.5),
    "SSDMnetv1-Early": Printed(17.3, ap_small=2.1, ar_small=8.2),
    "SSDMnetv1-Anchor10": Printed(16.5, ap_small=2.1, ar_small=6.6),
}

TABLE_2: Mapping[str, Printed] = {
    "SSDMnetv1": Printed(16.5, 2.5, 18.8, 1.8, 19.1, 36.3, 6.4, 36.7, 58.5),
    "SSDMnetv1-S1L6": Printed(16.5, 8.7, 18.6, 5.7, 22.6, 28.3, 15.5, 41.6, 51.3),
    "SSDMnetv1-S1L4": Printed(16.5, 9.2, 18.3, 6.5, 23.1, 27.6, 16.2, 41.9, 51.3),
    "SSDMnetv1-S1L0": Printed(16.5, 9.9, 19.6, 7.8, 25.2, 27.7, 20.3, 46.8, 51.6),
    "SSDMnetv1-S1L4-Fmap1": Printed(16.5, 9.2, 19.2, 6.0, 23.5, 28.6, 19.4, 45.1, 52.6),
    "SSDMnetv1-S1L0-Fmap1": Printed(16.5, 9.9, 19.6, 7.9, 25.2, 28.6, 20.5, 46.7, 53.3),
    "SSDMnetv1-S1L0-DualPath19-C": Printed(19.2, 11.9, 19.8, 7.7, 25.1, 29.8, 19.9, 46.8, 53.4),
    "SSDMnetv1-S1L0-DualPath19-10-C": Printed(23.9, 12.3, 20.7, 7.7, 26.4, 30.1, 20.8, 47.5, 55.2),
    "SSDMnetv1-S1L0-DualPath19-10-S": Printed(16.5, 10.5, 20.7, 8.2, 25.0, 30.8, 21.2, 46.3, 54.4),
    "SSD-VGG16": Printed(35.1, 35.6, 24.6, 6.9, 27.9, 40.3, 16.0, 51.3, 63.8),
    "SSD-VGG16-S1L2": Printed(35.1, 128.9, 23.7, 11.2, 27.3, 33.4, 28.0, 50.5, 57.1),
    "SSD-VGG16-S1L2-DualPath": Printed(35.1, 154.1, 28.5, 13.7, 31.4, 41.3, 30.4, 53.9, 63.4),
}

TABLE_3: Mapping[str, Printed] = {
    "RFB-MobileNet-300": Printed(7.7, 1.6, 20.7, 1.7, 21.0, 38.3, 4.8, 35.1, 55.9),
    "PeleeNet": Printed(5.4, 1.3, 21.8, 3.4, 20.9, 40.0, 7.2, 34.5, 56.2),
    "RFB-Net-300": Printed(45.1, 39.9, 30.2, 11.9, 33.0, 47.8, 19.1, 47.5, 63.6),
}

TABLE_4: Mapping[str, float] = {  # milliseconds for one image on a GTX 1080 Ti
    "SSDMnetv1": 6.9,
    "SSDMnetv1-Size512": 6.9,
    "SSDMnetv1-S1L6": 6.9,
    "SSDMnetv1-S1L4": 7.8,
    "SSDMnetv1-S1L0": 10.4,
    "SSDMnetv1-S1L0-DualPath19-10-S": 12.1,
    "SSD-VGG16": 12.1,
    "SSD-VGG16-S1L2": 31.5,
}

# Differences that the text states: a row, its base, compute ("GFLOPS") and parameters (millions).
DELTAS: tuple[tuple[str, str, float | None, float | None], ...] = (
    ("SSDMnetv1-S1L0-DualPath19-C", "SSDMnetv1-S1L0-Fmap1", 2.0, 2.6),
    ("SSDMnetv1-S1L0-DualPath19-10-C", "SSDMnetv1-S1L0-Fmap1", 2.48, 7.3),
    ("SSDMnetv1-S2L4-6", "SSDMnetv1", 30.9, None),
    ("SSDMnetv1-S1L0", "SSDMnetv1-S1L6", 1.14, None),
    ("SSDMnetv1-Size512", "SSDMnetv1", 4.45, None),
)


def printed(row: str) -> Printed | None:
    """Return the row where the paper prints its compute, else where it prints its parameters."""
    return TABLE_2.get(row) or TABLE_3.get(row) or TABLE_1.get(row)
