"""Step, offset and receptive field of a map's cells, in input pixels, for one axis at a time.

Cell i of a map looks at `receptive_field` input pixels around `step * i + offset`. The pixel
centres are 0, 1, 2, ... See Dumoulin and Visin 2016, "A guide to convolution arithmetic for deep
learning".
"""

import math
from dataclasses import dataclass

from stridesurgery.ops import Window


@dataclass(frozen=True)
class Geometry:
    """The geometry of a map along one axis.

    A value is nan where it cannot be determined. The receptive field is infinite after attention.
    """

    step: float  # pixels between neighbouring cells
    offset: float  # the pixel at the centre of the receptive field of cell 0
    receptive_field: float  # pixels that a cell sees

    def through(self, window: Window, size: int) -> "Geometry":
        """Return the output geometry of an operator on this map, which has `size` cells."""
        left, span = window.pads(size)[0], 1 if window.tap else window.span
        return Geometry(
            self.step * window.step,
            self.offset + self.step * ((span - 1) / 2 - left),
            self.receptive_field + self.step * (span - 1),
        )

    def resized(self, scale: float) -> "Geometry":
        """Return the geometry after interpolation to `scale` times as many cells.

        Pixels are taken as areas.
        """
        step = self.step / scale
        return Geometry(step, self.offset + (step - self.step) / 2, self.receptive_field)

    def transposed(self, window: Window, scale: float) -> "Geometry":
        """Return the geometry after a transposed convolution of stride `scale`."""
        step, span = self.step / scale, window.span
        offset = self.offset + step * (int(window.padding) - (span - 1) / 2)
        return Geometry(step, offset, self.receptive_field + self.step * ((span - 1) // scale))

    def joined(self, other: "Geometry") -> "Geometry":
        """Return the geometry of a cell that sees all that a cell of each map sees."""
        lows, highs = zip(*(g.bounds() for g in (self, other)), strict=True)
        if any(math.isnan(v) for v in (*lows, *highs)):
            return Geometry(self.step, math.nan, math.nan)
        if math.isinf(max(highs)):
            return self if math.isinf(self.receptive_field) else other
        low, high = min(lows), max(highs)
        return Geometry(self.step, (low + high) / 2, high - low + 1)

    def bounds(self) -> tuple[float, float]:
        """Return the first and last pixel that cell 0 sees; they may lie outside the image."""
        reach = (self.receptive_field - 1) / 2
        return self.offset - reach, self.offset + reach


PIXELS = Geometry(1.0, 0.0, 1.0)
