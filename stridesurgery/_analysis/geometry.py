"""Where a cell looks: step, offset and receptive field of a map, in input pixels, one axis at a time.

Cell i of a map looks at input pixels around `step * i + offset`, pixel centres being 0, 1, 2, ...; through
`receptive_field` pixels. (Dumoulin and Visin 2016, "A guide to convolution arithmetic for deep learning".)
"""

import math
from dataclasses import dataclass

from stridesurgery.ops import Window


@dataclass(frozen=True)
class Geometry:
    """Along one axis; nan where it cannot be told, an infinite receptive field after attention."""

    step: float  # pixels between neighbouring cells
    offset: float  # the pixel at the centre of what cell 0 sees
    receptive_field: float  # pixels that a cell sees

    def through(self, window: Window, size: int) -> "Geometry":
        """The geometry of an operator's output, given the incoming map's and its size in cells."""
        left, span = window.pads(size)[0], 1 if window.tap else window.span
        return Geometry(
            self.step * window.step,
            self.offset + self.step * ((span - 1) / 2 - left),
            self.receptive_field + self.step * (span - 1),
        )

    def resized(self, scale: float) -> "Geometry":
        """The geometry after interpolation to `scale` times as many cells, pixels taken as areas."""
        step = self.step / scale
        return Geometry(step, self.offset + (step - self.step) / 2, self.receptive_field)

    def transposed(self, window: Window, scale: float) -> "Geometry":
        """The geometry after a transposed convolution of stride `scale`."""
        step, span = self.step / scale, window.span
        offset = self.offset + step * (int(window.padding) - (span - 1) / 2)
        return Geometry(step, offset, self.receptive_field + self.step * ((span - 1) // scale))

    def joined(self, other: "Geometry") -> "Geometry":
        """The geometry of a cell that sees what a cell of either map sees."""
        lows, highs = zip(*(g.bounds() for g in (self, other)), strict=True)
        if any(math.isnan(v) for v in (*lows, *highs)):
            return Geometry(self.step, math.nan, math.nan)
        if math.isinf(max(highs)):
            return self if math.isinf(self.receptive_field) else other
        low, high = min(lows), max(highs)
        return Geometry(self.step, (low + high) / 2, high - low + 1)

    def bounds(self) -> tuple[float, float]:
        """The first and last pixel that cell 0 sees; they may lie outside the image."""
        reach = (self.receptive_field - 1) / 2
        return self.offset - reach, self.offset + reach


PIXELS = Geometry(1.0, 0.0, 1.0)
