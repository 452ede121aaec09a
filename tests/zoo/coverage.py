"""docs/coverage.md from the rows of a sweep."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

Row = dict[str, Any]

HEAD = """\
# Coverage

What `stridesurgery` makes of {count} models: the smallest timm model of each module, class and set of downsampling
operators, and every torchvision classifier. Written by

    python -m tests.zoo --numbers {limit:g}

with {key}.{stale}{missing}

| | models |
|---|---|
| traced in eval mode | {traced_eval} of {count} |
| traced in train mode | {traced_train} of {count} |
| with strides | {with_strides} |
| every transition operated, every map exactly k times larger | {exact} |
| every transition operated, some maps k times larger up to a border | {rounded} |
| some transitions operated | {some} |
| none operated | {none} |
| every transition operated with `positions="resample"` | {positions} |
| the last transition operated with `dilate=True` | {dilated} |
| witness agrees, operator for layer | {agrees} |
| witness differs for a reason that is known | {accounted} |
| witness disagrees | {open} |
| small models with numbers | {numbers} |
| ... of which every operated transition equals the original's tail | {holds} |

**Operated** means: `stridesurgery.eliminate` accepts the transition, and every value of the operated network has a
shape that is on the grid (meta tensors, no weights). **With positions** says what
`positions="resample"` adds where a transition is refused: "all", or which are refused still. **Dilated**: the last
transition with `dilate=True`. **Witness**: a `TorchDispatchMode` that knows nothing of the
library counts the operators that shrink a map, and they are compared with `stridesurgery.inspect` module by module.
**Numbers**: models of up to {limit:g} million parameters are really built, their norms randomised, every operated
transition verified and run; the result must be what the original's remaining layers give for the finer map
(`tests/zoo/tail.py`).
"""


def page(rows: Sequence[Row], key: str, limit: float, missing: Sequence[str] = ()) -> str:
    """The whole page; `key` names the versions and `limit` is in million parameters."""
    kinds = Counter(map(standing, rows))
    numbers = [row for row in rows if row["numbers"]]
    dilated = [text for row in rows if (text := _dilated(row)) != "-"]
    stale = sum(row["key"] != key for row in rows)
    head = HEAD.format(
        count=len(rows),
        key=key,
        stale=f" {stale} rows are of other versions or other code." if stale else "",
        missing=f" This timm lacks {', '.join(missing)}." if missing else "",
        traced_eval=sum(row["traced"].get("eval") == "" for row in rows),
        traced_train=sum(row["traced"].get("train") == "" for row in rows),
        with_strides=len(rows) - kinds["no strides"],
        exact=kinds["exact"],
        rounded=kinds["rounded"],
        some=kinds["some"],
        none=kinds["none"],
        positions=sum(bool(row["outcomes"]) and not _refused_still(row) for row in rows),
        dilated=f"{dilated.count('yes')} of {len(dilated)} that were tried",
        agrees=sum(says(row) == "agrees" for row in rows),
        accounted=sum(
            bool(row["witness"].get("accounted")) and not row["witness"]["open"] for row in rows
        ),
        open=sum(bool(row["witness"].get("open")) for row in rows),
        numbers=len(numbers),
        holds=sum(not failures(row) for row in numbers),
        limit=limit,
    )
    return "\n".join([head, *_causes(rows), *_failures(numbers), *_table(rows)]) + "\n"


def standing(row: Row) -> str:
    """How far a model can be operated."""
    results = [outcome["result"] for outcome in row["outcomes"]]
    if not results:
        return "none" if row["note"] else "no strides"
    if "refused" in results:
        return "none" if set(results) == {"refused"} else "some"
    return "rounded" if "rounded" in results else "exact"


def _refused_still(row: Row) -> list[Any]:
    """The transitions that are refused with positions="resample" as well."""
    done = ("exact", "rounded")
    return [o for o in row["outcomes"] if not {o["result"], o.get("positions")} & set(done)]


def _dilated(row: Row) -> str:
    if not row["outcomes"]:
        return "-"
    text = row["outcomes"][-1].get("dilated", "")
    return "yes" if text == "exact" else reason(text) or "-"


def _with_positions(row: Row) -> str:
    """What `positions="resample"` adds."""
    if all(outcome["result"] != "refused" for outcome in row["outcomes"]):
        return "-"
    still = _refused_still(row)
    by_reason: dict[str, list[Any]] = defaultdict(list)
    for outcome in still:
        by_reason[reason(outcome.get("positions", ""))].append(outcome)
    parts = [f"{_listed(outcomes)}: {text}" for text, outcomes in by_reason.items()]
    return "<br>".join(parts) or "all"


def says(row: Row) -> str:
    """The witness's verdict."""
    return row["witness"].get("says", "not asked")


