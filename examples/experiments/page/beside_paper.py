"""What was measured beside the differences that the paper's tables print, and where the two disagree."""

from collections.abc import Iterator, Mapping

from examples.experiments.page.names import SPLIT, by_row
from examples.experiments.page.reading import Record, difference, how_measured, table
from examples.ssd.paper import TABLE_2, TABLE_4

BASE = "SSDMnetv1"
ROWS = {
    "S1L6": "SSDMnetv1-S1L6",
    "S1L4": "SSDMnetv1-S1L4",
    "S1L0": "SSDMnetv1-S1L0",
    "S1L0-Split": "SSDMnetv1-S1L0-DualPath19-10-S",
}
MEASURES = {
    "ap": "AP",
    "ap_small": "small",
    "ap_medium": "medium",
    "ap_large": "large",
    "ar_small": "AR small",
}


def beside_paper(free: Mapping[str, Record], tuned: Mapping[str, Record]) -> str:
    """A table: of each row what the paper prints, what was measured untrained and, where it was run, fine-tuned."""
    lines = []
    trained = by_row(tuned)
    for name, printed in ROWS.items():
        lines.append(
            (f"{name}, the paper, 100 epochs", *(f"{_theirs(printed, k):+.1f}" for k in MEASURES))
        )
        untrained = free.get(name) or tuned.get(f"{name}-untrained")
        if untrained is not None:
            base = "as is" if name in free else "base"
            lines.append(
                (f"{name}, here, untrained", *(_shown(untrained, base, k) for k in MEASURES))
            )
        if name in trained:
            marks = (_contradicting(trained[name], k, _theirs(printed, k)) for k in MEASURES)
            lines.append((f"{name}, here, fine-tuned", *marks))
    return table(("against the base of each", *MEASURES.values()), lines)


def _theirs(printed: str, key: str, base: str = BASE) -> float:
    return float(getattr(TABLE_2[printed], key) - getattr(TABLE_2[base], key))


def _shown(record: Record, base: str, key: str) -> str:
    change = difference(record, base, key)
    return "–" if change is None else change.signed


def _contradicting(record: Record, key: str, theirs: float) -> str:
    """Bold where it is clear and of the other sign."""
    change = difference(record, "base", key)
    if change is None:
        return "–"
    return f"**{change.signed}**" if change.clear and change.value * theirs < 0 else change.signed


# ---- in words


def verdicts(
    free: Mapping[str, Record],
    tuned: Mapping[str, Record],
    sets: Mapping[str, Mapping[str, Record]],
    times: Mapping[str, Record],
) -> list[str]:
    """What agrees and what does not, whatever it is."""
    return [
        *_order(free, by_row(tuned)),
        *_signs(by_row(tuned)),
        *_two_paths(by_row(tuned), sets),
        *_time(times),
    ]


def _order(free: Mapping[str, Record], trained: Mapping[str, Record]) -> Iterator[str]:
    """Which layer's stride matters most for small objects."""
    names = ("S1L6", "S1L4", "S1L0")
    there = sorted(names, key=lambda n: -_theirs(ROWS[n], "ap_small"))
    for how, rows in (("untrained", free), ("fine-tuned", trained)):
        if all(name in rows for name in names):
            here = sorted(names, key=lambda n: -rows[n]["figures"]["ap_small"][0])
            yield f"AP small, {how}, the most first: {', '.join(here)} (the paper: {', '.join(there)})."


def _signs(trained: Mapping[str, Record]) -> Iterator[str]:
    known = [name for name in ROWS if name in trained]
    against = [
        f"{name} {what} {change.signed} (the paper {_theirs(ROWS[name], key):+.1f})"
        for name in known
        for key, what in MEASURES.items()
        if (change := difference(trained[name], "base", key)) is not None
        and change.clear
        and change.value * _theirs(ROWS[name], key) < 0
    ]
    if against:
        yield f"Fine-tuned, though not for 100 epochs, of the other sign than the paper: {'; '.join(against)}."
    elif known:
        yield f"Fine-tuned, no clear difference of another sign than the paper's ({', '.join(known)})."


def _two_paths(
    trained: Mapping[str, Record], sets: Mapping[str, Mapping[str, Record]]
) -> Iterator[str]:
    fine, split = ROWS["S1L0"], ROWS["S1L0-Split"]
    theirs = _theirs(split, "ap", fine)
    found: dict[str, tuple[Record | None, str]] = {
        "fine-tuned on COCO": (trained.get("S1L0-Split"), "S1L0")
    }
    found |= {f"`{name}`": (by_row(rows).get(split), fine) for name, rows in sets.items()}
    told = []
    for where, (record, base) in found.items():
        change = difference(record, base, "ap") if record is not None else None
        if change is not None:
            word = (
                "not clear"
                if not change.clear
                else "same sign"
                if change.value * theirs > 0
                else "other sign"
            )
            told.append(f"{where} {change.signed} ({word})")
    if told:
        yield f"AP of {SPLIT} against S1L0: the paper, 100 epochs of COCO, {theirs:+.1f}; {', '.join(told)}."


def _time(times: Mapping[str, Record]) -> Iterator[str]:
    for name, record in times.items():
        rows = {short: record["rows"].get(row) for short, row in ROWS.items() if row in TABLE_4}
        told = [
            f"{short} {r['ratio'][0]:.2f} ({TABLE_4[ROWS[short]] / TABLE_4[BASE]:.2f})"
            for short, r in rows.items()
            if r is not None
        ]
        if told:
            how = how_measured(name, record)
            yield f"Time against the base, {how} (in brackets the paper, on a GTX 1080 Ti): {', '.join(told)}."
