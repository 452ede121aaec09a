"""The protocol's own checks: what would be wrong with every other figure if one of these were.

    python -m examples.experiments.checks --work runs     # after `training_free` and `small_objects bccd`, same --work

The bootstrap and pycocotools agree on the whole set; detections with shuffled labels, or of another photograph, find
next to nothing; a detector that was trained on shuffled labels knows no class; two trainings with one seed give the
same weights. The detector with the right labels is the base row of `small_objects`, trained again if --work does not
have it; the one with shuffled labels is trained as the record of that row says.
"""

import argparse
import io
import json
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools.coco import COCO  # type: ignore[import-untyped]
from pycocotools.cocoeval import COCOeval  # type: ignore[import-untyped]

from examples.experiments import bootstrap, records, small_objects, trained
from examples.experiments.training_free import Experiment
from examples.experiments.views import AS_IS
from examples.ssd.annotations import find_split
from examples.ssd.evaluation import Detection, evaluate
from examples.ssd.programs import run
from examples.training_free import data_folder

BASE = small_objects.ROWS[0]
CELLS, RARE_CLASS = "bccd", "WBC"  # the set, and 8 % of its objects
FIGURES = (
    "ap",
    "ap50",
    "ap_small",
    "ap_medium",
    "ap_large",
    "ar",
    "ar_small",
    "ar_medium",
    "ar_large",
)
STATISTICS = (0, 1, 3, 4, 5, 8, 9, 10, 11)  # their places in COCOeval.stats


def gap_to_pycocotools(truth: COCO, found: Sequence[Detection], ids: Sequence[int]) -> float:
    """Largest difference between the bootstrap's own figures and pycocotools called directly, percent."""
    ours = bootstrap.figures(bootstrap.matches(truth, found, ids), np.ones((1, len(ids))))
    with redirect_stdout(io.StringIO()):
        direct = COCOeval(truth, truth.loadRes([dict(d) for d in found]), "bbox")
        direct.params.imgIds = list(ids)
        direct.evaluate()
        direct.accumulate()
        direct.summarize()
    return max(
        abs(float(ours[k][0]) - 100 * direct.stats[i])
        for k, i in zip(FIGURES, STATISTICS, strict=True)
    )


def with_shuffled_labels(found: Sequence[Detection], seed: int = 0) -> list[Detection]:
    """Each detection gets the category of another one: every category is detected as often as before."""
    order = np.random.default_rng(seed).permutation(len(found))
    return [
        {**d, "category_id": found[k]["category_id"]} for d, k in zip(found, order, strict=True)
    ]


def of_other_photographs(found: Sequence[Detection], ids: Sequence[int]) -> list[Detection]:
    """Each photograph gets the detections of the one before it."""
    following = dict(zip(ids, [*ids[1:], ids[0]], strict=True))
    return [{**d, "image_id": following[d["image_id"]]} for d in found]


def largest_weight_gap(seeds: tuple[int, int]) -> float:
    """Largest difference of a weight between two short trainings, one with each seed."""
    weights = []
    for seed in seeds:
        with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
            words = [
                "aerial_cars",
                "--first",
                "8",
                "--epochs",
                "1",
                "--batch",
                "4",
                "--work",
                folder,
            ]
            asked = small_objects.parse_arguments(words)
            asked.data = data_folder()
            path = small_objects.train_row(BASE, seed, asked, Path(folder))
            weights.append(torch.load(path, weights_only=True)["model"])
    return max(
        float((v.float() - weights[1][k].float()).abs().max()) for k, v in weights[0].items()
    )


# ---- a detector that learned shuffled labels


def write_shuffled_set(source: Path, folder: Path, seed: int = 0) -> None:
    """Copy a small set and give its training objects each other's categories; the photographs are linked to."""
    for part in ("train", "val"):
        (folder / part).mkdir(parents=True, exist_ok=True)
        content = json.loads((source / part / "instances.json").read_text())
        if part == "train":
            labels = [a["category_id"] for a in content["annotations"]]
            dealt = np.random.default_rng(seed).permutation(labels).tolist()
            content["annotations"] = [
                {**a, "category_id": k} for a, k in zip(content["annotations"], dealt, strict=True)
            ]
        (folder / part / "instances.json").write_text(json.dumps(content))
        images = folder / part / "images"
        if not images.is_symlink():
            images.symlink_to((source / part / "images").resolve())


def recipe(settings: Mapping[str, Any]) -> list[str]:
    """The options of `small_objects` that train a row as the one with these settings was trained."""
    named = {
        "--lr": "rate",
        "--first": "images",
        **{f"--{k}": k for k in ("epochs", "batch", "warmup", "amp")},
    }
    words = [word for option, name in named.items() for word in (option, str(settings[name]))]
    return words + ["--no-augment"] * (not settings["augmented"])


def ap_of_rare_class(data: Path, work: Path, options: Sequence[str]) -> float:
    """After the base was trained on the cells of `data`. options: of `small_objects`."""
    asked = small_objects.parse_arguments([CELLS, *options, "--work", str(work)])
    asked.data = data
    small_objects.detect(BASE, 0, asked)
    judge = trained.Judge(find_split(data / "smallobj" / CELLS, "val"), apart=[RARE_CLASS])
    found = judge.judged(judge.found(small_objects.kept(BASE, 0, asked)))
    return float(found.figures[f"ap {RARE_CLASS}"][0])


def with_right_and_shuffled_labels(data: Path, work: Path, results: Path) -> dict[str, float]:
    """AP of the rare class, learned from either. results: has the record of the base row."""
    record = records.read(
        results / "small_objects" / CELLS / f"{small_objects.file_name(BASE, 0)}.json"
    )
    options = [
        *recipe(record["settings"]),
        "--weights",
        str(data / "weights" / small_objects.WEIGHTS),
    ]
    write_shuffled_set(data / "smallobj" / CELLS, work / "shuffled" / "smallobj" / CELLS)
    return {
        f"AP of {RARE_CLASS}, trained on {CELLS}": ap_of_rare_class(data, work, options),
        f"AP of {RARE_CLASS}, trained on shuffled labels": ap_of_rare_class(
            work / "shuffled", work / "shuffled", options
        ),
    }


# ---- all


def measure(experiment: Experiment) -> dict[str, Any]:
    truth, ids = experiment.truth, experiment.ids
    found = experiment.found(AS_IS)
    return {
        "detections": len(found),
        "gap to pycocotools": gap_to_pycocotools(truth, found, ids),
        "AP": evaluate(truth, found, ids).ap,
        "AP with shuffled labels": evaluate(truth, with_shuffled_labels(found), ids).ap,
        "AP on other photographs": evaluate(truth, of_other_photographs(found, ids), ids).ap,
        **with_right_and_shuffled_labels(data_folder(), experiment.work, experiment.results),
        "largest difference of a weight, same seed": largest_weight_gap((0, 0)),
        "largest difference of a weight, other seed": largest_weight_gap((0, 1)),
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder of training_free")
    parser.add_argument(
        "--results", type=Path, default=records.RESULTS, help="(default: docs/results)"
    )
    arguments = parser.parse_args(argv)
    experiment = Experiment(data_folder(), arguments.work, arguments.results, None)
    path = arguments.results / "checks.json"
    if records.is_done(path, experiment.settings):
        print(f"{path} is there.")
        return
    facts = measure(experiment)
    records.write(path, {"settings": experiment.settings, **facts, "hardware": records.hardware()})
    for what, value in facts.items():
        print(f"{what}: {value:.3g}")


if __name__ == "__main__":
    run(main)
