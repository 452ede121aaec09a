"""What to choose: for each situation the best rows, and what the comparisons say, whatever it is."""

from collections.abc import Iterator, Mapping, Sequence

from examples.experiments import small_objects
from examples.experiments.page.reading import SIZES, Interval, Record, difference, figure, in_order, table
from examples.ssd.paper import TABLE_4

AS_IS, DUAL = "as is", "S1L0 dual path"
SAME_PIXELS, LARGER = "pyramid, 300 pixels enlarged", "pyramid, 600 pixels"
ALONE = ("S1L6", "S1L4", "S1L0", "S1L12 dilated")
DUALS = ("S1L6 dual path", "S1L4 dual path", "S1L0 dual path")
SITUATIONS = {
    "nothing trained, one pass over 300 pixels": (AS_IS, *ALONE),
    "nothing trained, two passes over 300 pixels": (*DUALS, SAME_PIXELS),
    "nothing trained, photographs of 600 pixels at hand": (AS_IS, "600 pixels", LARGER),
}
Line = tuple[str, ...]
MEASURES = {"ap": "AP", "ap_small": "small", "ap_medium": "medium", "ap_large": "large"}
MEASURES |= {"ar": "AR", "ar_small": "AR small"}
SOUGHT = {"ap": "most AP", "ap_small": "most on small objects", "ap_large": "most on large objects"}
SHORT = {
    "SSDMnetv1": "as is",
    "SSDMnetv1-S1L0": "S1L0",
    "SSDMnetv1-S1L0-DualPath19-10-S": "dual path, split",
    "SSDMnetv1-Size600": "600 pixels",
}
TUNED = {"base": "as is", "S1L0": "S1L0", "S1L0-Split": "dual path, split", "Size600": "600 pixels"}


# ---- the best of each situation


def best(free: Mapping[str, Record], tuned: Mapping[str, Record], sets: Mapping[str, Mapping[str, Record]]) -> str:
    """A table: by situation and what is sought the row with the highest figure, with its compute."""
    groups = {what: (in_order(free, names), AS_IS) for what, names in SITUATIONS.items()}
    groups["fine-tuned on photographs of the same kind"] = (_by_row(tuned, TUNED), "as is")
    for name, found in sets.items():
        groups[f"`{name}`, from ImageNet weights"] = (_by_row(found, SHORT), "as is")
    lines = []
    for what, (rows, base) in groups.items():
        if rows:
            cost = free[AS_IS]["gmacs"] if base not in rows else rows[base]["gmacs"]
            lines.append((what, *(_winner(rows, key, cost) for key in SOUGHT)))
    return table(("", *SOUGHT.values()), lines)


def _by_row(found: Mapping[str, Record], names: Mapping[str, str]) -> dict[str, Record]:
    """Of the first seed, by short name."""
    trained = [r for r in found.values() if r["settings"]["steps"]]
    first = [r for r in trained if r["seed"] == min(r["seed"] for r in trained)]
    return {names[r["row"]]: r for r in first if r["row"] in names}


def _winner(rows: Mapping[str, Record], key: str, base: float) -> str:
    figures = {name: value for name, r in rows.items() if (value := figure(r, key)) is not None}
    if not figures:
        return "too few such objects"
    name = max(figures, key=lambda n: figures[n].value)
    return f"{name}: {figures[name]}, {rows[name]['gmacs'] / base:.1f} x compute"


# ---- the comparisons


def clear(
    free: Mapping[str, Record],
    norms: Mapping[str, Record],
    tuned: Mapping[str, Record],
    sets: Mapping[str, Mapping[str, Record]],
) -> str:
    """A table of every comparison that matters: what is clear as a figure, what is not as an equals sign."""
    return table(("", *MEASURES.values()), [*_untrained(free), *_norms(norms), *_tuned(tuned), *_sets(sets)])


def _untrained(free: Mapping[str, Record]) -> Iterator[Line]:
    for base in (AS_IS, SAME_PIXELS, LARGER):
        yield from _lines("", free, DUALS, base, base)
    for base in (AS_IS, "600 pixels"):
        yield from _lines("", free, ALONE, base, base)


def _norms(norms: Mapping[str, Record]) -> Iterator[Line]:
    for name in norms:
        base = name.removesuffix(", recalibrated")
        if base != name:
            yield from _lines("FastestDet, ", norms, [name], base, base)


