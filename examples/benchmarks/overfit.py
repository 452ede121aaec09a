"""Can the detectors learn sixteen photographs by heart? AP50 on the very images they were trained on.

    python examples/benchmarks/overfit.py --data COCO_FOLDER                     # base, S1L0 and the split dual path
    python examples/benchmarks/overfit.py --data COCO_FOLDER --weights mobilenetv1_100.safetensors

A network whose loss, matching, boxes or evaluation are wrong cannot do it. Stops each at AP50 above 90.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

from examples.ssd.annotations import Split, find_split, read_annotations
from examples.ssd.configurations import Configuration, Recipe, find
from examples.ssd.data import Share
from examples.ssd.evaluate import detect_all, evaluated
from examples.ssd.loop import run_epoch
from examples.ssd.options import Options
from examples.ssd.processes import Processes
from examples.ssd.programs import existing_folder, positive, run
from examples.ssd.starting import on_backbone
from examples.ssd.training import Training

ROWS = ("SSDMnetv1", "SSDMnetv1-S1L0", "SSDMnetv1-S1L0-DualPath19-10-S")
IMAGES = 16
BATCH = 4
MOST_OBJECTS = 6  # in an image
WANTED = 90.0  # AP50
RATE = 1e-3  # of AdamW, which needs a fraction of the steps that the paper's SGD needs


@contextmanager
def subset(split: Split, count: int = IMAGES) -> Iterator[Split]:
    """The first images with a few objects and no crowd, as a set of their own."""
    content = json.loads(split.annotations.read_text())
    by_image: dict[int, list[dict]] = {}
    for mark in content["annotations"]:
        by_image.setdefault(mark["image_id"], []).append(mark)
    fine = [i for i in content["images"] if 1 <= len(by_image.get(i["id"], ())) <= MOST_OBJECTS]
    fine = [i for i in fine if not any(mark["iscrowd"] for mark in by_image[i["id"]])][:count]
    kept = {
        **content,
        "images": fine,
        "annotations": [mark for i in fine for mark in by_image[i["id"]]],
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "instances.json"
        path.write_text(json.dumps(kept))
        yield Split(path, split.images)


def learn(
    row: Configuration, split: Split, weights: str, passes: int, every: int, folder: Path
) -> tuple[int, float]:
    """Passes over the images taken, and AP50 reached; stops where it is enough."""
    torch.manual_seed(0)
    annotations = read_annotations(split)
    ssd, _ = on_backbone(row, annotations, weights)
    recipe = Recipe(learning_rate=RATE, epochs=passes, batch=BATCH, warmup=2)
    alone = Processes(Share(), torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    training = Training(ssd, row, recipe, annotations, alone, Options(augment=False), folder)
    training.sgd = torch.optim.AdamW(ssd.parameters(), lr=RATE, weight_decay=0)
    ap50, started = 0.0, time.perf_counter()
    for number in range(1, passes + 1):
        run_epoch(training, None)
        if number % every == 0 or number == passes:
            ap50 = evaluated(split, detect_all(ssd, annotations, alone)).ap50
            print(
                f"{row.name}: pass {number}, AP50 {ap50:.1f}, {time.perf_counter() - started:.0f} s",
                flush=True,
            )
            if ap50 > WANTED:
                break
    return number, ap50


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=existing_folder, required=True, help="COCO's layout")
    parser.add_argument("--rows", nargs="+", default=list(ROWS))
    parser.add_argument(
        "--weights", default="pretrained", help="of the backbone: pretrained, none, or a file"
    )
    parser.add_argument(
        "--passes", type=positive, default=60, help="most, over all images (default: %(default)s)"
    )
    parser.add_argument(
        "--every",
        type=positive,
        default=5,
        help="passes between evaluations (default: %(default)s)",
    )
    arguments = parser.parse_args(argv)
    with (
        subset(find_split(arguments.data, "train")) as split,
        tempfile.TemporaryDirectory() as folder,
    ):
        for name in arguments.rows:
            number, ap50 = learn(
                find(name),
                split,
                arguments.weights,
                arguments.passes,
                arguments.every,
                Path(folder),
            )
            print(
                f"{name}: AP50 {ap50:.1f} after {number} passes{'' if ap50 > WANTED else ': NOT LEARNED'}"
            )


if __name__ == "__main__":
    run(main)
