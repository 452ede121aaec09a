"""The stock SSD in torchvision's convention, taught to the library: operated whole, and on two paths.

    STRIDESURGERY_DATA=folder python -m examples.study.stock_detector --images 40

Prints AP as it is, with one stride less, and on two paths (`ss.detection.dual_path`), without any training.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from pycocotools.coco import COCO  # type: ignore[import-untyped]
from torch import Tensor, nn
from torchvision.ops import batched_nms
from tqdm import tqdm

import stridesurgery as ss
from examples.ssd import counting
from examples.ssd.evaluate import evaluate, load_truth
from examples.study.stock import HIGH_TAP, INPUT_SIZE, LOW_TAP, Predictions, StockSSD, load_stock
from examples.study.stock_boxes import (
    CANDIDATES,
    anchors,
    candidates,
    learned_centres,
    six_layers,
    usual_centres,
)
from examples.study.stock_networks import as_input, resized
from examples.training_free import KEYS, data_folder, positive, read


class SixMaps(nn.Module):
    """Images (N, 3, H, W) to the maps that the heads read."""

    def __init__(self, net: StockSSD) -> None:
        super().__init__()
        self.backbone, self.extras = net.backbone, net.extras

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        low = self.backbone[: LOW_TAP + 1](images)
        maps = [low, self.backbone[LOW_TAP + 1 : HIGH_TAP + 1](low)]
        for block in self.extras:
            maps.append(block(maps[-1]))
        return {str(number): value for number, value in enumerate(maps)}


class StockDetector(nn.Module):
    """Photographs to their detections: boxes (left, top, right, bottom) in pixels, scores, labels."""

    anchors: Tensor  # (A, 4), fractions of the image

    def __init__(self, net: StockSSD) -> None:
        super().__init__()
        self.maps, self.heads = SixMaps(net), net.heads
        places = usual_centres(six_layers(net, INPUT_SIZE))
        self.register_buffer("anchors", anchors(places), persistent=False)
        self.nms_thresh, self.detections_per_img = 0.6, 100  # as its own post-processing has them

    def predict(self, images: Tensor) -> Predictions:
        maps = list(self.maps(images).values())
        return StockSSD.predict_from(self, maps)  # type: ignore[arg-type]  # it has the heads

    def forward(self, photographs: Sequence[Image.Image] | Tensor) -> list[dict[str, Tensor]]:
        return [self.detect(photograph) for photograph in photographs]

    def detect(self, photograph: Image.Image | Tensor) -> dict[str, Tensor]:
        if isinstance(photograph, Tensor):  # prepared, (3, 300, 300)
            image, (h, w) = photograph[None], photograph.shape[1:]
        else:
            image, (h, w) = as_input(resized(photograph, INPUT_SIZE)), photograph.size[::-1]
        found = candidates(self.predict(image), self.anchors, (h, w))
        found = found[found.scores.topk(min(CANDIDATES, len(found.scores))).indices]
        corners = found.boxes[:, [1, 0, 3, 2]]
        kept = batched_nms(corners, found.scores, found.categories, self.nms_thresh)
        values = (corners, found.scores, found.categories)
        names = ("boxes", "scores", "labels")
        return {n: v[kept[: self.detections_per_img]] for n, v in zip(names, values, strict=True)}


def follow(before: Any, after: Any, surgery: ss.Surgery, stride: Any) -> None:
    """Stand the anchors on the finer maps as the predictors have learned, and as many cells large."""
    old, new = (six_layers(model.maps, INPUT_SIZE) for model in (before, after))
    finer = {n.step[0] / o.step[0] for n, o in zip(new, old, strict=True)}
    if len(finer) != 1:
        raise ss.RequestError("the stock detector is shown with one factor for all six maps")
    after.anchors = anchors(learned_centres(new, INPUT_SIZE, old, INPUT_SIZE), finer.pop())


ss.detection.register_detector(StockDetector, at="maps", follow=follow)


class Computed(nn.Module):
    """What a detector or a dual path computes besides boxes, for counting."""

    def __init__(self, whole: nn.Module) -> None:
        super().__init__()
        self.whole = whole

    def forward(self, images: Tensor) -> list[Predictions]:
        paths = isinstance(self.whole, ss.detection.DualPath)
        parts = (self.whole.coarse, self.whole.fine) if paths else (self.whole,)
        return [part.predict(images) for part in parts]  # type: ignore[operator, union-attr]


def labelled(truth: COCO, folder: Path, ids: Sequence[int]) -> Iterator[tuple[Any, Any]]:
    """Photographs one by one, and what is in them as torchvision's detectors are told of it."""
    for image_id in tqdm(ids, unit="photograph", disable=None):
        objects = truth.imgToAnns[image_id]
        boxes = torch.tensor([o["bbox"] for o in objects], dtype=torch.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        facts = {
            name: torch.tensor([o[key] for o in objects])
            for name, key in (("labels", "category_id"), ("iscrowd", "iscrowd"), ("area", "area"))
        }
        yield [read(truth, folder, image_id)], [{"boxes": boxes, **facts}]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=positive, help="only the first so many photographs")
    data = data_folder()
    folder = data / "coco_public" / "images"
    truth = load_truth(data / "coco_public" / "instances.json")
    ids = sorted(truth.imgs)[: parser.parse_args(argv).images]
    stock = StockDetector(load_stock(data / "weights")).eval()
    fine = ss.eliminate(stock, "S1L0", input_size=INPUT_SIZE)
    both = ss.detection.dual_path(stock, "S1L0", input_size=INPUT_SIZE)
    # of each half of the photographs the bound that is best on the other half
    halves = (labelled(truth, folder, ids[start::2]) for start in (1, 0))
    bounds = [next(iter(ss.detection.choose_bound(both, half))) for half in halves]
    print(f"bounds: {bounds[0]:g} and {bounds[1]:g} px")
    print(f"{'':10}" + "".join(f"{key.removeprefix('ap_'):>10}" for key in KEYS) + f"{'GMAC':>10}")
    for name, model in (("as it is", stock), ("eliminate", fine), ("dual_path", both)):
        results: list[dict[str, Any]] = []
        for number, (photograph, _) in enumerate(labelled(truth, folder, ids)):
            both.bound = bounds[number % 2]
            with torch.inference_mode():
                results += as_results(model(photograph)[0], ids[number])
        figures = evaluate(truth, results, ids).figures
        gmacs = counting.compute(Computed(model), INPUT_SIZE) / 1e9
        print(f"{name:10}" + "".join(f"{figures[k]:10.1f}" for k in KEYS) + f"{gmacs:10.2f}")


def as_results(found: dict[str, Tensor], image_id: int) -> list[dict[str, Any]]:
    """In COCO's results format."""
    boxes, scores, labels = (found[name].tolist() for name in ("boxes", "scores", "labels"))
    return [
        {
            "image_id": image_id,
            "category_id": label,
            "bbox": [left, top, right - left, bottom - top],
            "score": score,
        }
        for (left, top, right, bottom), score, label in zip(boxes, scores, labels, strict=True)
    ]


if __name__ == "__main__":
    main()
