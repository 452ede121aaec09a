"""Write docs/results.md, its plots and the README's figures from the records in docs/results.

    python -m examples.experiments.gather

Nothing is measured here, and nothing on the page is typed by hand: rows that were not run are named as such.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from examples.experiments import bootstrap, recalibration, records
from examples.experiments.page import choosing, headline, plots, protocol, trained_rows, untrained
from examples.experiments.page.beside_paper import beside_paper, verdicts
from examples.experiments.page.comparisons import comparisons
from examples.experiments.page.names import MEANINGS
from examples.experiments.page.reading import FEW, Record, all_in, code, in_order, table
from examples.experiments.pictures import PAIRS, file_name
from examples.ssd.files import write_atomically
from examples.ssd.programs import run


def page(results: Path) -> str:
    """The text of docs/results.md; plots are written beside the records."""
    free = all_in(results / "training_free")
    norms = in_order(all_in(results / "recalibration"), list(recalibration.ROWS))
    tuned = all_in(results / "fine_tuning")
    sets = small_sets(results)
    times = all_in(results / "latency")
    checks = all_in(results).get("checks")
    parts = [INTRODUCTION.format(resamples=bootstrap.RESAMPLES, few=FEW)]
    if free:
        rows = in_order(free, untrained.FREE_ROWS)
        plots.against_compute(rows, results / "training_free.png")
        plots.sweeps(rows, results / "size_bound.png")
        decisions = choosing.decisions(list(choosing.situations(free, norms, tuned, sets)))
        said = [*choosing.plain(free, tuned, sets), choosing.unlearned(free), choosing.unused(free)]
        said += [choosing.harm(tuned, free), choosing.recalibrating(norms), *choosing.cost(times)]
        parts.append(what_to_choose(decisions, said, comparisons(free, norms, tuned, sets)))
        parts.append(
            f"{PAPER}\n\n{beside_paper(free, tuned)}\n\n{listed(verdicts(free, tuned, sets, times))}"
        )
        parts.append(untrained.training_free(free))
    if norms:
        parts.append(untrained.recalibrated(norms))
    if tuned:
        parts.append(trained_rows.tuned(tuned))
    if sets:
        parts.append(trained_rows.small_sets(sets))
    if tuned or sets:
        panels = {"COCO, fine-tuned": tuned, **sets} if tuned else sets
        groups = {name: trained_rows.titled(rows) for name, rows in panels.items()}
        plots.by_size(groups, results / "trained.png")
        plots.trained_against_compute(groups, results / "trained_against_compute.png")
        parts.append(
            "![AP of the trained rows against compute](results/trained_against_compute.png)"
        )
        parts.append("![AP by size of the trained rows](results/trained.png)")
    if times:
        parts.append(protocol.latency(times))
    if checks:
        parts.append(protocol.checked(checks, sets.get("bccd", {}).get("SSDMnetv1-seed0")))
    parts.append(pictures_of(results))
    return "\n\n".join(part.strip() for part in parts) + "\n"


INTRODUCTION = f"""# Does it help?

Real detectors on real images: what eliminating a stride brings, where it costs, and what else the same compute buys.
The page is written by {code("gather")} from the records in `docs/results`, which the command of each section writes.

AP and AR are COCO's, in percent, at 100 detections an image; small objects cover less than 32x32 pixels of the
annotated image, large ones more than 96x96. A dash: fewer than {{few}} such objects. After ± is the half of a 95 %
interval over images (1.96 standard deviations of {{resamples}} bootstrap resamples); differences are of the same
resamples, so that what two networks have in common cancels. Clear, or bold: the interval leaves zero out, before it is
rounded. Of twenty differences that are none, one is clear by chance. Compute is counted as the paper counts it
(`examples.ssd.counting`), in 10^9 multiply-accumulates an image. Where one core was used, `OMP_NUM_THREADS=1` was set.

{table(("name", "what it is"), list(MEANINGS.items()), words=True)}"""


def pictures_of(results: Path) -> str:
    shown = [
        f"![{title}](results/{file_name(title)})"
        for title in PAIRS
        if (results / file_name(title)).is_file()
    ]
    return "\n\n".join(
        [
            f"""## Pictures

Of the photographs whose licence lets a picture be made of them, {code("pictures --work runs")} draws those with most
objects that only the fine path finds with a score of 0.5, and those with most that the detector finds and the fine path
alone loses; wrong boxes hardly have a say in it, and are drawn too. The photographs are no part of this page: below,
in the first of each kind, annotated boxes stand for it.""",
            *shown,
        ]
    )


def headline_records(results: Path) -> tuple[dict[str, Record], dict[str, dict[str, Record]]]:
    """Those of the README: what was not trained, and the sets of small objects."""
    return all_in(results / "training_free"), small_sets(results)


def small_sets(results: Path) -> dict[str, dict[str, Record]]:
    return {folder.name: all_in(folder) for folder in sorted((results / "small_objects").glob("*"))}


def listed(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines if line)


def what_to_choose(decisions: str, said: Sequence[str], differences: str) -> str:
    return f"""## What to choose

By what you may do and what you look for (AR small: how many of the small objects are found), what is clearly better
than the network as it is: bold what gains most without a clear loss elsewhere, then what gains more at a price, and in
brackets what was not told apart from either. With each its compute, in that of the network as it is; what it gains, to
which figure; and what it loses. Of the two untouched networks on a small set, with the paper's boxes or with S1L0's,
the one with more AP is the one to beat. Of trained rows the first seed. Dual path and pyramid need a bound on the side
of the finer boxes, found on labelled photographs (below).

{decisions}

In words; "not told apart": these photographs show no clear difference, which is not that there is none.

{listed(said)}

The differences, paired:

{differences}"""


PAPER = """## Beside the paper

Differences from the base of Table 2, whose networks were trained for 100 epochs on all of COCO, and here from the base
that was treated alike; untrained rows show what the surgery does before the weights follow it, and say nothing against
the paper. Bold: fine-tuned, clear, and of the other sign."""


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--results", type=Path, default=records.RESULTS, help="(default: docs/results)"
    )
    arguments = parser.parse_args(argv)
    out = arguments.results.with_suffix(".md")
    text = page(arguments.results)
    with write_atomically(out) as part:
        part.write_text(text)
    print(out)
    if arguments.results == records.RESULTS:
        headline.rewrite(headline.README, headline.headline(*headline_records(arguments.results)))
        print(headline.README)


if __name__ == "__main__":
    run(main)
