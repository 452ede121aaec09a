"""Draw networks before and after surgeries; needs matplotlib (the extra `plot`).

Every function returns a `matplotlib.figure.Figure`. Lines differ in marker and dash, not only in
colour.
"""

from stridesurgery.plot.field import field
from stridesurgery.plot.front import front
from stridesurgery.plot.profile import profile

__all__ = ["field", "front", "profile"]
