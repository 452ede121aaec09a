"""Write docs/results.md, its plots and the README's figures from the records in docs/results.

    python -m examples.experiments.gather

Nothing is measured here, and nothing on the page is typed by hand: rows that were not run are named as such.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from examples.experiments import bootstrap, recalibration, records
from examples.experiments.page import choosing, headline, plots, protocol, trained_rows, untrained
from examples.experiments.page.beside_paper import beside_paper
from examples.experiments.page.reading import FEW, Record, all_in, code, in_order
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
        said = [*choosing.plain(free, tuned, sets), choosing.harm(tuned), *choosing.cost(times)]
        said = [line for line in said if line]
        tables = choosing.best(free, tuned, sets), choosing.clear(free, norms, tuned, sets)
        parts += [what_to_choose(*tables, said), PAPER + beside_paper(free, tuned)]
        parts.append(untrained.training_free(free))
    if norms:
        parts.append(untrained.recalibrated(norms))
    if tuned:
        parts.append(trained_rows.tuned(tuned))
    if sets:
        parts.append(trained_rows.small_sets(sets))
    if tuned or sets:
        panels = {"COCO, fine-tuned": tuned, **sets} if tuned else sets
        plots.by_size({name: trained_rows.titled(rows) for name, rows in panels.items()}, results / "trained.png")
        parts.append("![AP by size of the trained rows](results/trained.png)")
    if times:
        parts.append(protocol.latency(times))
    if checks:
        parts.append(protocol.checked(checks))
    parts.append(pictures_of(results))
    return "\n\n".join(part.strip() for part in parts) + "\n"


INTRODUCTION = f"""# Does it help?

Real detectors on real images: what eliminating a stride brings, where it costs, and what else the same compute buys.
The page is written by {code("gather")} from the records in `docs/results`, which the command of each section writes.

AP and AR are COCO's, in percent, at 100 detections an image; small objects cover less than 32x32 pixels of the
annotated image, large ones more than 96x96. A dash: fewer than {{few}} such objects. After ± is the half of a 95 %
interval over images (1.96 standard deviations of {{resamples}} bootstrap resamples); differences are of the same
resamples, so that what two networks have in common cancels. Compute is counted as the paper counts it
(`examples.ssd.counting`), in 10^9 multiply-accumulates an image."""


def pictures_of(results: Path) -> str:
    shown = [f"![{title}](results/{file_name(title)})" for title in PAIRS if (results / file_name(title)).is_file()]
    return "\n\n".join(
        [
            f"""## Pictures

{code("pictures --work runs")} draws the photographs with most objects that only the
fine path finds, and with most that the detector finds and the fine path alone loses. The photographs have their own
licences and are no part of this page: below, in the first of each kind, annotated boxes stand for it.""",
            *shown,
        ]
    )


def headline_records(results: Path) -> tuple[dict[str, Record], dict[str, dict[str, Record]]]:
    """Those of the README: what was not trained, and the sets of small objects."""
    return all_in(results / "training_free"), small_sets(results)


def small_sets(results: Path) -> dict[str, dict[str, Record]]:
    return {folder.name: all_in(folder) for folder in sorted((results / "small_objects").glob("*"))}


def what_to_choose(best: str, clear: str, said: Sequence[str]) -> str:
    lines = "\n".join(f"- {line}" for line in said)
    return f"""## What to choose

The best row of each situation by its figure, with its compute in that of the network as it is; of trained rows the
first seed. Rows that the second table calls equal may be exchanged.

{best}

In words; "equal" is what these photographs can show no difference of:

{lines}

The differences, paired: bold where the 95 % interval leaves zero out (by chance it does so once in twenty), "=" where
it does not.

{clear}"""


PAPER = """## Beside the paper

Differences from the base of Table 2, whose networks were trained for 100 epochs on all of COCO, and here from the base
that was treated alike. Bold: clear, and of the other sign.

"""


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, default=records.RESULTS, help="(default: docs/results)")
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
