"""What to choose: for each constraint and aim what gains most, and what the comparisons say, whatever it is."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from examples.experiments import small_objects
from examples.experiments.page.names import AS_IS, DUAL, LARGE, LARGER, SAME_PIXELS, by_row, named
from examples.experiments.page.reading import SIZES, Record, difference, in_order, interval, table
from examples.ssd.paper import TABLE_4

DILATED = "S1L12 dilated"
FIXED = (AS_IS, "S1L6", "S1L4", "S1L0", DILATED, "S1L6 dual path", "S1L4 dual path", DUAL)
BUDGETS = (2, 4, 5)  # times the compute of the network as it is
AIMS = {"ap": "all sizes (AP)", "ap_small": "small objects", "ap_medium": "medium", "ap_large": "large"}
LEAVE = "leave it"
UNTOUCHED = small_objects.ROWS[:2]


# ---- by constraint and aim


@dataclass(frozen=True)
class Situation:
    """What a user may do, and the networks that were measured in it."""

    what: str
    rows: Mapping[str, Record]  # with the network as it is
    base: str  # its name
    most: float = float("inf")  # compute, in that of the network as it is

    def times(self, name: str) -> float:
        return float(self.rows[name]["gmacs"] / self.rows[self.base]["gmacs"])

    def best(self, key: str) -> str:
        """What is clearly better than the network as it is by most, and what of the rest cannot be told from that."""
        within = {name: r for name, r in self.rows.items() if name != self.base and self.times(name) <= self.most}
        changes = {name: difference(r, self.base, key) for name, r in within.items()}
        if all(change is None for change in changes.values()):
            return "too few such objects"
        gains = {name: c for name, c in changes.items() if c is not None and c.clear and c.value > 0}
        if not gains:
            return LEAVE
        best = max(gains, key=lambda name: gains[name].value)
        alike = sorted((n for n in gains if self.alike(n, best, key)), key=self.times)
        told = f"**{named(best)}** {gains[best].signed} ({self.times(best):.1f}x)"
        return told + "".join(f", or {named(n)} ({self.times(n):.1f}x)" for n in alike)

    def alike(self, one: str, other: str, key: str) -> bool:
        """Whether the two were compared and could not be told apart."""
        changes = [difference(self.rows[a], b, key) for a, b in ((one, other), (other, one))]
        known = [change for change in changes if change is not None]
        return bool(known) and not known[0].clear


def situations(
    free: Mapping[str, Record], tuned: Mapping[str, Record], sets: Mapping[str, Mapping[str, Record]]
) -> Iterator[Situation]:
    for most in BUDGETS:
        rows = in_order(free, FIXED)
        yield Situation(f"nothing trained, input stays 300x300, up to {most}x compute", rows, AS_IS, most)
    rows = in_order(free, (*FIXED, SAME_PIXELS))
    yield Situation("nothing trained, input may be enlarged, no more pixels to be had, up to 5x", rows, AS_IS, 5)
    for most in BUDGETS[1:]:
        rows = in_order(free, (*FIXED, LARGE, LARGER))
        yield Situation(f"nothing trained, the photograph is larger than the input, up to {most}x", rows, AS_IS, most)
    if "base" in (rows := by_row(tuned)):
        yield Situation("fine-tuned on some COCO photographs, against as is, fine-tuned", rows, "base")
    for name, found in sets.items():
        rows = in_order(by_row(found), small_objects.ROWS)
        if (base := better_untouched(rows)) is not None:
            worse = set(UNTOUCHED) - {base}
            rows = {row: r for row, r in rows.items() if row not in worse}
            yield Situation(f"`{name}`, from ImageNet weights, against {named(base)}", rows, base)


def better_untouched(rows: Mapping[str, Record]) -> str | None:
    """With the paper's boxes or with those of S1L0, whichever has more AP: what a surgery has to beat."""
    return max((row for row in UNTOUCHED if row in rows), key=lambda row: rows[row]["figures"]["ap"][0], default=None)


def decisions(found: Sequence[Situation]) -> str:
    return table(("", *AIMS.values()), [(s.what, *(s.best(key) for key in AIMS)) for s in found], words=True)


# ---- in words


def plain(
    free: Mapping[str, Record], tuned: Mapping[str, Record], sets: Mapping[str, Mapping[str, Record]]
) -> list[str]:
    """What each choice gains and loses, without figures."""
    asked = [
        (free.get(name), base, f"Nothing trained, {name} instead of {what}")
        for name, base, what in (
            (DUAL, AS_IS, "the network as it is"),
            (DUAL, "S1L0", "S1L0 alone"),
            (DUAL, SAME_PIXELS, "a pyramid of the same pixels enlarged"),
            (DUAL, LARGER, "a pyramid with the photograph at 600 pixels"),
            ("S1L0", AS_IS, "the network as it is"),
            ("S1L0", LARGE, "600 pixels"),
            (LARGE, AS_IS, "the network as it is"),
            (LARGER, AS_IS, "the network as it is"),
            (DILATED, AS_IS, "the network as it is"),
        )
    ]
    asked += _asked("Fine-tuned", by_row(tuned), ("S1L0", "S1L0-Split"), ("base", "Size600"))
    for name, found in sets.items():
        fine, split = "SSDMnetv1-S1L0", "SSDMnetv1-S1L0-DualPath19-10-S"
        rivals = (better_untouched(by_row(found)) or "", "SSDMnetv1-Size600")
        asked += _asked(f"Trained on `{name}`", by_row(found), (fine, split), rivals)
    return [
        f"{what}: {said}." for record, base, what in asked if record is not None and (said := _plainly(record, base))
    ]


