"""Maps out of a network."""

from stridesurgery._features.dual_path import dual_path
from stridesurgery._features.extract import feature_of, features, tapped
from stridesurgery._features.taps import Tap, TapName, find_taps

__all__ = [
    "Tap",
    "TapName",
    "dual_path",
    "feature_of",
    "features",
    "find_taps",
    "tapped",
]
