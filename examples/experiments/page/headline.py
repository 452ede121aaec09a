"""The README's figures: a few rows of the page, and what they say."""

from collections.abc import Mapping
from pathlib import Path
from textwrap import fill

from examples.experiments.page.reading import Interval, Record, difference, figure, shown, table
from examples.ssd.files import write_atomically

README = Path(__file__).parents[3] / "README.md"
BEGIN, END = "<!-- written by examples.experiments.gather -->", "<!-- until here -->"
WIDTH = 120

DUAL, SAME_PIXELS, LARGER = "S1L0 dual path", "pyramid, 300 pixels enlarged", "pyramid, 600 pixels"
ROWS = {
    "as is": "as it is",
    "S1L0 by hand": "`stride = 1` by hand, anchors in mid-cell",
    "S1L0": "`eliminate`, anchors where the library's geometry puts them",
    DUAL: "**`dual_path`**: the pretrained network and the finer one, one set of weights",
    "600 pixels": "the untouched network on the photograph at 600 x 600",
    SAME_PIXELS: "an image pyramid of its own 300 x 300 pixels, enlarged",
    LARGER: "an image pyramid with the photograph at 600 x 600",
}
KEYS = ("ap", "ap_small", "ap_medium", "ap_large", "ar_small")


def headline(free: Mapping[str, Record]) -> str:
    """A table and a paragraph, from the records of `training_free`."""
    settings = free["as is"]["settings"]
    lines = [(what, *(shown(figure(free[n], k)) for k in KEYS), f"{free[n]['gmacs']:.2f}") for n, what in ROWS.items()]
    gains, same, larger = (_changes(free, base) for base in ("as is", SAME_PIXELS, LARGER))
    first = (
        "A COCO-trained SSD (MobileNet v1 0.75, 300 x 300) with the first stride of its backbone eliminated, evaluated "
        f"on {settings['images']} COCO photographs ({settings['with recovered boxes']} of them with boxes that are not "
        "COCO's own); ± is half of a 95% interval over photographs:"
    )
    last = (
        f"On the same photographs the dual path changes AP by {gains['ap'].signed} and AP on small objects by "
        f"{gains['ap_small'].signed}. Against a pyramid of the same pixels it has {same['ap'].signed} AP: "
        f"{_said(same['ap'])}. Against a pyramid that is given four times the pixels it has {larger['ap'].signed}, so "
        "where larger images are to be had, try them first. Boxes of the finer view are kept below a bound in pixels "
        "that each half of the photographs got from the other half."
    )
    rows = table(("", "AP", "small", "medium", "large", "AR small", "GMAC"), lines)
    return "\n\n".join((fill(first, WIDTH), rows, fill(last, WIDTH)))


def _changes(free: Mapping[str, Record], base: str) -> dict[str, Interval]:
    changes = {key: difference(free[DUAL], base, key) for key in KEYS}
    return {key: change for key, change in changes.items() if change is not None}


def _said(change: Interval) -> str:
    if not change.clear:
        return "no difference that these photographs can show"
    return "it is better" if change.value > 0 else "it is worse"


def rewrite(readme: Path, text: str) -> None:
    """Exchange what stands between the two marks."""
    before, rest = readme.read_text().split(BEGIN)
    with write_atomically(readme) as part:
        part.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.split(END)[1]}")
