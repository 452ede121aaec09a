"""Average precision and recall of trained detectors on a set in COCO's format, by pycocotools.

    python -m examples.ssd.evaluate run/last.pt --data COCO_FOLDER
    python -m examples.ssd.evaluate base/last.pt S1L0/last.pt --json boxes.json --images photos/

Prints the columns of the paper's Table 2. With --out it writes the detections in COCO's results
format, and all figures (of every class, compute and parameters too) in summary.json.
"""

import argparse
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pycocotools.coco import COCO  # type: ignore[import-untyped]
from pycocotools.cocoeval import COCOeval  # type: ignore[import-untyped]
from torchvision.models.detection.ssd import SSD
from torchvision.ops import box_convert

from examples.ssd import counting, data, programs
from examples.ssd.data import CocoImages, indexed
from examples.ssd.model import Network
from examples.ssd.processes import Processes, processes
from examples.ssd.programs import DetectionError, write_atomically
from examples.ssd.training import detector

Detection = Mapping[str, Any]  # image_id, category_id, bbox (x, y, width, height) and score
Images = Iterable[int] | None  # ids; None: all
STATS = """ap ap50 ap75 ap_small ap_medium ap_large
           ar1 ar10 ar ar_small ar_medium ar_large""".split()
COLUMNS = "ap ap_small ap_medium ap_large ar_small ar_medium ar_large ap50 ap75".split()


@torch.inference_mode()
def detect_all(
    ssd: SSD, images: CocoImages, everyone: Processes, *, batch: int = 16, workers: int = 0
) -> list[dict[str, Any]]:
    """Return the detections on all images, in every process; each process looks at its share."""
    ssd.eval()
    size, ids, found = ssd.transform.fixed_size[0], list(images.categories), []
    own = [(position, 0) for position in range(everyone.rank, len(images), everyone.world)]
    batches = [own[i : i + batch] for i in range(0, len(own), batch)]
    for pixels, _, positions in data.loader(images, data.transform(size), batches, workers):
        outputs = ssd(list(pixels.to(everyone.device, non_blocking=True).float() / 255))
        for position, output in zip(positions, outputs, strict=True):
            entry = images.coco.imgs[images.ids[position]]
            sides = torch.tensor([entry["width"], entry["height"]] * 2)
            boxes = box_convert(output["boxes"].cpu(), "xyxy", "xywh") * sides / size
            for box, score, label in zip(boxes, output["scores"], output["labels"], strict=True):
                where = {"image_id": entry["id"], "category_id": ids[label - 1]}
                found.append({**where, "bbox": box.tolist(), "score": float(score)})
    everything = [d for part in everyone.gather(found) for d in part]
    # By image, as one process would give them: the evaluator breaks ties by order.
    return sorted(everything, key=lambda d: d["image_id"])


class Summary(NamedTuple):
    """COCO's figures in percent; nan where there are no objects."""

    figures: Mapping[str, float]  # by the names of STATS
    images: int
    per_class: Mapping[str, float]  # AP by name, of the classes that have objects


def load_truth(path: Path) -> COCO:
    """Return the annotations of a file, crowds included; an area left out is the box's."""
    content = data.read_coco(path)
    return indexed({**content, "annotations": numbered(content["annotations"])})


def numbered(marks: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return annotations with all that pycocotools wants; it takes an object of id 0 for none."""
    if any(min(mark["bbox"][2:]) < 0 for mark in marks):
        raise DetectionError("a box has a negative width or height; it cannot be evaluated.")
    more = [{"iscrowd": 0, "area": m["bbox"][2] * m["bbox"][3], **m} for m in marks]
    return [{**mark, "id": number} for number, mark in enumerate(more, start=1)]


def match(truth: COCO, detections: Sequence[Detection], image_ids: Images = None) -> COCOeval:
    """Return pycocotools' evaluator, which knows what matches; nothing is averaged yet."""
    for place, d in enumerate(detections):
        if d["image_id"] not in truth.imgs or d["category_id"] not in truth.cats:
            raise DetectionError(f"detection {place}: its image or category is not annotated.")
    found = indexed({**truth.dataset, "annotations": numbered(detections)})
    with redirect_stdout(io.StringIO()):
        done = COCOeval(truth, found, "bbox")
        done.params.imgIds = sorted(truth.imgs if image_ids is None else set(image_ids))
        done.evaluate()
    return done


def evaluate(truth: COCO, detections: Sequence[Detection], image_ids: Images = None) -> Summary:
    """Compare detections with the truth, on all its images or on some."""
    done = match(truth, detections, image_ids)
    with redirect_stdout(io.StringIO()):
        done.accumulate()
        done.summarize()
    per_class = {}
    for place, category in enumerate(truth.loadCats(done.params.catIds)):
        # (IoU, recall, class, area, most detections); the first area is all, the last limit 100
        values, name = done.eval["precision"][:, :, place, 0, -1], category["name"]
        if values.size and values.min() > -1:
            name += f" ({category['id']})" * (name in per_class)
            per_class[name] = 100 * values.mean()
    figures = [math.nan if v < 0 else 100 * float(v) for v in done.stats]  # -1: no objects
    return Summary(dict(zip(STATS, figures, strict=True)), len(done.params.imgIds), per_class)


def write_results(path: Path, detections: Sequence[Detection]) -> None:
    """Save detections in COCO's results format, whole or not at all."""
    plain = [{**d, "bbox": [round(float(v), 3) for v in d["bbox"]]} for d in detections]
    with write_atomically(path) as part:
        part.write_text(json.dumps(plain))


def main(argv: Sequence[str] | None = None) -> None:
    """Evaluate."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("checkpoints", type=Path, nargs="+")
    data.add_images(add, "val")
    add("--batch", type=programs.positive, default=16, help="images at once (16)")
    add("--workers", type=programs.natural, default=2, help="processes that read images (2)")
    add("--device", help="cpu, cuda, ... (default: the GPU if there is one)")
    add("--out", type=Path, help="folder for the detections and summary.json")
    arguments = parser.parse_args(argv)
    split, records = data.split_from(arguments, "val"), {}
    images, truth = CocoImages(split), load_truth(split.annotations)
    how: dict[str, Any] = {"batch": arguments.batch, "workers": arguments.workers}
    with processes(programs.wanted_device(arguments.device)) as everyone:
        for path in arguments.checkpoints:
            ssd, row, known = detector(path)
            if known != images.categories:
                raise DetectionError(f"{path} knows other categories than {split.annotations} has.")
            found = detect_all(ssd.to(everyone.device), images, everyone, **how)
            name = row.name if row.name not in records else str(path)
            gmacs = counting.compute(Network(ssd), row.size) / 1e9
            figures, _, per_class = evaluate(truth, found)
            counts = {"gmacs": gmacs, "params": counting.parameters(ssd), "per_class": per_class}
            records[name] = {**counts, **figures}
            if everyone.first and arguments.out is not None:
                write_results(arguments.out / f"{name.replace('/', '-')}.json", found)
    if everyone.first:
        lines = [(name, *(f"{r[c]:.1f}" for c in COLUMNS)) for name, r in records.items()]
        titles = [f"{c[:2].upper()}{c[2:].replace('_', ' ')}" for c in COLUMNS]
        print(programs.as_table(("network", *titles), lines))
        if arguments.out is not None:
            (arguments.out / "summary.json").write_text(json.dumps(records, indent=2))


if __name__ == "__main__":
    programs.run(main)
