"""The README's figures: a few rows of the page, and what they say."""

from collections.abc import Mapping
from pathlib import Path
from textwrap import fill

from examples.experiments.page.names import DUAL, LARGER, SAME_PIXELS, by_row
from examples.experiments.page.reading import Record, figure, shown, table
from examples.experiments.page.words import compared
from examples.ssd.files import write_atomically

README = Path(__file__).parents[3] / "README.md"
BEGIN, END = "<!-- written by examples.experiments.gather -->", "<!-- until here -->"
WIDTH = 120

ROWS = {
    "as is": "as it is",
    "S1L0 by hand": "`stride = 1` by hand, anchors in mid-cell",
    "S1L0": "`eliminate`, anchors carried over by the library's geometry",
    DUAL: "**`dual_path`**: the pretrained network and the finer one, one set of weights",
    "600 pixels": "the untouched network on the photograph at 600 x 600",
    SAME_PIXELS: "an image pyramid of its own 300 x 300 pixels, enlarged",
    LARGER: "an image pyramid with the photograph at 600 x 600",
}
NETWORKS = {
    "SSDMnetv1": "as it is",
    "SSDMnetv1-Anchor10-45": "as it is, S1L0's boxes",
    "SSDMnetv1-S1L0": "S1L0",
    "SSDMnetv1-Size600": "600 pixels",
    "SSDMnetv1-S1L0-DualPath19-10-S": "dual path, split",
}
KEYS = ("ap", "ap_small", "ap_medium", "ap_large", "ar_small")


def headline(free: Mapping[str, Record], sets: Mapping[str, Mapping[str, Record]]) -> str:
    """What the stock detector does without training, and what training on sets of small objects gives."""
    return "\n\n".join(part for part in (_untrained(free), _trained(sets)) if part)


def _trained(sets: Mapping[str, Mapping[str, Record]]) -> str:
    """AP of each set and network, of the first seed."""
    lines = []
    for name, found in sets.items():
        first = by_row(found)
        values = [
            shown(figure(first[row], "ap")) if row in first else "not run" for row in NETWORKS
        ]
        settings = next(iter(first.values()))["settings"]
        lines.append(
            (
                f"`{name}`, {settings['images']} images, {settings['steps']} steps of {settings['batch']}",
                *values,
            )
        )
    if not lines:
        return ""
    said = (
        "Trained for a short while on small sets, from ImageNet weights (the paper's SSD on MobileNet v1, AP, one "
        "seed; S1L0 and 600 pixels cost the same; the smallest boxes are of 45 pixels in the first column, of 10 in "
        "the others):"
    )
    return fill(said, WIDTH) + "\n\n" + table(("", *NETWORKS.values()), lines)


def _untrained(free: Mapping[str, Record]) -> str:
    settings = free["as is"]["settings"]
    lines = [
        (what, *(shown(figure(free[n], k)) for k in KEYS), f"{free[n]['gmacs']:.2f}")
        for n, what in ROWS.items()
    ]
    first = (
        "A COCO-trained SSD (MobileNet v1 0.75, 300 x 300), nothing trained further, untouched and with the first "
        "stride of its backbone eliminated, evaluated "
        f"on {settings['images']} COCO photographs ({settings['of train2017']} of train2017, from which it very likely "
        f"learned; {settings['with recovered boxes']} with boxes that are not COCO's own); ± is half of a 95% interval "
        "over photographs:"
    )
    against = {base: compared(free[DUAL], base) for base in ("as is", SAME_PIXELS, LARGER)}
    last = (
        f"`eliminate` alone, against the detector as it is: {compared(free['S1L0'], 'as is')}. "
        f"The dual path on the same photographs: against the detector as it is {against['as is']}; against the pyramid "
        f"of the same pixels {against[SAME_PIXELS]}; against the pyramid that is given the photograph at 600 x 600 "
        f"{against[LARGER]}. Where larger images are to be had, try them too. Boxes of the finer view are kept below a "
        "bound in pixels that each half of the photographs got from the other half."
    )
    rows = table(("", "AP", "small", "medium", "large", "AR small", "GMAC"), lines)
    return "\n\n".join((fill(first, WIDTH), rows, fill(last, WIDTH)))


def rewrite(readme: Path, text: str) -> None:
    """Exchange what stands between the two marks."""
    before, rest = readme.read_text().split(BEGIN)
    with write_atomically(readme) as part:
        part.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.split(END)[1]}")
