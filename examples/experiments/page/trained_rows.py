"""The sections on networks that were trained: fine-tuned on COCO images, and on sets of small objects."""

from collections.abc import Mapping, Sequence

from examples.experiments import fine_tuning, small_objects
from examples.experiments.page.reading import Record, code
from examples.experiments.page.tables import differences_table, figures_table

PAPERS = "mobilenetv1_100"  # the paper's backbone


def tuned(found: Mapping[str, Record]) -> str:
    return f"""## Fine-tuned on COCO images

{_trained_text(found, "fine_tuning", "The stock detector under each surgery, trained on other COCO photographs")}
All photographs to learn from have recovered boxes and no crowds, show mostly people, and are at most 448 pixels long:
Size600 learns from enlarged ones and is evaluated on sharp ones. The rate is the middle one of three (1e-4, 3e-4,
1e-3) that were tried for 75 steps on the base and evaluated on the photographs of this table: each made it worse.
Before training: the same command with `--epochs 0`. Size600 is the detector on the photograph at 600 pixels; Split
takes the maps for small objects from the finer path and the others from the original one, in one set of predictors.

{_trained_tables(found)}

Not run: {_not_run(found, list(fine_tuning.ROWS))}."""


def small_sets(found: Mapping[str, Mapping[str, Record]]) -> str:
    parts = []
    for (name, backbone), rows in _by_backbone(found).items():
        paper = backbone == PAPERS
        weights = "" if paper else f" --weights {next(iter(rows.values()))['settings']['weights']}"
        what = f"`{name}`, from ImageNet weights of {backbone}"
        told = _trained_text(rows, f"small_objects {name}{weights}", what)
        wanted = small_objects.ROWS if paper else [f"{backbone}:S1L0:dual"]
        parts.append(f"{told}\n{_trained_tables(rows)}\n\nNot run: {_not_run(rows, wanted)}.")
    others = [name for name in small_objects.SETS if name not in found]
    parts.append(f"Not run at all: {', '.join(others)}." if others else "")
    return "## Sets of small objects, from ImageNet weights\n\n" + "\n\n".join(parts)


def _by_backbone(found: Mapping[str, Mapping[str, Record]]) -> dict[tuple[str, str], dict[str, Record]]:
    """By set and backbone, the paper's first."""
    groups: dict[tuple[str, str], dict[str, Record]] = {}
    for name, rows in found.items():
        for key, record in sorted(rows.items(), key=lambda item: item[1]["backbone"] != PAPERS):
            groups.setdefault((name, record["backbone"]), {})[key] = record
    return groups


def _sorted(rows: Mapping[str, Record]) -> dict[str, Record]:
    return dict(sorted(rows.items(), key=lambda item: (item[1]["gmacs"], item[0])))


def titled(found: Mapping[str, Record]) -> dict[str, Record]:
    """Trained rows by what the page calls them, the cheapest first."""
    several = len({r["seed"] for r in found.values()}) > 1

    def title(record: Record) -> str:
        started = "" if record["settings"]["steps"] else ", before training"
        return f"{record['row']}{started}" + f", seed {record['seed']}" * (several and not started)

    return {title(r): r for r in _sorted(found).values()}


def _trained_tables(found: Mapping[str, Record]) -> str:
    """Figures, and differences from rows that were trained as long, or from where a row started."""
    rows = titled(found)
    return f"{figures_table(rows)}\n\n{differences_table(rows)}"


def _trained_text(rows: Mapping[str, Record], command: str, what: str) -> str:
    ordered = list(_sorted(rows).values())
    trained = [r for r in ordered if r["settings"]["steps"]] or ordered
    first = trained[0]
    settings, seeds = first["settings"], sorted({r["seed"] for r in trained})
    names = " ".join(dict.fromkeys(r["row"] for r in trained))
    warmup = f" --warmup {settings['warmup']}" if settings.get("warmup") else ""
    plain = "" if settings["augmented"] else " --no-augment"
    amp = "" if settings["amp"] == "off" else f" --amp {settings['amp']}"
    options = (
        f"--rows {names} --seeds {' '.join(map(str, seeds))} --epochs {settings['epochs']} --batch {settings['batch']} "
        f"--lr {settings['rate']:g}{warmup}{plain}{amp} --first {settings['images']} --work runs"
    )
    augmented = "SSD's augmentation" if settings["augmented"] else "no augmentation"
    return (
        f"{what}: {settings['images']} photographs to learn from, {settings['steps']} steps of {settings['batch']}, "
        f"{augmented}, the same for all rows; {len(seeds)} seed{'s' * (len(seeds) > 1)}; evaluated on "
        f"{first['evaluated']} photographs. The paper trains for 100 epochs: this compares the rows "
        f"at equal steps and is no estimate of where they end. Intervals are over photographs, not over seeds. "
        f"Hardware: {first['hardware']}. {code(f'{command} {options}')}\n"
    )


def _not_run(rows: Mapping[str, Record], wanted: Sequence[str]) -> str:
    done = {r["row"] for r in rows.values()}
    seeds = {r["seed"] for r in rows.values()}
    left = [name for name in wanted if name not in done]
    parts = ([f"the rows {', '.join(left)}"] if left else []) + (["further seeds"] if len(seeds) < 3 else [])
    return ", ".join([*parts, "the full schedule, which the same command without options runs (it wants a GPU)"])
