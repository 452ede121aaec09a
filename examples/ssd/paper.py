"""Figures that the paper prints (Mudassar and Mukhopadhyay, BMVC 2019): to compare with only."""

# Parameters in millions, and "GFLOPS" where they are printed: `counting` says what those count.
PRINTED: dict[str, tuple[float, float | None]] = {
    "SSDMnetv1": (16.5, 2.5),
    "SSDMnetv1-Size512": (16.5, None),
    "SSDMnetv1-Early": (17.3, None),
    "SSDMnetv1-Anchor10": (16.5, None),
    "SSDMnetv1-S1L6": (16.5, 8.7),
    "SSDMnetv1-S1L4": (16.5, 9.2),
    "SSDMnetv1-S1L0": (16.5, 9.9),
    "SSDMnetv1-S1L4-Fmap1": (16.5, 9.2),
    "SSDMnetv1-S1L0-Fmap1": (16.5, 9.9),
    "SSDMnetv1-S1L0-DualPath19-C": (19.2, 11.9),
    "SSDMnetv1-S1L0-DualPath19-10-C": (23.9, 12.3),
    "SSDMnetv1-S1L0-DualPath19-10-S": (16.5, 10.5),
    "SSD-VGG16": (35.1, 35.6),
    "SSD-VGG16-S1L2": (35.1, 128.9),
    "SSD-VGG16-S1L2-DualPath": (35.1, 154.1),
    "RFB-MobileNet-300": (7.7, 1.6),
    "PeleeNet": (5.4, 1.3),
    "RFB-Net-300": (45.1, 39.9),
}
TABLE_4 = {  # milliseconds for one image on a GTX 1080 Ti
    "SSDMnetv1": 6.9,
    "SSDMnetv1-Size512": 6.9,
    "SSDMnetv1-S1L6": 6.9,
    "SSDMnetv1-S1L4": 7.8,
    "SSDMnetv1-S1L0": 10.4,
    "SSDMnetv1-S1L0-DualPath19-10-S": 12.1,
    "SSD-VGG16": 12.1,
    "SSD-VGG16-S1L2": 31.5,
}
