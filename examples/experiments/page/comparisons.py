"""Every comparison that matters, as a table of paired differences."""

from collections.abc import Iterator, Mapping, Sequence

from examples.experiments import fine_tuning, small_objects
from examples.experiments.page.names import AS_IS, DUAL, LARGE, LARGER, SAME_PIXELS, by_row, named
from examples.experiments.page.reading import Record, difference, marked, table

ALONE = ("S1L6", "S1L4", "S1L0", "S1L12 dilated", LARGE)
JOINED = ("S1L6 dual path", "S1L4 dual path", DUAL, SAME_PIXELS, LARGER)
MEASURES = {"ap": "AP", "ap_small": "small", "ap_medium": "medium", "ap_large": "large"}
MEASURES |= {"ar": "AR", "ar_small": "AR small"}
Line = tuple[str, ...]


def comparisons(
    free: Mapping[str, Record],
    norms: Mapping[str, Record],
    tuned: Mapping[str, Record],
    sets: Mapping[str, Mapping[str, Record]],
) -> str:
    """Bold: the interval leaves zero out."""
    lines = [*_untrained(free), *_norms(norms), *_tuned(tuned), *_sets(sets)]
    return table(("", *MEASURES.values()), lines)


def _untrained(free: Mapping[str, Record]) -> Iterator[Line]:
    yield from _lines("", free, (*ALONE, *JOINED), AS_IS, AS_IS)
    for base in ("S1L0", LARGE, SAME_PIXELS, LARGER):
        yield from _lines("", free, (*ALONE, DUAL, LARGER), base, base)


def _norms(norms: Mapping[str, Record]) -> Iterator[Line]:
    for name in norms:
        base = name.removesuffix(", recalibrated")
        if base != name:
            yield from _lines("FastestDet, ", norms, [name], base, base)


def _tuned(found: Mapping[str, Record]) -> Iterator[Line]:
    rows = by_row(found)
    for row in rows:
        yield from _lines("fine-tuned, ", rows, [row], f"{row} before training", "itself before")
    for base in fine_tuning.RIVALS:
        yield from _lines("fine-tuned, ", rows, list(rows), base, f"{named(base)}, trained as long")


def _sets(sets: Mapping[str, Mapping[str, Record]]) -> Iterator[Line]:
    for name, found in sets.items():
        rows = by_row(found)
        others = [
            r["backbone"]
            for r in rows.values()
            if ":" not in r["row"] and r["row"] == r["backbone"]
        ]
        for base in (
            *small_objects.RIVALS,
            *(b for other in others for b in (other, f"{other}:S1L0")),
        ):
            yield from _lines(f"`{name}`, ", rows, list(rows), base, named(base))


def _lines(
    before: str, rows: Mapping[str, Record], names: Sequence[str], base: str, title: str
) -> Iterator[Line]:
    for name in names:
        if name in rows and base in rows[name]["differences"]:
            changes = (marked(difference(rows[name], base, key)) for key in MEASURES)
            yield f"{before}{named(name)}, against {title}", *changes
