"""The page's tables, one section an experiment; what was not run is said."""

from collections.abc import Callable, Mapping, Sequence

from examples.experiments import fine_tuning, recalibration, small_objects
from examples.experiments.page.reading import SIZES, Record, code, difference, figure, in_order, interval, shown, table
from examples.ssd.paper import TABLE_4

FREE_ROWS = (
    *("as is", "S1L6 by hand", "S1L6", "S1L4 by hand", "S1L4", "S1L0 by hand", "S1L0", "S2L4-6 by hand", "S2L4-6"),
    *("S1L12 dilated", "600 pixels", "S1L6 dual path", "S1L4 dual path", "S1L0 dual path", "S2L4-6 dual path"),
    *("pyramid, 300 pixels enlarged", "pyramid, 600 pixels"),
)
HEADS = ("AP", "small", "medium", "large", "AR small", "AR medium", "AR large", "GMAC")
KEYS = ("ap", "ap_small", "ap_medium", "ap_large", "ar_small", "ar_medium", "ar_large")

PAPERS = "mobilenetv1_100"  # the paper's backbone

Section = Callable[[Mapping[str, Record]], str]


def figures_table(rows: Mapping[str, Record], names: Callable[[str], str] = str) -> str:
    lines = [(names(name), *(shown(figure(r, key)) for key in KEYS), f"{r['gmacs']:.2f}") for name, r in rows.items()]
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


# ---- A


def training_free(found: Mapping[str, Record]) -> str:
    rows = in_order(found, FREE_ROWS)
    settings = rows["as is"]["settings"]
    compared = {name: r for name, r in rows.items() if "by hand" not in name}
    return f"""## Without training

{code("training_free --work runs")}. The stock COCO SSD (MobileNet v1 0.75, 300x300) on {settings["images"]} COCO
photographs. {settings["of train2017"]} of them are of train2017, from which the detector very likely learned; the other
{settings["with recovered boxes"]}, of val2017, have boxes that were recovered from another list (areas estimated,
crowds mostly unmarked). Hardware: {rows["as is"]["hardware"]}.

"By hand": `stride = 1` and anchors in the middles of equal cells; without that word: `eliminate`, and anchors as far
from where their cell looks as the detector has learned, in cells. "Dilated": `eliminate(dilate=True)` at the last
stride; it leaves the map for small objects as it is. "Dual path": all boxes of both paths, merged by one suppression.
The boxes of dual paths and pyramids that come from the finer view are kept below a bound on their side in pixels, one
of {_tried(rows)}, which for each half of the photographs was chosen on the other half{_bounds(rows)}. Intervals take
the bound as given.

{figures_table(rows)}

![AP and AR by size of object against compute](results/training_free.png)

{_by_hand(rows)}

AP on the photographs of each of COCO's sets, and the difference from the detector as it is:

{_splits_table(compared)}

The size bound, on all photographs:

![AP by size bound](results/size_bound.png)

{_graph_check(rows)}

Two classes apart, as in the paper's Figure 1:

{_classes_table(compared)}{missing(rows, FREE_ROWS)}"""


def _by_hand(rows: Mapping[str, Record]) -> str:
    """What placing the anchors by the library's geometry is worth."""
    gains = {name: difference(r, f"{name} by hand", "ap") for name, r in rows.items()}
    told = ", ".join(f"{name} {gain.signed}" for name, gain in gains.items() if gain is not None)
    return f"The library, against the stride set by hand (AP): {told}." if told else ""


def _splits_table(rows: Mapping[str, Record]) -> str:
    splits = list(rows["as is"]["splits"])
    lines = []
    for name, record in rows.items():
        values = [shown(interval(record["splits"][s])) for s in splits]
        changes = [shown(interval(record["splits against as is"][s]), signed=True) for s in splits]
        lines.append((name, *values, *(changes if name != "as is" else [""] * len(splits))))
    return table(("", *splits, *(f"{s}, difference" for s in splits)), lines)


def _tried(rows: Mapping[str, Record]) -> str:
    swept: list[str] = next((list(r["sweep"]) for r in rows.values() if "sweep" in r), [])
    return ", ".join(f"{float(bound):g}" for bound in swept)


def _bounds(rows: Mapping[str, Record]) -> str:
    told = [f"{name} {'/'.join(f'{b:g}' for b in r['bounds'])}" for name, r in rows.items() if "bounds" in r]
    return f" (pixels, by the even and by the odd photographs: {'; '.join(told)})" if told else ""


