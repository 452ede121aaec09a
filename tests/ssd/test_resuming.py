"""What may change when a run is resumed, and what is refused."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from examples.ssd import checkpoint, resuming
from examples.ssd.annotations import Annotations, Categories, Record
from examples.ssd.configurations import Recipe
from examples.ssd.data import Share
from examples.ssd.errors import CheckpointError, RequestError
from examples.ssd.options import Options
from examples.ssd.processes import Processes

ALONE = Processes(Share(), torch.device("cpu"))
RECORDS = tuple(
    Record(n, Path(f"/data/{n}.jpg"), 8, 8, ((0.0, 0.0, 4.0, 4.0),), (1,)) for n in (1, 2, 3)
)
IMAGES = Annotations(RECORDS, Categories((1, 2), ("a", "b")), {})
FREE = {"workers", "log_every", "max_steps"}  # nothing that a step computes depends on them


def other(value: Any) -> Any:
    return (
        not value if isinstance(value, bool) else "bf16" if value == "off" else (value or 0) + 0.5
    )


def test_every_option_that_decides_a_step_is_recorded() -> None:
    base = resuming.facts(Recipe(), Options(), IMAGES, ALONE)
    for kind in (Recipe, Options):
        for name in (f.name for f in fields(kind)):
            changed = replace(kind(), **{name: other(getattr(kind(), name))})
            pair = (changed, Options()) if kind is Recipe else (Recipe(), changed)
            assert (resuming.facts(*pair, IMAGES, ALONE) != base) is (name not in FREE), name


def with_records(*records: Record) -> Annotations:
    return replace(IMAGES, records=records)


def test_the_digest_knows_images_objects_and_order_and_not_the_folder() -> None:
    first, *rest = RECORDS
    moved = with_records(*(replace(r, path=Path("elsewhere") / r.path.name) for r in RECORDS))
    assert resuming.digest(moved) == resuming.digest(IMAGES)
    others = [
        with_records(*reversed(RECORDS)),
        with_records(*rest),
        with_records(replace(first, boxes=((0.0, 0.0, 4.0, 5.0),)), *rest),
        with_records(replace(first, labels=(2,)), *rest),
        with_records(replace(first, path=Path("/data/9.jpg")), *rest),
    ]
    assert len({resuming.digest(a) for a in (IMAGES, *others)}) == 1 + len(others)


def test_what_changes_the_result_is_refused_and_the_rest_told(trained: Path) -> None:
    path = trained / "last.pt"
    content = checkpoint.load(path)
    same = (path, content, checkpoint.configuration_in(content), checkpoint.categories_in(content))
    run = content["run"]
    assert resuming.differences(*same, run) is None
    for option in run:
        now = {**run, option: "another"}
        if option in resuming.MAY_CHANGE:
            assert f"{option} " in (resuming.differences(*same, now) or "")
        else:
            with pytest.raises(
                CheckpointError, match=rf"{option} .*\(now another\); resume with .* --init-from"
            ):
                resuming.differences(*same, now)


def test_another_detector_or_no_run_is_told(trained: Path) -> None:
    path = trained / "last.pt"
    content = checkpoint.load(path)
    row, categories, run = (
        checkpoint.configuration_in(content),
        checkpoint.categories_in(content),
        content["run"],
    )
    with pytest.raises(CheckpointError, match=r"another detector, with surgery S1L0 \(now S1L3\)"):
        resuming.differences(path, content, replace(row, surgery="S1L3"), categories, run)
    with pytest.raises(CheckpointError, match="of 7 classes with the background, the data has 2"):
        resuming.differences(path, content, row, Categories((1,), ("a",)), run)
    with pytest.raises(CheckpointError, match="weights only"):
        resuming.differences(
            path, {k: v for k, v in content.items() if k != "optimiser"}, row, categories, run
        )
    with pytest.raises(CheckpointError, match="does not say how its run was started"):
        resuming.differences(path, {**content, "run": {}}, row, categories, run)


def test_processes_of_different_runs_are_told() -> None:
    run = resuming.facts(Recipe(), Options(), IMAGES, ALONE)
    resuming.check_alike([run, run])
    with pytest.raises(
        RequestError, match=r"process 1 is of another run than the first: --seed 0 \(now 1\)"
    ):
        resuming.check_alike([run, {**run, "--seed": 1}])
