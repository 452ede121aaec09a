"""Average precision and recall of a trained detector on a set in COCO's format.

    python -m examples.ssd.evaluate run/last.pt --data COCO_FOLDER
    python -m examples.ssd.evaluate run/last.pt --json boxes.json --images photographs/ --per-class

Prints the columns of the paper's Table 2 and AP at IoU 0.5 and 0.75. With --out it writes the detections in COCO's
results format, and summary.json, which `report` draws.
"""

import argparse
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from typing import Any

import torch
from pycocotools.coco import COCO  # type: ignore[import-untyped]
from tqdm import tqdm

from examples.ssd import augment, counting, fast_evaluation
from examples.ssd.annotations import Annotations, Categories, Split, find_split, read_annotations
from examples.ssd.checkpoint import Detector, detector
from examples.ssd.data import Batch, Images, every_image
from examples.ssd.errors import CheckpointError, EvaluationError, RequestError
from examples.ssd.evaluation import Summary, evaluate, load_truth, write_results
from examples.ssd.files import write_atomically
from examples.ssd.formatting import as_table
from examples.ssd.model import SSD
from examples.ssd.postprocess import PAPER, Limits, detections
from examples.ssd.processes import Processes, processes
from examples.ssd.programs import (
    existing_file,
    existing_folder,
    natural,
    new_folder,
    positive,
    run,
    wanted_device,
)

COLUMNS = (
    "ap",
    "ap_small",
    "ap_medium",
    "ap_large",
    "ar_small",
    "ar_medium",
    "ar_large",
    "ap50",
    "ap75",
)
TITLES = (
    "AP",
    "AP small",
    "AP medium",
    "AP large",
    "AR small",
    "AR medium",
    "AR large",
    "AP50",
    "AP75",
)
EQUAL = 1e-6  # percent: two evaluators that differ by more do not agree


@torch.inference_mode()
def predict(
    ssd: SSD,
    batches: Iterable[Batch],
    annotations: Annotations,
    device: torch.device,
    limits: Limits = PAPER,
) -> list[dict[str, Any]]:
    """Detections in COCO's results format, in pixels of the annotated images."""
    ssd.eval()
    found = []
    for batch in batches:
        offsets, logits = ssd(ssd.prepare(batch.images.to(device, non_blocking=True)))
        of_images = detections(offsets, ssd.scores(logits), ssd.priors, limits)
        for position, of_image in zip(batch.positions, of_images, strict=True):
            record = annotations.records[position]
            scale = torch.tensor([record.width, record.height, record.width, record.height])
            corners = (of_image.boxes.cpu() * scale).tolist()
            found += [
                {
                    "image_id": record.id,
                    "category_id": annotations.categories.ids[label - 1],
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "score": score,
                }
                for (x0, y0, x1, y1), score, label in zip(
                    corners, of_image.scores.tolist(), of_image.labels.tolist(), strict=True
                )
            ]
    return found


def detect_all(
    ssd: SSD,
    annotations: Annotations,
    everyone: Processes,
    *,
    batch: int = 16,
    workers: int = 0,
    limits: Limits = PAPER,
    progress: bool = False,
) -> list[dict[str, Any]]:
    """The detections on all images, in every process; each process looks at its share."""
    images = Images(annotations, augment.for_testing(ssd.size))
    loader = every_image(images, batch, workers, everyone.device.type == "cuda", everyone.share)
    shown = tqdm(loader, desc="detecting", leave=False, disable=not progress)
    own = predict(ssd, shown, annotations, everyone.device, limits)
    everything = [d for part in everyone.gathered(own) for d in part]
    # By image, as one process would give them: the evaluator breaks ties by order.
    return sorted(everything, key=lambda d: d["image_id"])


def check_categories(known: Categories, asked: Categories) -> None:
    if known != asked:
        raise CheckpointError(
            f"the detector knows {len(known.ids)} categories ({_some(known.names)}), the annotations have "
            f"{len(asked.ids)} ({_some(asked.names)}); their ids and names must agree."
        )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def evaluated(split: Split, found: Sequence[dict[str, Any]]) -> Summary:
    return evaluate(load_truth(split.annotations), found)


def evaluated_by(
    evaluator: str, truth: COCO, found: Sequence[dict[str, Any]]
) -> tuple[Summary, str]:
    """The figures, and for the record who gave them. evaluator: pycocotools, faster, or both, which must agree.

    Raises:
        RequestError: the faster one is not installed.
        EvaluationError: they do not agree.
    """
    reference = f"pycocotools {version('pycocotools')}"
    if evaluator == "pycocotools":
        return evaluate(truth, found), reference
    fast, fast_name = (
        fast_evaluation.evaluate(truth, found),
        f"faster-coco-eval {version('faster-coco-eval')}",
    )
    if evaluator == "faster":
        return fast, fast_name
    summary = evaluate(truth, found)
    gap = fast_evaluation.largest_difference(summary, fast)
    if not gap <= EQUAL:
        raise EvaluationError(
            f"{reference} and {fast_name} differ by {gap:g} percent; take --evaluator pycocotools."
        )
    return summary, f"{reference}; {fast_name} agrees, largest difference {gap:.0e} percent"


