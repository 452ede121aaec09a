"""A torchvision RetinaNet on blood cells: untouched, operated, and on a larger input.

    STRIDESURGERY_DATA=folder python -m examples.detectors.bccd    # ten minutes of one CPU core

All three start from the same random weights and take the same steps on the same images of the set
`smallobj/bccd`. A row whose record is in --results is skipped.
"""

import argparse
import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision.models import resnet18
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops.feature_pyramid_network import LastLevelP6P7
from tqdm import tqdm

import stridesurgery as ss
from examples.ssd import counting, data
from examples.ssd.data import CocoImages, find_split
from examples.ssd.evaluate import detect_all, load_truth
from examples.ssd.model import Network
from examples.ssd.processes import Processes
from examples.ssd.programs import positive, run
from examples.study import bootstrap, records
from examples.study.stock import data_folder

ROWS = ("as it is", "S1L0", "twice the pixels")
CHANNELS = 64  # of the pyramid; torchvision's 256 would cost more than the backbone
LAST = 20  # steps whose mean loss is told
GREY = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3}


def retinanet(classes: int, size: int) -> RetinaNet:
    """Return a RetinaNet with random weights. classes: with the background."""
    layers = {"layer2": "0", "layer3": "1", "layer4": "2"}
    more = LastLevelP6P7(CHANNELS, CHANNELS)
    body = BackboneWithFPN(resnet18(weights=None), layers, [128, 256, 512], CHANNELS, more)
    return RetinaNet(body, classes, fixed_size=(size, size), detections_per_img=100, **GREY)


def network(row: str, stock: RetinaNet, size: int) -> tuple[nn.Module, int]:
    """Return the network of a row and the side of its input; `stock` is left alone."""
    if row == "S1L0":
        return ss.eliminate(stock, "S1L0", input_size=size), size
    net = copy.deepcopy(stock)
    if row == "twice the pixels":
        size *= 2
        net.transform.fixed_size = (size, size)
    return net, size


def train(net: nn.Module, images: CocoImages, size: int, a: argparse.Namespace) -> list[float]:
    """Take the steps, and return the loss of each."""
    epochs = range(-(-a.steps // max(1, len(images) // a.batch)))
    batches = [b for epoch in epochs for b in data.epoch_batches(len(images), a.batch, 0, epoch)]
    rates = {"max_lr": a.lr, "total_steps": a.steps}
    adam, losses = torch.optim.AdamW(net.train().parameters(), a.lr), []
    schedule = torch.optim.lr_scheduler.OneCycleLR(adam, **rates)
    read = data.loader(images, data.transform(size), batches[: a.steps], 0)
    for pixels, targets, _ in tqdm(read, total=a.steps, disable=None):
        loss = sum(net(list(pixels.float() / 255), targets).values())
        adam.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        adam.step()
        schedule.step()
        losses.append(loss.item())
    return losses


def main(argv: Sequence[str] | None = None) -> None:
    """Train, evaluate and record every row."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--size", type=positive, default=192, help="side of the input in pixels (192)")
    add("--steps", type=positive, default=200, help="(200)")
    add("--batch", type=positive, default=4, help="images a step (4)")
    add("--lr", type=float, default=1e-3, help="highest rate of AdamW (0.001)")
    add("--first", type=positive, help="only so many images")
    add("--results", type=Path, default=records.RESULTS, help="(docs/results)")
    a = parser.parse_args(argv)
    sets = [find_split(data_folder() / "smallobj" / "bccd", name) for name in ("train", "val")]
    images, val = (CocoImages(split, first=a.first) for split in sets)
    settings = {"images": len(images), **{k: vars(a)[k] for k in ("size", "steps", "batch", "lr")}}
    torch.manual_seed(0)
    stock = retinanet(1 + len(images.categories), a.size)
    known: dict[str, bootstrap.Figures] = {}
    for row in ROWS:
        path = a.results / "retinanet" / f"{row}.json"
        if records.is_done(path, settings):
            continue
        net, size = network(row, stock, a.size)
        losses = train(net, images, size, a)
        found: Any = detect_all(net, val, Processes(torch.device("cpu")))
        matched = bootstrap.matches(load_truth(val.split.annotations), found, val.ids)
        known[row], told = bootstrap.evaluated(matched, known)
        gmacs, loss = counting.compute(Network(net), size) / 1e9, losses[-LAST:]
        about = {"row": row, "settings": settings, "gmacs": gmacs}
        about["loss"] = {"first": losses[0], "last": sum(loss) / len(loss)}
        records.write(path, {**about, **told, "hardware": records.hardware()})
        print(f"{path}: AP {told['figures']['ap'][0]:.1f}", flush=True)


if __name__ == "__main__":
    run(main)
