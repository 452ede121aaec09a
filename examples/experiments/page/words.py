"""What a difference says, in words: every number and every verdict comes from the records."""

from examples.experiments.page.reading import Record, difference

MEASURES = {
    "ap": "AP",
    "ap50": "AP50",
    "ap_small": "AP small",
    "ap_medium": "AP medium",
    "ap_large": "AP large",
    "ar": "AR",
    "ar_small": "AR small",
}


def compared(record: Record, base: str) -> str:
    """AP, and every other measure whose interval leaves zero out."""
    overall = difference(record, base, "ap")
    if overall is None:
        return "was not compared"
    clear = []
    for key, what in MEASURES.items():
        change = difference(record, base, key)
        if key != "ap" and change is not None and change.clear:
            clear.append(f"{what} {change.signed}")
    if overall.clear:
        return f"AP {overall.signed}" + (f" ({', '.join(clear)})" if clear else "")
    if clear:
        return f"AP {overall.signed}, not clear, but {', '.join(clear)}"
    return f"nothing that these photographs can tell apart (AP {overall.signed})"
