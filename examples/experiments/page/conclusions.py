"""What the figures say, in sentences: every number and every verdict comes from the records."""

from collections.abc import Iterator, Mapping

from examples.experiments.page.reading import SIZES, Interval, Record, difference, figure
from examples.ssd.paper import TABLE_2, TABLE_4

GAINED = 2.0  # AP: less than that is no reason for several times the compute
MEASURES = (("ap", "AP"), ("ap_small", "AP small"), ("ap_medium", "AP medium"), ("ap_large", "AP large"))
BASE, FINE, DUAL, SPLIT = "SSDMnetv1", "SSDMnetv1-S1L0", "S1L0 dual path", "SSDMnetv1-S1L0-DualPath19-10-S"
LARGER = "SSDMnetv1-Size600"
SHORT = {FINE: "S1L0", SPLIT: "the dual path", LARGER: "600 pixels"}


def verdict(change: Interval | None, what: str) -> str:
    """In words, with the interval."""
    if change is None:
        return f"{what} was not compared"
    span = f"{change.value:+.1f} {what} (95 % interval {change.low:+.1f} to {change.high:+.1f})"
    return span if change.clear else f"no difference in {what} that these photographs can show ({span})"


def choices(free: Mapping[str, Record]) -> list[str]:
    """Without training: what to choose under which constraint."""
    return [
        sentence
        for sentence in (_dual(free), _alone(free), _same_pixels(free), _pyramid(free), _where(free), _dilated(free))
        if sentence
    ]


def _dual(free: Mapping[str, Record]) -> str:
    if DUAL not in free:
        return ""
    row = free[DUAL]
    changes = ", ".join(verdict(difference(row, "as is", f"ap_{size}"), f"AP {size}") for size in SIZES)
    times = row["gmacs"] / free["as is"]["gmacs"]
    return (
        f"**Objects of all sizes, the input size fixed, nothing trained: the dual path.** At {times:.1f} times the "
        f"compute of the detector as it is: {verdict(difference(row, 'as is', 'ap'), 'AP')}; {changes}."
    )


def _alone(free: Mapping[str, Record]) -> str:
    if "S1L0" not in free:
        return ""
    row = free["S1L0"]
    small, large = (difference(row, "as is", f"ap_{size}") for size in ("small", "large"))
    against = difference(row, "600 pixels", "ap_small")
    return (
        f"**Only small and medium objects: the stride eliminated, one path (S1L0).** {verdict(small, 'AP small')}, but "
        f"{verdict(large, 'AP large')}. Do not use it alone, untrained, where large objects count. A photograph at 600 "
        f"pixels costs the same; against it S1L0 has {verdict(against, 'AP small')}."
    )


def _same_pixels(free: Mapping[str, Record]) -> str:
    change = difference(free[DUAL], "pyramid, 300 pixels enlarged", "ap") if DUAL in free else None
    if change is None:
        return ""
    return (
        f"**Beside enlarging the same pixels.** The dual path against the two-scale pyramid of the same 300 pixels, at "
        f"equal compute: {verdict(change, 'AP')}."
        + " Without training, removing a stride does what enlarging the image does."
        * (not change.clear)
    )


def _pyramid(free: Mapping[str, Record]) -> str:
    change = difference(free[DUAL], "pyramid, 600 pixels", "ap") if DUAL in free else None
    if change is None:
        return ""
    advice = "the pyramid is the better choice" if change.high < 0 else "either will do"
    return (
        f"**Larger photographs can be had.** The dual path against a pyramid that sees the photograph at 600 pixels as "
        f"well, at equal compute: {verdict(change, 'AP')}. Where the pixels exist and the input size is free, {advice}."
    )


def _where(free: Mapping[str, Record]) -> str:
    names = [f"{s} dual path" for s in ("S1L0", "S1L4", "S1L6") if f"{s} dual path" in free]
    if len(names) < 2:
        return ""
    told = "; ".join(f"{n.split()[0]} {figure(free[n], 'ap')} AP, {free[n]['gmacs']:.1f} GMAC" for n in names)
    return f"**Which stride.** With two paths: {told}. A later stride costs less; the intervals say what it is worth."


def _dilated(free: Mapping[str, Record]) -> str:
    if "S1L12 dilated" not in free:
        return ""
    row = free["S1L12 dilated"]
    small = difference(row, "as is", "ap_small")
    return (
        "**Dilation** keeps every cell's features and puts cells between them. As a detector without training, against "
        f"the detector as it is: {verdict(difference(row, 'as is', 'ap'), 'AP')}, "
        f"{verdict(small, 'AP small')}."
        + " What is small stays small to the network."
        * (small is not None and small.high < GAINED)
    )


