"""The sections on what networks cost in time, and on the protocol's own checks."""

from collections.abc import Mapping

from examples.experiments.page.reading import Record, code, table
from examples.experiments.page.tables import missing
from examples.ssd.paper import TABLE_4

EXPECTED = {
    "gap to pycocotools": "0, up to rounding",
    "AP with shuffled labels": "next to 0",
    "AP on other photographs": "next to 0",
    "AP of WBC, trained on shuffled labels": "far below that with the right ones",
    "largest difference of a weight, same seed": "0",
    "largest difference of a weight, other seed": "not 0",
}


def latency(found: Mapping[str, Record]) -> str:
    parts = [
        """## Latency beside compute

The network alone. The networks take turns, and each is compared with the first one in the same round; in brackets the
middle half of the rounds. Processor time is that of one thread: what else runs takes no share of it, but does share its
caches. By hand a network takes as long as by the library, a pyramid as long as its two inputs.
Where a ratio on a GPU stays near 1 although the compute grows, the GPU is probably not busy and the processor that
starts the operators sets the pace; nothing was profiled. Such a ratio is no price of the surgery."""
    ]
    for name, record in found.items():
        group, _, how = name.partition("-")
        settings = record["settings"]
        flag, kind = (
            (" --processor-time", "processor time")
            if settings["processor time"]
            else ("", "by the clock")
        )
        flag += _flags(how)
        command = f"latency --groups {group} --runs {settings['runs']} --threads {settings['threads']}{flag}"
        note = f" ({record['note']})" if record.get("note") else ""
        title = "The paper's rows (Table 4)" if group == "paper" else "The stock detector"
        parts.append(
            f"{title}, {how}, {settings['runs']} runs each, {kind}; {record['hardware']}{note}; {code(command)}:"
        )
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


def _flags(how: str) -> str:
    """The options of a command that measures so, besides the defaults."""
    device, dtype, batch, *compiled = how.split("-")
    chosen = {"--device": device, "--dtype": dtype, "--batch": batch.removeprefix("batch")}
    defaults = {"--device": "cpu", "--dtype": "fp32", "--batch": "1"}
    flags = [f" {flag} {value}" for flag, value in chosen.items() if value != defaults[flag]]
    return "".join(flags) + " --compile" * bool(compiled)


def _latency_table(rows: Mapping[str, Record], printed: bool) -> str:
    first = next(iter(rows))
    lines = []
    for name, r in rows.items():
        ms, low, high = r["ms"]
        ratio, least, most = r["ratio"]
        digits = 0 if ms >= 10 else 1
        line = [
            name,
            f"{ms:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})",
            f"{ratio:.2f} ({least:.2f} to {most:.2f})",
        ]
        line.append(f"{r['gmacs'] / rows[first]['gmacs']:.2f}")
        if printed:
            line.append(f"{TABLE_4[name] / TABLE_4[first]:.2f}" if name in TABLE_4 else "–")
        lines.append(line)
    heads = [
        "",
        "ms",
        "ratio",
        "ratio of compute",
        *(["the paper's ratio (GTX 1080 Ti)"] if printed else []),
    ]
    return table(heads, lines)


def _chance(cells: Record | None) -> dict[str, str]:
    """What boxes that are right and labels that are guessed can reach."""
    if cells is None or " WBC" not in cells["objects"]:
        return {}
    share = 100 * cells["objects"][" WBC"] / cells["objects"][""]
    return {
        "AP of WBC, trained on shuffled labels": f"at most its share of the objects, {share:.1f}"
    }


def checked(record: Record, cells: Record | None) -> str:
    """cells: of a network trained on the set of the control, with the number of its objects."""
    names = {k: v for k, v in record.items() if k not in ("settings", "hardware")}
    expected = {**EXPECTED, **_chance(cells)}
    lines = [
        (name, f"{value:.3g}" if value < 100 else f"{value:g}", expected.get(name, ""))
        for name, value in names.items()
    ]
    return f"""## The protocol's own checks

{code("checks --work runs")}, on the detections of the detector as it is. AP in percent; weights of two trainings of two
steps.

{table(("", "found", "expected"), lines)}"""