def _asked(
    where: str, rows: Mapping[str, Record], names: Sequence[str], rivals: Sequence[str]
) -> list[tuple[Record | None, str, str]]:
    fine, split = names
    pairs = [*((name, base) for base in rivals for name in names), (split, fine)]
    return [(rows.get(name), base, f"{where}, {named(name)} instead of {named(base)}") for name, base in pairs]


def _plainly(record: Record, base: str) -> str:
    """Better, worse and not told apart, by AP in all and by size."""
    told: dict[str, list[str]] = {"better": [], "worse": [], "not told apart": []}
    for key, what in (("ap", "AP"), ("ar", "AR"), *((f"ap_{size}", f"{size} objects") for size in SIZES)):
        change = difference(record, base, key)
        if change is not None:
            told["not told apart" if not change.clear else "better" if change.value > 0 else "worse"].append(what)
    return "; ".join(f"**{word}** in {', '.join(kinds)}" for word, kinds in told.items() if kinds)


# ---- what else there is to say


def unused(free: Mapping[str, Record]) -> str:
    """Which finer paths the photographs themselves choose to leave out."""
    left = [name for name, r in free.items() if "bounds" in r and not any(r["bounds"])]
    if not left:
        return ""
    return f"Both halves of the photographs choose to use no box of the finer view of {' and '.join(left)}."


def unlearned(free: Mapping[str, Record]) -> str:
    """What holds on the photographs that the detector did not learn from."""
    told = []
    for name in ("S1L0", DUAL, LARGE, LARGER):
        ends = free[name]["splits against as is"].get("val2017") if name in free else None
        change = interval(ends)
        if change is not None:
            told.append(f"{name} {change.signed} ({'clear' if change.clear else 'not clear'})")
    if not told:
        return ""
    return f"On those of val2017 alone, which the detector did not learn from, AP against as is: {', '.join(told)}."


def harm(found: Mapping[str, Record]) -> str:
    """What the fine-tuning does to the networks themselves."""
    changes = {row: difference(r, f"{row} before training", "ap") for row, r in by_row(found).items()}
    clear = {row: c for row, c in changes.items() if c is not None and c.clear}
    if not clear:
        return ""
    better = [f"{named(row)} {c.signed}" for row, c in clear.items() if c.value > 0]
    worse = [f"{named(row)} {c.signed}" for row, c in clear.items() if c.value < 0]
    parts = [f"{word} the AP of {', '.join(rows)}" for word, rows in (("raises", better), ("lowers", worse)) if rows]
    return (
        f"The fine-tuning {' and '.join(parts)}: its rows say how the networks compare after a short training on few "
        "photographs, not where a full one ends"
        + ("." if better else "; with no better one at hand, start from the networks that are not fine-tuned.")
    )


def recalibrating(norms: Mapping[str, Record]) -> str:
    """Whether `recalibrate` pays."""
    changes = {}
    for name, record in norms.items():
        base = name.removesuffix(", recalibrated")
        change = difference(record, base, "ap") if base != name else None
        if change is not None:
            changes[base] = change
    if not changes:
        return ""
    kinds = {
        "raises": [n for n, c in changes.items() if c.clear and c.value > 0],
        "lowers": [n for n, c in changes.items() if c.clear and c.value < 0],
        "shows no difference in": [n for n, c in changes.items() if not c.clear],
    }
    told = "; ".join(f"{word} the AP of {', '.join(names)}" for word, names in kinds.items() if names)
    best = max(norms, key=lambda name: norms[name]["figures"]["ap"][0])
    return f"`recalibrate`, FastestDet: {told}. The best of all these rows is {best}."


def cost(times: Mapping[str, Record]) -> list[str]:
    """What S1L0 costs in time, beside what the paper measured."""
    base, fine = "SSDMnetv1", "SSDMnetv1-S1L0"
    told = []
    for name, record in times.items():
        row, how = record["rows"].get(fine), name.partition("-")[2]
        if row is not None:
            told.append(
                f"S1L0 takes {row['ratio'][0]:.1f} times as long as the network as it is ({how}; compute: "
                f"{row['gmacs'] / record['rows'][base]['gmacs']:.1f} times; the paper, on a GTX 1080 Ti: "
                f"{TABLE_4[fine] / TABLE_4[base]:.1f} times)."
            )
    return told