# ---- as text


def as_row(name: str, summary: Summary) -> tuple[str, ...]:
    return (name, *(f"{getattr(summary, column):.1f}" for column in COLUMNS))


def as_text(rows: Sequence[tuple[str, Summary]]) -> str:
    return as_table(("network", *TITLES), [as_row(name, summary) for name, summary in rows])


def per_class_text(summary: Summary) -> str:
    best_first = sorted(summary.per_class.items(), key=lambda pair: -pair[1])
    return as_table(("class", "AP"), [(name, f"{ap:.1f}") for name, ap in best_first])


def record(found: Detector, summary: Summary, evaluator: str) -> dict[str, Any]:
    """What `report` draws; null where there are no objects to find."""
    figures = {
        k: None if isinstance(v, float) and math.isnan(v) else v for k, v in asdict(summary).items()
    }
    return {
        "row": found.row.name,
        "gmacs": counting.compute(found.ssd, found.row.size) / 1e9,
        "params": counting.parameters(found.ssd),
        "evaluator": evaluator,
        **figures,
    }


# ---- the program


def asked_split(arguments: argparse.Namespace, name: str) -> Split:
    """The set that --data, or --json and --images, name."""
    if (arguments.json is None) != (arguments.images is None):
        raise RequestError("--json and --images go together.")
    if arguments.json is not None and arguments.data is not None:
        raise RequestError("--data and --json name two sets; give one.")
    if arguments.json is not None:
        return Split(arguments.json, arguments.images)
    if arguments.data is None:
        raise RequestError("name the images: --data FOLDER, or --json FILE and --images FOLDER.")
    return find_split(arguments.data, name)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", type=existing_file)
    parser.add_argument(
        "--data",
        type=existing_folder,
        help="COCO's layout, or val/ with instances.json and images/, or these two in the folder itself",
    )
    parser.add_argument("--json", type=existing_file, help="instead: an annotation file")
    parser.add_argument("--images", type=existing_folder, help="and its images")
    parser.add_argument("--split", choices=("train", "val"), default="val")
    parser.add_argument(
        "--batch", type=positive, default=16, help="images at once (default: %(default)s)"
    )
    parser.add_argument(
        "--workers",
        type=natural,
        default=2,
        help="processes that read images (default: %(default)s)",
    )
    parser.add_argument(
        "--per-image",
        type=natural,
        default=PAPER.per_image,
        help="most boxes an image (default: %(default)s); 0: 100 of each class",
    )
    parser.add_argument("--per-class", action="store_true", help="print the AP of every class")
    parser.add_argument(
        "--evaluator",
        choices=("pycocotools", "faster", "both"),
        default="pycocotools",
        help="faster: faster-coco-eval; both: stop unless they agree (default: %(default)s)",
    )
    parser.add_argument("--device", help="cpu, cuda, ... (default: the GPU if there is one)")
    parser.add_argument(
        "--out", type=new_folder, help="folder for detections.json and summary.json"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    split = asked_split(arguments, arguments.split)
    annotations, truth = read_annotations(split), load_truth(split.annotations)
    if arguments.evaluator != "pycocotools":
        fast_evaluation.installed()
    known = detector(arguments.checkpoint)
    check_categories(known.categories, annotations.categories)
    limits = replace(PAPER, per_image=arguments.per_image or None)
    with processes(wanted_device(arguments.device)) as everyone:
        found = detect_all(
            known.ssd.to(everyone.device),
            annotations,
            everyone,
            batch=arguments.batch,
            workers=arguments.workers,
            limits=limits,
            progress=everyone.first,
        )
        if not everyone.first:
            return
    summary, evaluator = evaluated_by(arguments.evaluator, truth, found)
    print(as_text([(known.row.name, summary)]))
    if arguments.per_class:
        print("\n" + per_class_text(summary))
    print(f"\n{summary.images} images, {len(found)} detections; evaluator: {evaluator}")
    if arguments.out is not None:
        write_results(arguments.out / "detections.json", found)
        with write_atomically(arguments.out / "summary.json") as part:
            part.write_text(
                json.dumps(record(known, summary, evaluator), indent=2, allow_nan=False)
            )
        print(f"Wrote {arguments.out}/detections.json and summary.json")


if __name__ == "__main__":
    run(main)
