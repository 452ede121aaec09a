"""What to choose: for each constraint and aim what gains most, and what the comparisons say, whatever it is."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from examples.experiments import small_objects
from examples.experiments.page.names import AS_IS, DUAL, LARGE, LARGER, SAME_PIXELS, by_row, named
from examples.experiments.page.reading import (
    Record,
    difference,
    how_measured,
    in_order,
    interval,
    table,
)
from examples.ssd.paper import TABLE_4

DILATED = "S1L12 dilated"
FIXED = (AS_IS, "S1L6", "S1L4", "S1L0", DILATED, "S1L6 dual path", "S1L4 dual path", DUAL)
BUDGETS = (2, 4, 5)  # times the compute of the network as it is
AIMS = {
    "ap": "AP",
    "ap_small": "AP small",
    "ar_small": "AR small",
    "ap_medium": "AP medium",
    "ap_large": "AP large",
}
UNTOUCHED = small_objects.ROWS[:2]


# ---- by constraint and aim


@dataclass(frozen=True)
class Situation:
    """What a user may do, and the networks that were measured in it."""

    what: str
    rows: Mapping[str, Record]
    base: str  # the network as it is, by its name among the differences
    cost: float  # its compute, 10^9 multiply-accumulates
    most: float = float("inf")  # compute, in that of the network as it is

    def times(self, name: str) -> float:
        return float(self.rows[name]["gmacs"] / self.cost)

    def best(self, key: str) -> str:
        """What is clearly better than the network as it is, bold without a loss; then what gains more at a price."""
        changes = {
            name: difference(r, self.base, key)
            for name, r in self.rows.items()
            if self.times(name) <= self.most
        }
        known = {name: change for name, change in changes.items() if change is not None}
        if not known:
            return "too few such objects"
        gains = {name: c for name, c in known.items() if c.clear and c.value > 0}
        if not gains:
            return (
                "none clearly better"
                if any(not c.clear for c in known.values())
                else "all clearly worse"
            )
        harmless = {name: c.value for name, c in gains.items() if not self.losses(name)}
        dear = {name: c.value for name, c in gains.items() if name not in harmless}
        dear = {
            name: value
            for name, value in dear.items()
            if value > max(harmless.values(), default=0.0)
        }
        parts = [f"**{named(best)}**{told}" for best, told in self.first(harmless, key)]
        parts += [
            f"{named(best)}{told}, but {self.losses(best)}" for best, told in self.first(dear, key)
        ]
        return "; ".join(parts)

    def first(self, gains: Mapping[str, float], key: str) -> Iterator[tuple[str, str]]:
        """The name of what gains most, if there is any; its compute, gain and figure, and what is not told apart."""
        if gains:
            best = max(gains, key=lambda name: gains[name])
            gain = difference(self.rows[best], self.base, key)
            assert gain is not None
            alike = "".join(
                f" (or {named(n)}, {self.times(n):.1f}x)" for n in gains if self.alike(n, best, key)
            )
            yield (
                best,
                f" ({self.times(best):.1f}x) {gain.signed} to {self.rows[best]['figures'][key][0]:.1f}{alike}",
            )

    def losses(self, name: str) -> str:
        """In what it is clearly worse than the network as it is."""
        changes = {what: difference(self.rows[name], self.base, key) for key, what in AIMS.items()}
        return ", ".join(
            f"{w} {c.signed}"
            for w, c in changes.items()
            if c is not None and c.clear and c.value < 0
        )

    def alike(self, one: str, other: str, key: str) -> bool:
        """Whether the two were compared and could not be told apart."""
        changes = [difference(self.rows[a], b, key) for a, b in ((one, other), (other, one))]
        known = [change for change in changes if change is not None]
        return bool(known) and not known[0].clear


def situations(
    free: Mapping[str, Record],
    norms: Mapping[str, Record],
    tuned: Mapping[str, Record],
    sets: Mapping[str, Mapping[str, Record]],
) -> Iterator[Situation]:
    cost = free[AS_IS]["gmacs"]
    fixed = {**in_order(free, FIXED), **untrained_split(tuned)}
    for most in BUDGETS:
        yield Situation(
            f"SSD, nothing trained, input stays 300x300, up to {most}x", fixed, AS_IS, cost, most
        )
    rows = {**fixed, **in_order(free, (SAME_PIXELS,))}
    yield Situation(
        "SSD, nothing trained, input may be enlarged, no more pixels to be had, up to 5x",
        rows,
        AS_IS,
        cost,
        5,
    )
    rows = {**fixed, **in_order(free, (LARGE, LARGER))}
    for most in BUDGETS[1:]:
        what = f"SSD, nothing trained, the photograph is larger than the input, up to {most}x"
        yield Situation(what, rows, AS_IS, cost, most)
    if AS_IS in norms:
        yield Situation("FastestDet, nothing trained", norms, AS_IS, norms[AS_IS]["gmacs"])
    if "base" in (rows := by_row(tuned)):
        base = "base before training"
        yield from _by_input(
            "SSD, fine-tuned on some COCO photographs, against as is, before it", rows, base, "base"
        )
    for name, found in sets.items():
        rows = in_order(by_row(found), small_objects.ROWS)
        if (better := better_untouched(rows)) is not None:
            worse = set(UNTOUCHED) - {better}
            rows = {row: r for row, r in rows.items() if row not in worse}
            yield from _by_input(
                f"`{name}`, from ImageNet weights, against {named(better)}", rows, better, better
            )


def _by_input(
    what: str, rows: Mapping[str, Record], base: str, untouched: str
) -> Iterator[Situation]:
    """Where the input may grow, and where it may not."""
    cost = rows[untouched]["gmacs"]
    yield Situation(what, rows, base, cost)
    fixed = {row: r for row, r in rows.items() if named(row) != LARGE}
    yield Situation(f"{what}, input stays 300x300", fixed, base, cost)


def untrained_split(tuned: Mapping[str, Record]) -> dict[str, Record]:
    """The split network before training, beside the rows that were never to be trained."""
    record = tuned.get("S1L0-Split-untrained")
    if record is None:
        return {}
    changes = {named(row): change for row, change in record["differences"].items()}
    return {"S1L0 split": {**record, "differences": changes}}


def better_untouched(rows: Mapping[str, Record]) -> str | None:
    """With the paper's boxes or with those of S1L0, whichever has more AP: what a surgery has to beat."""
    return max(
        (row for row in UNTOUCHED if row in rows),
        key=lambda row: rows[row]["figures"]["ap"][0],
        default=None,
    )