def _graph_check(rows: Mapping[str, Record]) -> str:
    """Of three photographs: the scores of `dual_path` beside those of the networks that it stands for."""
    gaps = {name: r["difference"] for name, r in rows.items() if "difference" in r}
    told = ", ".join(f"{name} {gap:.1g}" for name, gap in gaps.items())
    return f"Largest difference of a score between both paths of one graph and the two networks alone: {told}."


def _classes_table(rows: Mapping[str, Record]) -> str:
    names = [f"ap{suffix} {label}" for label in ("person", "car") for suffix in ("", *(f"_{s}" for s in SIZES))]
    heads = [f"{label} {size}".strip() for label in ("person", "car") for size in ("AP", *SIZES)]
    return table(("", *heads), [(n, *(shown(figure(r, key)) for key in names)) for n, r in rows.items()])


# ---- recalibration


def recalibrated(found: Mapping[str, Record]) -> str:
    rows = in_order(found, list(recalibration.ROWS))
    first = next(iter(rows.values()))
    settings = first["settings"]
    return f"""## Batch norms that are alive: `recalibrate`

{code("recalibration --work runs")}. FastestDet (a ShuffleNetV2, 352x352) on {settings["images"]} photographs of COCO;
the statistics of the recalibrated rows are those of {settings["seen for statistics"]} other photographs.
The norms of the detector above are folded into its convolutions: there is nothing to recalibrate in it.
Hardware: {first["hardware"]}.

{figures_table(rows)}

{differences_table(rows)}{missing(rows, list(recalibration.ROWS))}"""


# ---- B and C


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
        weights = "" if paper else f" --weights {next(iter(rows.values()))['weights']}"
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


# ---- D


def latency(found: Mapping[str, Record]) -> str:
    parts = [
        """## Latency beside compute

The network alone. The networks take turns, and each is compared with the first one in the same round; in brackets the
middle half of the rounds. Processor time is that of one thread: what else runs takes no share of it, but does share its
caches."""
    ]
    for name, record in found.items():
        group, _, how = name.partition("-")
        settings = record["settings"]
        flag, kind = (" --processor-time", "processor time") if settings["processor time"] else ("", "by the clock")
        command = f"latency --groups {group} --runs {settings['runs']} --threads {settings['threads']}{flag}"
        title = "The paper's rows (Table 4)" if group == "paper" else "The stock detector"
        parts.append(f"{title}, {how}, {settings['runs']} runs each, {kind}; {record['hardware']}; {code(command)}:")
        parts.append(_latency_table(record["rows"], group == "paper"))
    wanted = [
        "cpu-fp32-batch1",
        "cuda-fp32-batch1",
        "cuda-fp32-batch16",
        "cuda-bf16-batch16",
        "cuda-fp32-batch1-compiled",
    ]
    parts.append(missing({name.partition("-")[2]: r for name, r in found.items()}, wanted).strip())
    return "\n\n".join(parts)


def _latency_table(rows: Mapping[str, Record], printed: bool) -> str:
    first = next(iter(rows))
    lines = []
    for name, r in rows.items():
        ms, low, high = r["ms"]
        ratio, least, most = r["ratio"]
        line = [name, f"{ms:.0f} ({low:.0f} to {high:.0f})", f"{ratio:.2f} ({least:.2f} to {most:.2f})"]
        line.append(f"{r['gmacs'] / rows[first]['gmacs']:.2f}")
        if printed:
            line.append(f"{TABLE_4[name] / TABLE_4[first]:.2f}" if name in TABLE_4 else "–")
        lines.append(line)
    heads = ["", "ms", "ratio", "ratio of compute", *(["the paper's ratio (GTX 1080 Ti)"] if printed else [])]
    return table(heads, lines)


# ---- the checks


EXPECTED = {
    "gap to pycocotools": "0, up to rounding",
    "AP with shuffled labels": "next to 0",
    "AP on other photographs": "next to 0",
    "AP of WBC, trained on shuffled labels": "far below that with the right ones",
    "largest difference of a weight, same seed": "0",
    "largest difference of a weight, other seed": "not 0",
}


def checked(record: Record) -> str:
    names = {k: v for k, v in record.items() if k not in ("settings", "hardware")}
    lines = [
        (name, f"{value:.3g}" if value < 100 else f"{value:g}", EXPECTED.get(name, "")) for name, value in names.items()
    ]
    return f"""## The protocol's own checks

{code("checks --work runs")}, on the detections of the detector as it is. AP in percent; weights of two trainings of two
steps.

{table(("", "found", "expected"), lines)}"""
