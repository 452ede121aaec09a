"""The sections on networks that were not trained: the stock detector under each surgery, and recalibrated norms."""

from collections.abc import Mapping

from examples.experiments import recalibration
from examples.experiments.page.choosing import unused
from examples.experiments.page.reading import (
    SIZES,
    Record,
    code,
    difference,
    figure,
    in_order,
    interval,
    shown,
    table,
)
from examples.experiments.page.tables import differences_table, figures_table, missing

FREE_ROWS = (
    *(
        "as is",
        "S1L6 by hand",
        "S1L6",
        "S1L4 by hand",
        "S1L4",
        "S1L0 by hand",
        "S1L0",
        "S2L4-6 by hand",
        "S2L4-6",
    ),
    *(
        "S1L12 dilated",
        "600 pixels",
        "S1L6 dual path",
        "S1L4 dual path",
        "S1L0 dual path",
        "S2L4-6 dual path",
    ),
    *("pyramid, 300 pixels enlarged", "pyramid, 600 pixels"),
)


def training_free(found: Mapping[str, Record]) -> str:
    rows = in_order(found, FREE_ROWS)
    settings = rows["as is"]["settings"]
    compared = {name: r for name, r in rows.items() if "by hand" not in name}
    return f"""## Without training

{code("training_free --work runs")}. The stock COCO SSD (MobileNet v1 0.75, 300x300) on {settings["images"]} COCO
photographs. {settings["of train2017"]} of them are of train2017, from which the detector very likely learned; the other
{settings["with recovered boxes"]}, of val2017, have boxes that were recovered from another list (areas estimated,
crowds mostly unmarked). Hardware: {rows["as is"]["hardware"]}. It leaves ten gigabytes in `runs`.

"By hand": `stride = 1` and anchors in the middles of equal cells; without that word: `eliminate`, and anchors as far
from where their cell looks as the detector has learned, in cells. "Dilated": `eliminate(dilate=True)` at the last
stride; it leaves the map for small objects as it is. "Dual path": all boxes of both paths, merged by one suppression.
The boxes of dual paths and pyramids that come from the finer view are kept below a bound on their side in pixels, one
of {_tried(rows)} (0: no box of it), which for each half of the photographs was chosen on the other half{_bounds(rows)}.
Intervals take the bound as given.

{figures_table(rows)}

![AP and AR by size of object against compute](results/training_free.png)

{_by_hand(rows)} {unused(rows)}

AP on the photographs of each of COCO's sets, and the difference from the detector as it is:

{_splits_table(compared)}

The size bound, on all photographs:

![AP by size bound](results/size_bound.png)

{_graph_check(rows)}

Two classes apart, as in the paper's Figure 1:

{_classes_table(compared)}{missing(rows, FREE_ROWS)}"""


def _by_hand(rows: Mapping[str, Record]) -> str:
    """What placing the anchors by the library's geometry is worth."""
    gains = {name: difference(r, f"{name} by hand", "ap") for name, r in rows.items()}
    told = ", ".join(f"{name} {gain.signed}" for name, gain in gains.items() if gain is not None)
    return f"The library, against the stride set by hand (AP): {told}." if told else ""


def _splits_table(rows: Mapping[str, Record]) -> str:
    splits = list(rows["as is"]["splits"])
    lines = []
    for name, record in rows.items():
        values = [shown(interval(record["splits"][s])) for s in splits]
        changes = [shown(interval(record["splits against as is"][s]), signed=True) for s in splits]
        lines.append((name, *values, *(changes if name != "as is" else [""] * len(splits))))
    return table(("", *splits, *(f"{s}, difference" for s in splits)), lines)


def _tried(rows: Mapping[str, Record]) -> str:
    swept: list[str] = next((list(r["sweep"]) for r in rows.values() if "sweep" in r), [])
    return ", ".join(f"{float(bound):g}" for bound in swept)


def _bounds(rows: Mapping[str, Record]) -> str:
    told = [
        f"{name} {'/'.join(f'{b:g}' for b in r['bounds'])}"
        for name, r in rows.items()
        if "bounds" in r
    ]
    return f" (pixels, by the even and by the odd photographs: {'; '.join(told)})" if told else ""


def _graph_check(rows: Mapping[str, Record]) -> str:
    """Of three photographs: the scores of `dual_path` beside those of the networks that it stands for."""
    gaps = {name: r["difference"] for name, r in rows.items() if "difference" in r}
    told = ", ".join(f"{name} {gap:.1g}" for name, gap in gaps.items())
    what = "Largest difference of a score between both paths of one graph and the two networks alone, three photographs"
    return f"{what}: {told}." if told else ""


def _classes_table(rows: Mapping[str, Record]) -> str:
    names = [
        f"ap{suffix} {label}"
        for label in ("person", "car")
        for suffix in ("", *(f"_{s}" for s in SIZES))
    ]
    heads = [f"{label} {size}".strip() for label in ("person", "car") for size in ("AP", *SIZES)]
    return table(
        ("", *heads), [(n, *(shown(figure(r, key)) for key in names)) for n, r in rows.items()]
    )


def recalibrated(found: Mapping[str, Record]) -> str:
    rows = in_order(found, list(recalibration.ROWS))
    first = next(iter(rows.values()))
    settings = first["settings"]
    return f"""## Batch norms that are alive: `recalibrate`

{code("recalibration --work runs")}. FastestDet (a ShuffleNetV2, 352x352) on {settings["images"]} photographs of COCO;
the statistics of the recalibrated rows are those of {settings["seen for statistics"]} other photographs.
The norms of the detector above are folded into its convolutions: there is nothing to recalibrate in it. Which
photographs FastestDet learned from is not known here; those for the statistics are at most 448 pixels long.
Hardware: {first["hardware"]}.

{figures_table(rows)}

{differences_table(rows)}{missing(rows, list(recalibration.ROWS))}"""
