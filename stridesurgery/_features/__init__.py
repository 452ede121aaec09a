"""Maps out of a network."""

from stridesurgery._features.dual_path import dual_path
from stridesurgery._features.extract import feature_of, features, tapped
from stridesurgery._features.sparse_path import Tiling, sparse_path, with_choice
from stridesurgery._features.taps import Tap, TapName, find_taps

__all__ = [
    "Tap",
    "TapName",
    "Tiling",
    "dual_path",
    "feature_of",
    "features",
    "find_taps",
    "sparse_path",
    "tapped",
    "with_choice",
]