def decisions(found: Sequence[Situation]) -> str:
    return table(
        ("", *AIMS.values()), [(s.what, *(s.best(key) for key in AIMS)) for s in found], words=True
    )


# ---- in words


def plain(
    free: Mapping[str, Record],
    tuned: Mapping[str, Record],
    sets: Mapping[str, Mapping[str, Record]],
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
            (DILATED, AS_IS, "the network as it is, whose map for small objects it keeps"),
        )
    ]
    asked += _asked("Fine-tuned", by_row(tuned), ("S1L0", "S1L0-Split"), ("base", "Size600"))
    for name, found in sets.items():
        fine, split = "SSDMnetv1-S1L0", "SSDMnetv1-S1L0-DualPath19-10-S"
        rivals = (better_untouched(by_row(found)) or "", "SSDMnetv1-Size600")
        asked += _asked(f"Trained on `{name}`", by_row(found), (fine, split), rivals)
    return [
        f"{what}: {said}."
        for record, base, what in asked
        if record is not None and (said := _plainly(record, base))
    ]


def _asked(
    where: str, rows: Mapping[str, Record], names: Sequence[str], rivals: Sequence[str]
) -> list[tuple[Record | None, str, str]]:
    fine, split = names
    pairs = [*((name, base) for base in rivals for name in names), (split, fine)]
    return [
        (rows.get(name), base, f"{where}, {named(name)} instead of {named(base)}")
        for name, base in pairs
    ]


def _plainly(record: Record, base: str) -> str:
    """Better, worse and not told apart."""
    told: dict[str, list[str]] = {"better": [], "worse": [], "not told apart": []}
    for key, what in {**AIMS, "ar": "AR"}.items():
        change = difference(record, base, key)
        if change is not None:
            told[
                "not told apart" if not change.clear else "better" if change.value > 0 else "worse"
            ].append(what)
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


def harm(found: Mapping[str, Record], free: Mapping[str, Record]) -> str:
    """What the fine-tuning does to the networks themselves."""
    changes = {
        row: difference(r, f"{row} before training", "ap") for row, r in by_row(found).items()
    }
    clear = {row: c for row, c in changes.items() if c is not None and c.clear}
    if not clear:
        return ""
    better = [f"{named(row)} {c.signed}" for row, c in clear.items() if c.value > 0]
    worse = [f"{named(row)} {c.signed}" for row, c in clear.items() if c.value < 0]
    parts = [
        f"{word} the AP of {', '.join(rows)}"
        for word, rows in (("raises", better), ("lowers", worse))
        if rows
    ]
    said = f"The fine-tuning, short and on few photographs, {' and '.join(parts)}."
    best = max(by_row(found).values(), key=lambda r: r["figures"]["ap"][0])
    rival = free.get(DUAL)
    if rival is not None and rival["figures"]["ap"][0] > best["figures"]["ap"][0]:
        said += (
            f" With nothing trained {DUAL} has AP {rival['figures']['ap'][0]:.1f}, the best fine-tuned row "
            f"{best['figures']['ap'][0]:.1f}: without more photographs or a better schedule, do not fine-tune."
        )
    return said


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
    told = "; ".join(
        f"{word} the AP of {', '.join(names)}" for word, names in kinds.items() if names
    )
    best, small = (
        max(norms, key=lambda n: norms[n]["figures"][key][0]) for key in ("ap", "ap_small")
    )
    return f"`recalibrate`, FastestDet: {told}. Most AP of all these rows has {best}, most AP small {small}."


def cost(times: Mapping[str, Record]) -> list[str]:
    """What S1L0 costs in time, beside what the paper measured."""
    base, fine = "SSDMnetv1", "SSDMnetv1-S1L0"
    told = []
    for name, record in times.items():
        row, how = record["rows"].get(fine), how_measured(name, record)
        if row is not None:
            told.append(
                f"S1L0 takes {row['ratio'][0]:.1f} times as long as the network as it is ({how}; compute: "
                f"{row['gmacs'] / record['rows'][base]['gmacs']:.1f} times; the paper, on a GTX 1080 Ti: "
                f"{TABLE_4[fine] / TABLE_4[base]:.1f} times)."
            )
    return told