def _tuned(found: Mapping[str, Record]) -> Iterator[Line]:
    rows = _by_row(found, TUNED)
    for name, record in rows.items():
        yield from _lines("fine-tuned, ", rows, [name], f"{record['row']} before training", "itself before")
    for base, title in (("base", "as is, trained as long"), ("Size600", "600 pixels, trained as long")):
        yield from _lines("fine-tuned, ", rows, list(rows), base, title)


def _sets(sets: Mapping[str, Mapping[str, Record]]) -> Iterator[Line]:
    for name, found in sets.items():
        rows = _by_row(found, SHORT)
        for base in small_objects.RIVALS:
            yield from _lines(f"`{name}`, ", rows, list(rows), base, SHORT[base])
        others = {r["row"]: r for r in found.values() if ":" in r["row"]}
        for row, record in others.items():
            yield from _lines(f"`{name}`, ", others, [row], record["backbone"], record["backbone"])


def _lines(before: str, rows: Mapping[str, Record], names: Sequence[str], base: str, title: str) -> Iterator[Line]:
    for name in names:
        if name in rows and base in rows[name]["differences"]:
            changes = (difference(rows[name], base, key) for key in MEASURES)
            yield f"{before}{name}, against {title}", *(_sign(change) for change in changes)


def _sign(change: Interval | None) -> str:
    if change is None:
        return "–"
    return f"**{change.signed}**" if change.clear else "="


# ---- in words


def plain(
    free: Mapping[str, Record], tuned: Mapping[str, Record], sets: Mapping[str, Mapping[str, Record]]
) -> list[str]:
    """What each choice gains and loses, without figures."""
    asked = [
        (free.get(DUAL), AS_IS, "Nothing trained, two paths (S1L0) instead of the detector as it is"),
        (free.get(DUAL), SAME_PIXELS, "Nothing trained, two paths instead of the same pixels enlarged in a pyramid"),
        (free.get(DUAL), LARGER, "Nothing trained, two paths instead of a pyramid of photographs of 600 pixels"),
        (free.get("S1L0"), AS_IS, "Nothing trained, one path (S1L0) instead of the detector as it is"),
        (free.get("S1L0"), "600 pixels", "Nothing trained, one path (S1L0) instead of photographs of 600 pixels"),
    ]
    asked += _asked("Fine-tuned", _by_row(tuned, TUNED), "base", "Size600")
    for name, found in sets.items():
        asked += _asked(f"Trained on `{name}`", _by_row(found, SHORT), *small_objects.RIVALS)
    return [
        f"{what}: {said}." for record, base, what in asked if record is not None and (said := _plainly(record, base))
    ]


def _asked(where: str, rows: Mapping[str, Record], base: str, larger: str) -> list[tuple[Record | None, str, str]]:
    return [
        (rows.get(name), other, f"{where}, {name} instead of {what}")
        for other, what in ((base, "the network as it is"), (larger, "600 pixels"))
        for name in ("S1L0", "dual path, split")
    ]


def _plainly(record: Record, base: str) -> str:
    """Better, worse and equal, by AP in all and by size."""
    told: dict[str, list[str]] = {"better": [], "worse": [], "equal": []}
    for key, what in (("ap", "AP"), ("ar", "AR"), *((f"ap_{size}", f"{size} objects") for size in SIZES)):
        change = difference(record, base, key)
        if change is not None:
            told["equal" if not change.clear else "better" if change.value > 0 else "worse"].append(what)
    return "; ".join(f"**{word}** in {', '.join(kinds)}" for word, kinds in told.items() if kinds)


# ---- what else there is to say


def harm(found: Mapping[str, Record]) -> str:
    """Whether the schedule of the fine-tuning is one that the detector itself gains by."""
    rows = _by_row(found, TUNED)
    change = difference(rows["as is"], "base before training", "ap") if "as is" in rows else None
    if change is None or change.high >= 0:
        return ""
    return (
        "The fine-tuning makes the detector itself worse: its rows say how far each network gets in a short training "
        "on few photographs, not where a full one ends."
    )


def cost(times: Mapping[str, Record]) -> list[str]:
    """What S1L0 costs in time, beside what the paper measured."""
    base, fine = list(SHORT)[:2]
    told = []
    for name, record in times.items():
        row, how = record["rows"].get(fine), name.partition("-")[2]
        if row is not None:
            told.append(
                f"{fine} takes {row['ratio'][0]:.1f} times as long as {base} ({how}; compute: "
                f"{row['gmacs'] / record['rows'][base]['gmacs']:.1f} times; the paper, on a GTX 1080 Ti: "
                f"{TABLE_4[fine] / TABLE_4[base]:.1f} times)."
            )
    return told
