"""The protocol's own checks: what would be wrong with every other figure if one of these were.

    python -m examples.experiments.checks --work runs     # after `training_free` with the same --work

The bootstrap and pycocotools agree on the whole set; detections with shuffled labels, or of another photograph, find
next to nothing; a detector that was trained on shuffled labels knows no class; two trainings with one seed give the
same weights. The detector with the right labels is the base row of `small_objects`, where --work has it.
"""

import argparse
import io
import json
import tempfile
from collections.abc import Sequence
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

CELLS, RARE = "bccd", "WBC"  # 8 % of the objects
RECIPE = "--epochs 10 --batch 8 --lr 0.01 --warmup 1 --no-augment --amp bf16"
FIGURES = ("ap", "ap50", "ap_small", "ap_medium", "ap_large", "ar", "ar_small", "ar_medium", "ar_large")
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
    return max(abs(float(ours[k][0]) - 100 * direct.stats[i]) for k, i in zip(FIGURES, STATISTICS, strict=True))


def with_shuffled_labels(found: Sequence[Detection], seed: int = 0) -> list[Detection]:
    """Each detection gets the category of another one: every category is detected as often as before."""
    order = np.random.default_rng(seed).permutation(len(found))
    return [{**d, "category_id": found[k]["category_id"]} for d, k in zip(found, order, strict=True)]


def of_other_photographs(found: Sequence[Detection], ids: Sequence[int]) -> list[Detection]:
    """Each photograph gets the detections of the one before it."""
    following = dict(zip(ids, [*ids[1:], ids[0]], strict=True))
    return [{**d, "image_id": following[d["image_id"]]} for d in found]


def gap_of_seeds(arguments: argparse.Namespace, seeds: tuple[int, int]) -> float:
    """Largest difference of a weight between two short trainings."""
    weights = []
    for seed in seeds:
        with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
            words = ["aerial_cars", "--first", "8", "--epochs", "1", "--batch", "4", "--work", folder]
            asked = small_objects.parse_arguments(words)
            asked.data = data_folder()
            path = small_objects.train_row("SSDMnetv1", seed, asked, Path(folder))
            weights.append(torch.load(path, weights_only=True)["model"])
    return max(float((v.float() - weights[1][k].float()).abs().max()) for k, v in weights[0].items())


# ---- a detector that learned shuffled labels


def shuffled_set(source: Path, folder: Path, seed: int = 0) -> Path:
    """A copy of a small set whose training objects got each other's categories; the photographs are linked to."""
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
    return folder


def of_rare_class(data: Path, work: Path, weights: Path) -> float:
    """Its AP after a short training on the cells of `data`."""
    asked = small_objects.parse_arguments(
        [CELLS, *RECIPE.split(), "--work", str(work), "--weights", str(weights), "--seeds", "0"]
    )
    asked.data = data
    small_objects.detect(small_objects.RIVALS[0], 0, asked)
    split = find_split(data / "smallobj" / CELLS, "val")
    found = trained.judged(small_objects.kept(small_objects.RIVALS[0], 0, asked), split, [RARE])
    return float(found.figures[f"ap {RARE}"][0])


def shuffled_training(data: Path, work: Path) -> dict[str, float]:
    weights = data / "weights" / small_objects.WEIGHTS
    shuffled_set(data / "smallobj" / CELLS, work / "shuffled" / "smallobj" / CELLS)
    return {
        f"AP of {RARE}, trained on {CELLS}": of_rare_class(data, work, weights),
        f"AP of {RARE}, trained on shuffled labels": of_rare_class(work / "shuffled", work / "shuffled", weights),
    }


# ---- all


def measure(experiment: Experiment, arguments: argparse.Namespace) -> dict[str, Any]:
    truth, ids = experiment.truth, experiment.ids
    found = experiment.found(AS_IS)
    return {
        "detections": len(found),
        "gap to pycocotools": gap_to_pycocotools(truth, found, ids),
        "AP": evaluate(truth, found, ids).ap,
        "AP with shuffled labels": evaluate(truth, with_shuffled_labels(found), ids).ap,
        "AP on other photographs": evaluate(truth, of_other_photographs(found, ids), ids).ap,
        **shuffled_training(data_folder(), arguments.work),
        "largest difference of a weight, same seed": gap_of_seeds(arguments, (0, 0)),
        "largest difference of a weight, other seed": gap_of_seeds(arguments, (0, 1)),
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder of training_free")
    parser.add_argument("--results", type=Path, default=records.RESULTS, help="(default: docs/results)")
    arguments = parser.parse_args(argv)
    experiment = Experiment(data_folder(), arguments.work, arguments.results, None)
    path = arguments.results / "checks.json"
    if records.is_done(path, experiment.settings):
        print(f"{path} is there.")
        return
    facts = measure(experiment, arguments)
    records.write(path, {"settings": experiment.settings, **facts, "hardware": records.hardware()})
    for what, value in facts.items():
        print(f"{what}: {value:.3g}")


if __name__ == "__main__":
    run(main)
