"""The sections on networks that were trained: fine-tuned on COCO images, and on sets of small objects."""

from collections.abc import Mapping, Sequence

from examples.experiments import fine_tuning, small_objects
from examples.experiments.page.names import LARGE, SMALL_BOXES, named
from examples.experiments.page.reading import FEW, SIZES, Record, code, figure, shown, table
from examples.experiments.page.tables import differences_table, figures_table
from examples.ssd.errors import RequestError

BEFORE = ", before training"
PAPERS = "mobilenetv1_100"  # the paper's backbone
RATES = f"""The paper's recipe (SGD with momentum, a cosine), cut down to minutes on a CPU: fewer epochs, smaller
batches, a higher rate, no augmentation. The rates were fixed by short trials of the base, partly judged by the
photographs of these tables; among 0.003, 0.01 and for `bccd` the paper's 0.001 they are those with the least loss on
the training images.

Anchors matter too: the smallest boxes of the base are of 45 pixels, as in the paper, those of all other rows of 10.
So S1L0 has to be compared with the better of "as is" and "{SMALL_BOXES}", and with 600 pixels; of the other
backbones there is no such row, and their differences are of both. A class with fewer than {FEW} objects of a size does
not count in that size: one object would be half of a figure."""


def tuned(found: Mapping[str, Record]) -> str:
    return f"""## Fine-tuned on COCO images

{_trained_text(found, "fine_tuning", "The stock detector under each surgery, trained on other COCO photographs")}
All photographs to learn from have recovered boxes and no crowds, show mostly people, and are at most 448 pixels long:
Size600 learns from enlarged ones and is evaluated on sharp ones. The rate is the middle one of three (1e-4, 3e-4,
1e-3) that were tried for 75 steps on the base and evaluated on the photographs of this table: each made it worse, the
smallest least. Before training: the same command with `--epochs 0`, run first. The rows base, S1L0, Size600 and
S1L0-Split took an hour of one core together. Like the table of what was not trained, these are mostly photographs from
which the detector very likely learned; "before training" is not digit for digit what that table has, since these boxes
pass through other code.

{_trained_tables(found)}

Not run: {_not_run(found, list(fine_tuning.ROWS))}."""


def small_sets(found: Mapping[str, Mapping[str, Record]]) -> str:
    parts = []
    for (name, backbone), rows in _by_backbone(found).items():
        paper = backbone == PAPERS
        weights = "" if paper else f" --weights {next(iter(rows.values()))['settings']['weights']}"
        what = f"`{name}`, from ImageNet weights of {backbone}"
        told = _trained_text(rows, f"small_objects {name}{weights}", what)
        wanted = (
            small_objects.ROWS
            if paper
            else [f"{backbone}:S1L0:dual", f"{LARGE} as a rival of the same cost"]
        )
        classes = _by_class(rows)
        parts.append(
            f"{told}\n{_trained_tables(rows)}\n\n{classes}\n\nNot run: {_not_run(rows, wanted)}."
        )
    others = [name for name in small_objects.SETS if name not in found]
    parts.append(f"Not run at all: {', '.join(others)}." if others else "")
    return f"## Sets of small objects, from ImageNet weights\n\n{RATES}\n\n" + "\n\n".join(parts)


def _by_backbone(
    found: Mapping[str, Mapping[str, Record]],
) -> dict[tuple[str, str], dict[str, Record]]:
    """By set and backbone, the paper's first."""
    groups: dict[tuple[str, str], dict[str, Record]] = {}
    for name, rows in found.items():
        for key, record in sorted(rows.items(), key=lambda item: item[1]["backbone"] != PAPERS):
            groups.setdefault((name, record["backbone"]), {})[key] = record
    return groups


def _sorted(rows: Mapping[str, Record]) -> dict[str, Record]:
    return dict(sorted(rows.items(), key=lambda item: (item[1]["gmacs"], item[0])))


def titled(found: Mapping[str, Record]) -> dict[str, Record]:
    """Trained rows by what the page calls them, the cheapest first; what was not trained is compared with such."""
    several = len({r["seed"] for r in found.values()}) > 1
    result = {}
    for record in _sorted(found).values():
        if record["settings"]["steps"]:
            seed = f", seed {record['seed']}" if several else ""
            result[f"{named(record['row'])}{seed}"] = _renamed(record, "")
        else:
            result[f"{named(record['row'])}{BEFORE}"] = _renamed(record, BEFORE)
    return result


def _renamed(record: Record, ending: str) -> Record:
    """With the page's names for what it is compared with."""
    rows = {base: base.removesuffix(" before training") for base in record["differences"]}
    endings = {base: BEFORE if row != base else ending for base, row in rows.items()}
    changes = {
        f"{named(rows[base])}{endings[base]}": change
        for base, change in record["differences"].items()
    }
    return {**record, "differences": changes}


def _trained_tables(found: Mapping[str, Record]) -> str:
    """Figures, and differences from rows that were trained as long, or from where a row started."""
    rows = titled(found)
    return f"{figures_table(rows)}\n\n{differences_table(rows)}"


def _trained_text(rows: Mapping[str, Record], command: str, what: str) -> str:
    ordered = list(_sorted(rows).values())
    trained = [r for r in ordered if r["settings"]["steps"]] or ordered
    first = trained[0]
    settings, seeds = first["settings"], sorted({r["seed"] for r in trained})
    other = next((r["row"] for r in trained if r["settings"] != settings), None)
    if other is not None:
        raise RequestError(
            f"{what}: {first['row']} and {other} were not trained alike; remove the records of one."
        )
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


def _by_class(rows: Mapping[str, Record]) -> str:
    """AP of each class, with its objects, and the classes that do not count."""
    first = next(iter(rows.values()))
    classes = [
        key.strip() for key, count in first["objects"].items() if key.startswith(" ") and count
    ]
    sizes = [f"{size} {first['objects'][f'_{size}']}" for size in SIZES]
    heads = [f"{name} ({first['objects'][f' {name}']})" for name in classes]
    lines = [
        (name, *(shown(figure(r, f"ap {label}")) for label in classes))
        for name, r in titled(rows).items()
    ]
    out = f" Not counted: {'; '.join(first['left out'])}." if first["left out"] else ""
    return f"AP by class, with the number of objects ({', '.join(sizes)}).{out}\n\n{table(('', *heads), lines)}"


def _not_run(rows: Mapping[str, Record], wanted: Sequence[str]) -> str:
    done = {r["row"] for r in rows.values() if r["settings"]["steps"]}
    seeds = {r["seed"] for r in rows.values()}
    left = [name for name in wanted if name not in done]
    parts = ([f"the rows {', '.join(left)}"] if left else []) + (
        ["further seeds"] if len(seeds) < 3 else []
    )
    full = "the full schedule, which the command runs without --seeds, --epochs and what follows them, with --results "
    return ", ".join([*parts, f"{full}elsewhere (it wants a GPU)"])
