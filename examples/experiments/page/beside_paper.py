"""What was measured beside the differences that the paper's Table 2 prints; where the sign is another, it says so."""

from collections.abc import Mapping

from examples.experiments.page.reading import Record, difference, table
from examples.ssd.paper import TABLE_2

BASE = "SSDMnetv1"
ROWS = {
    "S1L6": "SSDMnetv1-S1L6",
    "S1L4": "SSDMnetv1-S1L4",
    "S1L0": "SSDMnetv1-S1L0",
    "S1L0-Split": "SSDMnetv1-S1L0-DualPath19-10-S",
}
MEASURES = {"ap": "AP", "ap_small": "small", "ap_medium": "medium", "ap_large": "large", "ar_small": "AR small"}


def beside_paper(free: Mapping[str, Record], tuned: Mapping[str, Record]) -> str:
    """A table: of each row what the paper prints, what was measured untrained and, where it was run, fine-tuned."""
    lines = []
    for name, printed in ROWS.items():
        theirs = {k: getattr(TABLE_2[printed], k) - getattr(TABLE_2[BASE], k) for k in MEASURES}
        lines.append((f"{name}, the paper, 100 epochs", *(f"{theirs[k]:+.1f}" for k in MEASURES)))
        untrained = free.get(name) or tuned.get(f"{name}-untrained")
        if untrained is not None:
            base = "as is" if name in free else "base"
            lines.append((f"{name}, here, untrained", *(_beside(untrained, base, k, theirs[k]) for k in MEASURES)))
        after = next((r for r in tuned.values() if r["row"] == name and r["settings"]["steps"]), None)
        if after is not None:
            lines.append((f"{name}, here, fine-tuned", *(_beside(after, "base", k, theirs[k]) for k in MEASURES)))
    return table(("against the base of each", *MEASURES.values()), lines)


def _beside(record: Record, base: str, key: str, theirs: float) -> str:
    change = difference(record, base, key)
    if change is None:
        return "–"
    return f"**{change.signed}**" if change.clear and change.value * theirs < 0 else change.signed
