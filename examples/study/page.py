"""Write the tables and the picture of docs/results.md, its details and the README from the records.

    python -m examples.study.page

Prose is written by people, in the pages themselves. What stands between `<!-- figures: ... -->` and
`<!-- end -->` is written here: a kind of table, a folder of docs/results, and its rows.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from examples.study.records import RESULTS, Record, read

ROOT = RESULTS.parents[1]
DOCS = [ROOT / "docs" / name for name in ("results.md", "results_details.md", "detectors.md")]
PAGES = [*DOCS, ROOT / "README.md"]
MARK = re.compile(r"<!-- figures: (\w+) \| ([^|]*?) \| ([^>]*?) -->\n.*?<!-- end -->", re.S)
KEYS = {"ap": "AP", "ap_small": "small", "ap_medium": "medium", "ap_large": "large"}
KEYS |= {"ar_small": "AR small"}
FEW = 20  # objects that a figure must rest on
DRAWN = ["as is", "S1L0", "S1L0 dual path", "600 pixels", "pyramid, 600 pixels"]
DRAWN += ["pyramid, 300 pixels enlarged", "slices", "slices and whole"]


def shown(record: Record, key: str, base: str | None = None) -> str:
    """Return a figure with half of its 95 % interval; a difference from a base is bold if clear."""
    figures = record["figures"] if base is None else record["differences"].get(base, {})
    value, low, high = figures.get(key) or [None] * 3
    if record["objects"][key[2:]] < FEW or None in (value, low):
        return "–"
    sign = "" if base is None else "+"
    text = f"{value:{sign}.1f} ± {(high - low) / 2:.1f}"
    return text if base is None or low <= 0 <= high else f"**{text}**"


def figures(folder: Path, names: Sequence[str]) -> list[Sequence[str]]:
    """Return a line for each record: "file" or "title = file"."""
    found = {title: read(folder / f"{file}.json") for title, file in map(_named, names)}
    has_loss = any("loss" in record for record in found.values())
    lines: list[Sequence[str]] = [("", *KEYS.values(), "GMAC", *["loss"] * has_loss)]
    for title, record in found.items():
        loss = [f"{record['loss']['last']:.2f}"] if has_loss else []
        lines.append((title, *(shown(record, k) for k in KEYS), f"{record['gmacs']:.2f}", *loss))
    return lines


def differences(folder: Path, names: Sequence[str]) -> list[Sequence[str]]:
    """Return a line for each pair: "file - base" or "title = file - base"."""
    lines: list[Sequence[str]] = [("", *KEYS.values())]
    for title, pair in map(_named, names):
        file, base = pair.rsplit(" - ", 1)
        record = read(folder / f"{file}.json")
        lines.append((title, *(shown(record, k, base) for k in KEYS)))
    return lines


def latency(folder: Path, names: Sequence[str]) -> list[Sequence[str]]:
    """Return a line for each network, and the ratio to the first one on each kind of device."""
    found = {title: read(folder / f"{file}.json")["rows"] for title, file in map(_named, names)}
    lines: list[Sequence[str]] = [("", "compute", *(f"{title}, ratio (ms)" for title in found))]
    first, base = next(iter(found.values())), 0.0
    for name, row in first.items():
        base = base or row["gmacs"]
        times = [f"{r[name]['ratio'][0]:.2f} ({r[name]['ms'][0]:.1f})" for r in found.values()]
        lines.append((name, f"{row['gmacs'] / base:.2f}", *times))
    return lines


KINDS = {"figures": figures, "differences": differences, "latency": latency}


def _named(name: str) -> tuple[str, str]:
    title, _, file = name.partition(" = ")
    return title, file or title


def rewritten(text: str) -> str:
    """Return a page with its tables written anew."""

    def table(mark: re.Match[str]) -> str:
        kind, folder, names = mark.groups()
        lines = KINDS[kind](RESULTS / folder, [n.strip() for n in names.split(";")])
        lines.insert(1, ["---", *["---:"] * (len(lines[0]) - 1)])
        rows = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return f"{mark[0].splitlines()[0]}\n\n{rows}\n\n<!-- end -->"

    return MARK.sub(table, text)


def draw(out: Path) -> None:
    """Draw AP and AP of small objects over compute, nothing trained: one point a row."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    panels = figure.subplots(1, 2)
    for panel, key in zip(panels, ("ap", "ap_small"), strict=True):
        for name, marker in zip(DRAWN, "osD^vxP*", strict=True):
            record = read(RESULTS / "training_free" / f"{name}.json")
            value, low, high = record["figures"][key]
            how = {"fmt": marker, "ms": 8, "elinewidth": 0.9, "label": name}
            panel.errorbar(record["gmacs"], value, [[value - low], [high - value]], **how)
        panel.set(xlabel="compute (GMAC)", ylabel=f"AP {KEYS[key] * (key != 'ap')} (%)", ylim=0)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    figure.savefig(out, dpi=90)


def main() -> None:
    draw(RESULTS / "training_free.png")
    for page in PAGES:
        page.write_text(rewritten(page.read_text()))


if __name__ == "__main__":
    main()
