"""The tables that several sections share."""

from collections.abc import Mapping, Sequence

from examples.experiments.page.reading import Record, difference, figure, marked, shown, table

SHOWN = {"ap": "AP", "ap_small": "small", "ap_medium": "medium", "ap_large": "large"}
SHOWN |= {"ar": "AR", "ar_small": "AR small", "ar_medium": "AR medium", "ar_large": "AR large"}
COMPARED = ("ap", "ap_small", "ap_medium", "ap_large", "ar", "ar_small")


def figures_table(rows: Mapping[str, Record]) -> str:
    lines = [
        (name, *(shown(figure(r, key)) for key in SHOWN), f"{r['gmacs']:.2f}")
        for name, r in rows.items()
    ]
    return table(("", *SHOWN.values(), "GMAC"), lines)


def differences_table(rows: Mapping[str, Record]) -> str:
    """Paired: both networks on the same resampled photographs. Bold: the interval leaves zero out."""
    lines = []
    for name, record in rows.items():
        for base in record["differences"]:
            values = (marked(difference(record, base, key)) for key in COMPARED)
            lines.append((f"{name}, against {base}", *values))
    return table(("", *(SHOWN[key] for key in COMPARED)), lines)


def missing(rows: Mapping[str, Record], wanted: Sequence[str]) -> str:
    left = [name for name in wanted if name not in rows]
    return f"\n\nNot run yet: {', '.join(left)}." if left else ""