def failures(row: Row) -> list[str]:
    """What does not hold of a small model's numbers, refusals apart."""
    checks = row["numbers"].get("checks", [])
    found = [
        f"L{c['L']}: {c['why']}" for c in checks if c["why"] and not c["why"].startswith("refused")
    ]
    return found + ([row["numbers"]["why"]] if row["numbers"].get("why") else [])


def reason(why: str) -> str:
    """A refusal's first sentence, or two where the first names no cause; without the error's class and the surgery."""
    text = re.sub(r"^\w+: (S\d+L\d+ is not possible: )?", "", why)
    first, *rest = re.split(r"(?<=[a-z0-9)])\. (?=[A-Z])", text)
    if "does not run" in first and rest:
        return f"{first}: {re.sub(r'^.*? pixels: ', '', rest[0])}".rstrip()
    return first


def cause(why: str) -> str:
    """A reason without the names that are particular to a model."""
    text = reason(why)
    if fixed := re.search(r"fixed by ([\w., ]+)", text):
        return "a size is fixed by " + ", ".join(
            sorted({name.split(".")[-1] for name in fixed[1].split(", ")})
        )
    if place := re.search(r"\((\w+\.py):", text):
        return f"{text.split(':')[0]} ({place[1]})"
    text = re.sub(r"^\S*[._]\S* ", "", text)
    return re.sub(r"\d[\dx.]*", "n", text)


def _causes(rows: Iterable[Row]) -> list[str]:
    found: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for row in rows:
        if row["note"]:
            found[re.sub(r"\(.*?\)", "(..)", row["note"])][row["name"]] += 1
        for outcome in row["outcomes"]:
            if outcome["result"] == "refused":
                found[cause(outcome["why"])][row["name"]] += 1
    lines = [
        "## Why transitions are refused",
        "",
        "| cause | models | transitions | for example |",
        "|---|---|---|---|",
    ]
    for text, models in sorted(found.items(), key=lambda item: -len(item[1])):
        lines.append(
            f"| {_cell(text)} | {len(models)} | {sum(models.values())} | {', '.join(list(models)[:3])} |"
        )
    return [*lines, ""]


def _failures(rows: Iterable[Row]) -> list[str]:
    lines = [f"- {row['name']}: {_cell(text)}" for row in rows for text in failures(row)]
    return ["## Numbers that are missing or do not hold", "", *(lines or ["None."]), ""]


def _table(rows: Iterable[Row]) -> list[str]:
    columns = (
        "model",
        "traced",
        "layers",
        "strided",
        "transitions",
        "operated at",
        "refused",
        "with positions",
        "dilated",
        "witness",
        "numbers",
    )
    lines = ["## Every model", "", f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for row in sorted(rows, key=lambda row: row["name"]):
        traced = (
            "eval, train"
            if not any(row["traced"].values())
            else "; ".join(map(str, row["traced"].items()))
        )
        cells = (
            row["name"],
            traced,
            row["layers"],
            len(row["strided"]),
            row["transitions"],
            _operated(row),
            _refused(row),
            _with_positions(row),
            _dilated(row),
            says(row),
            _numbers(row),
        )
        lines.append(f"| {' | '.join(_cell(cell) for cell in cells)} |")
    return lines


def _operated(row: Row) -> str:
    done = [outcome for outcome in row["outcomes"] if outcome["result"] != "refused"]
    if not done:
        return "-"
    where = "all" if len(done) == len(row["outcomes"]) else _listed(done)
    rounded = [outcome for outcome in done if outcome["result"] == "rounded"]
    return f"{where} (up to a border: {_listed(rounded)})" if rounded else where


def _refused(row: Row) -> str:
    by_reason: dict[str, list[Any]] = defaultdict(list)
    for outcome in row["outcomes"]:
        if outcome["result"] == "refused":
            by_reason[reason(outcome["why"])].append(outcome)
    parts = [f"{_listed(outcomes)}: {text}" for text, outcomes in by_reason.items()]
    return "<br>".join([*([row["note"]] if row["note"] else []), *parts]) or "-"


def _numbers(row: Row) -> str:
    checks = [check for check in row["numbers"].get("checks", []) if not check["why"]]
    return f"{len(checks)} hold at {'x'.join(map(str, row['numbers']['size']))}" if checks else "-"


def _listed(outcomes: Iterable[Any]) -> str:
    return ", ".join(str(outcome["L"]) for outcome in outcomes)


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
