"""The tables that several sections share."""

from collections.abc import Mapping, Sequence

from examples.experiments.page.reading import Record, difference, figure, shown, table

HEADS = ("AP", "small", "medium", "large", "AR small", "AR medium", "AR large", "GMAC")
KEYS = ("ap", "ap_small", "ap_medium", "ap_large", "ar_small", "ar_medium", "ar_large")


def figures_table(rows: Mapping[str, Record]) -> str:
    lines = [(name, *(shown(figure(r, key)) for key in KEYS), f"{r['gmacs']:.2f}") for name, r in rows.items()]
    return table(("", *HEADS), lines)


def differences_table(rows: Mapping[str, Record]) -> str:
    """Paired: both networks on the same resampled photographs."""
    lines = []
    for name, record in rows.items():
        for base in record["differences"]:
            values = (shown(difference(record, base, key), signed=True) for key in KEYS[:5])
            lines.append((f"{name}, against {base}", *values))
    return table(("", *HEADS[:5]), lines)


def missing(rows: Mapping[str, Record], wanted: Sequence[str]) -> str:
    left = [name for name in wanted if name not in rows]
    return f"\n\nNot run yet: {', '.join(left)}." if left else ""