def cost(times: Mapping[str, Record]) -> list[str]:
    """What S1L0 costs in time, beside what the paper measured."""
    told = []
    for name, record in times.items():
        row, how = record["rows"].get(FINE), name.partition("-")[2]
        if row is not None:
            told.append(
                f"**The cost.** {FINE} takes {row['ratio'][0]:.1f} times as long as {BASE} ({how}; compute: "
                f"{row['gmacs'] / record['rows'][BASE]['gmacs']:.1f} times; the paper, on a GTX 1080 Ti: "
                f"{TABLE_4[FINE] / TABLE_4[BASE]:.1f} times)."
            )
    return told


def by_hand(free: Mapping[str, Record]) -> str:
    """What placing the anchors by the library's geometry is worth."""
    gains = {s: difference(free[s], f"{s} by hand", "ap") for s in ("S1L0", "S1L4", "S1L6", "S2L4-6") if s in free}
    told = ", ".join(f"{name} {gain.signed}" for name, gain in gains.items() if gain is not None)
    return (
        f"The library's geometry, against the stride set by hand with anchors in mid-cell, is worth (AP): {told}."
        * bool(told)
    )


# ---- trained


def tuned(found: Mapping[str, Record]) -> list[str]:
    """When the detector can be trained further on photographs of the same kind."""
    rows = {r["row"]: r for r in found.values() if r["settings"]["steps"]}
    told = [f"{row} {_beside(rows[row], 'base')}" for row in ("S1L0", "S1L0-Split", "Size600") if row in rows]
    if not told:
        return []
    steps, batch = (next(iter(rows.values()))["settings"][k] for k in ("steps", "batch"))
    equal = [f"{row} {_in_all(rows[row], 'Size600')}" for row in ("S1L0", "S1L0-Split") if row in rows]
    return [
        f"**Fine-tuned for a while** ({steps} steps of {batch} photographs), against the detector trained as long: "
        f"{'; '.join(told)}. Against the photograph at 600 pixels, trained as long: {'; '.join(equal)}."
    ]


def small_sets(sets: Mapping[str, Mapping[str, Record]]) -> list[str]:
    """When a detector is trained on a set of its own, from ImageNet weights."""
    lines = []
    for name, found in sets.items():
        rows = {r["row"]: r for r in found.values()}
        told = [f"{short} {_beside(rows[row], BASE)}" for row, short in SHORT.items() if row in rows]
        equal = [
            f"{short} {_in_all(rows[row], LARGER)}" for row, short in SHORT.items() if row in rows and row != LARGER
        ]
        other = [f"{row} {_beside(r, row.partition(':')[0])}" for row, r in rows.items() if ":" in row]
        if told:
            lines.append(
                f"**Trained from ImageNet weights, on `{name}`**, against {BASE}: {'; '.join((*told, *other))}. "
                f"Against 600 pixels: {'; '.join(equal)}."
            )
    return lines


def _beside(record: Record, base: str) -> str:
    """In all, and what is clear by size."""
    clear = []
    for key, what in MEASURES[1:]:
        change = difference(record, base, key)
        if change is not None and change.clear:
            clear.append(f"{what} {change.signed}")
    return _in_all(record, base) + f" ({', '.join(clear)})" * bool(clear)


def _in_all(record: Record, base: str) -> str:
    change = difference(record, base, "ap")
    return "was not compared" if change is None else f"{change.signed} AP" + ", not clear" * (not change.clear)


# ---- beside the paper


def untrained_beside_paper(free: Mapping[str, Record]) -> list[str]:
    pairs = (("S1L0", FINE), (DUAL, SPLIT))
    return [line for row, printed in pairs if row in free for line in _lines(free[row], "as is", printed, "untrained")]


def tuned_beside_paper(found: Mapping[str, Record]) -> list[str]:
    rows = {r["row"]: r for r in found.values() if r["settings"]["steps"]}
    pairs = (("S1L0", FINE), ("S1L0-Split", SPLIT))
    return [line for row, printed in pairs if row in rows for line in _lines(rows[row], "base", printed, "fine-tuned")]


def _lines(ours: Record, base: str, printed: str, how: str) -> Iterator[str]:
    """Where what was measured agrees with Table 2 in direction, and where it does not."""
    for key, what in MEASURES:
        change = difference(ours, base, key)
        if change is None:
            continue
        theirs = getattr(TABLE_2[printed], key) - getattr(TABLE_2[BASE], key)
        same = "the same sign" if change.value * theirs > 0 else "**the other sign**"
        same = same if change.clear else "not clear here"
        yield f"{ours['row']}, {what}: paper {theirs:+.1f} (trained), here {change.signed} ({how}): {same}"
