"""Remove one stride from a pretrained MobileNet v1 and look at what changes.

    python -m examples.quickstart          # finds weights and a photograph, or says what it uses instead
    python -m examples.quickstart --image photo.jpg --weights mobilenetv1_100.safetensors

Prints the table of layers, checks the operated network against the original, shows what the untouched network
sees on real photographs, and saves a picture of the feature maps of both. $STRIDESURGERY_DATA may name a
folder with ImageNet weights (`weights/`) and annotated photographs (`coco_public/`).
"""

import argparse
import os
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import timm
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from safetensors.torch import load_file
from torch import Tensor, nn

import stridesurgery as ss
from examples.photographs import (
    IMAGENET_CLASSES,
    Photograph,
    Pixels,
    class_name,
    drawn_square,
    nameable_photographs,
    read_square,
)

MODEL = "mobilenetv1_100"
SURGERY = "S1L0"
CONVERTED_WEIGHTS = "mobilenet_v1_100_imagenet1001_timm_dequant.safetensors"
FAVOURITE = "000000000154.jpg"  # zebras near and far
LISTED_LAYERS = (0, 1, 2, 4, 6, 11, 13)
GRID_LAYER = 11  # what the first predictor of an SSD reads
DRAWN_LAYERS = (4, 6, 11)


@dataclass(frozen=True)
class Classifier:
    """An ImageNet classifier and how it wants its pixels."""

    net: nn.Module
    source: str  # where the weights come from, for people
    trained: bool
    background: int  # the number of classes before ImageNet's first: 0 or 1
    mean: tuple[float, ...]  # per channel, of pixels in 0..1
    std: tuple[float, ...]

    def prepare(self, pictures: Sequence[Pixels]) -> Tensor:
        """N pictures (H, W, 3) in 0..255 to the network's (N, 3, H, W)."""
        images = torch.tensor(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255
        mean, std = torch.tensor(self.mean), torch.tensor(self.std)
        return (images - mean[:, None, None]) / std[:, None, None]

    def top1(self, net: nn.Module, images: Tensor) -> list[tuple[int, float]]:
        """For each image the class that `net` finds likeliest (-1: background) and its probability."""
        with torch.inference_mode():
            scores, indices = net(images).softmax(dim=1).max(dim=1)
        return [(int(i) - self.background, float(s)) for i, s in zip(indices, scores, strict=True)]


# ---- weights


def load_classifier(weights: Path | None, data: Path | None) -> Classifier:
    """The network with the weights of a file, else of the data folder, else downloaded, else random."""
    if weights is None and data is not None:
        candidate = data / "weights" / CONVERTED_WEIGHTS
        weights = candidate if candidate.is_file() else None
    if weights is not None:
        return classifier_from_file(weights)
    try:
        return downloaded_classifier()
    except (
        Exception
    ) as reason:  # no network, a proxy, a full disk: each raises something of its own
        print(f"No weights given, and none could be downloaded: {reason}")
        torch.manual_seed(0)
        return timm_classifier(pretrained=False)


def downloaded_classifier() -> Classifier:
    """timm's pretrained network; the copy in the cache of the Hugging Face hub if HF_HUB_OFFLINE is set."""
    if not os.environ.get("HF_HUB_OFFLINE"):
        # Without this, timm would retry for most of a minute before it gave up.
        urllib.request.urlopen(
            os.environ.get("HF_ENDPOINT", "https://huggingface.co"), timeout=5
        ).close()
    return timm_classifier(pretrained=True)


def classifier_from_file(path: Path) -> Classifier:
    """The network with the weights of a safetensors file, in timm's keys."""
    state = load_file(path)
    source = path.name
    if len(state.get("classifier.bias", ())) == 1001:
        # Converted from TensorFlow: a background class, "same" padding, pixels as (u8 - 128) / 128.
        net = timm.create_model(MODEL, num_classes=1001, pad_type="same", bn_eps=1e-3)
        net.load_state_dict(state)
        grey = (128 / 255,) * 3
        return Classifier(net.eval(), source, trained=True, background=1, mean=grey, std=grey)
    net = timm.create_model(MODEL)
    net.load_state_dict(state)
    config = timm.data.resolve_model_data_config(net)
    return Classifier(
        net.eval(), source, trained=True, background=0, mean=config["mean"], std=config["std"]
    )


def timm_classifier(pretrained: bool) -> Classifier:
    """timm's own network, with its downloaded weights or with random ones."""
    net = timm.create_model(MODEL, pretrained=pretrained).eval()
    config = timm.data.resolve_model_data_config(net)
    source = (
        "timm's pretrained weights"
        if pretrained
        else "RANDOM weights: nothing it sees means anything"
    )
    return Classifier(
        net, source, trained=pretrained, background=0, mean=config["mean"], std=config["std"]
    )


# ---- what the networks see


def print_top1(classifier: Classifier, photographs: Sequence[Photograph], size: int) -> None:
    """The untouched network's first guess beside the annotation, for every photograph, misses included."""
    print(
        "\nThe untouched network on every photograph of the data folder with one annotated category,\n"
        "which is an ImageNet class and whose boxes cover half of the centre crop or more:\n"
        f"  {'photograph':<18}{'COCO says':<13}{'top-1':<24}{'score':>5}"
    )
    agreed = 0
    images = classifier.prepare([read_square(photograph.path, size) for photograph in photographs])
    guesses = classifier.top1(classifier.net, images)
    for photograph, (index, score) in zip(photographs, guesses, strict=True):
        right = index in IMAGENET_CLASSES[photograph.category]
        agreed += right
        verdict = "" if right else "  <- miss"
        name = guess_name(index)
        print(
            f"  {photograph.path.name:<18}{photograph.category:<13}{name:<24}{score:5.2f}{verdict}"
        )
    print(f"  {agreed} of {len(photographs)} agree.")


def guess_name(index: int) -> str:
    return "background" if index < 0 else class_name(index)


def maps_at(net: nn.Module, names: Sequence[str], images: Tensor) -> dict[str, Tensor]:
    """The outputs (N, C, H, W) of the named modules for a batch of images."""
    maps: dict[str, Tensor] = {}

    def keep(name: str) -> torch.utils.hooks.RemovableHandle:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            maps[name] = output

        return net.get_submodule(name).register_forward_hook(hook)

    handles = [keep(name) for name in names]
    try:
        with torch.inference_mode():
            net(images)
    finally:
        for handle in handles:
            handle.remove()
    return maps


def print_map_sizes(
    names: Mapping[int, str], before: Mapping[str, Tensor], after: Mapping[str, Tensor]
) -> None:
    print(
        f"\nFeature maps (channels x height x width):\n  {'L':>2}  {'layer':<20}{'original':<16}{SURGERY}"
    )
    for index in LISTED_LAYERS:
        sizes = [" x ".join(map(str, maps[names[index]].shape[1:])) for maps in (before, after)]
        print(f"  {index:>2}  {names[index]:<20}{sizes[0]:<16}{sizes[1]}")


# ---- the picture


@dataclass(frozen=True)
class Row:
    """One network's row of the picture."""

    title: str
    centres: tuple[
        np.ndarray, np.ndarray
    ]  # where the cells of GRID_LAYER look: rows, columns; in input pixels
    maps: tuple[np.ndarray, ...]  # (H, W) each, for DRAWN_LAYERS


def picture_row(title: str, layers: Sequence[ss.Layer], maps: Mapping[str, Tensor]) -> Row:
    grid = layers[GRID_LAYER]
    rows, columns = (
        grid.offset[axis] + grid.step[axis] * np.arange(grid.out_grid[axis]) for axis in (0, 1)
    )
    return Row(title, (rows, columns), tuple(strength(maps[layers[i].name]) for i in DRAWN_LAYERS))


def strength(features: Tensor) -> np.ndarray:
    """How strongly each cell responds: the root mean square over the channels. (1, C, H, W) to (H, W)."""
    return features[0].square().mean(dim=0).sqrt().numpy()


def draw_picture(pixels: Pixels, rows: Sequence[Row], out: Path) -> None:
    """The photograph under each network's grid, beside its feature maps in the same colours."""
    figure = Figure(figsize=(13.5, 7.6), layout="constrained")
    axes = figure.subplots(len(rows), 1 + len(DRAWN_LAYERS), squeeze=False)
    for row, line in zip(rows, axes, strict=True):
        draw_grid(line[0], pixels, row)
        for column, index in enumerate(DRAWN_LAYERS):
            # One scale per layer, so that a colour means the same in both networks.
            low = min(float(r.maps[column].min()) for r in rows)
            high = max(float(r.maps[column].max()) for r in rows)
            draw_map(line[1 + column], row.maps[column], f"layer {index}", (low, high))
    figure.suptitle(f"{MODEL}: the same weights before and after {SURGERY}")
    figure.supxlabel(
        f"A dot is where one cell of layer {GRID_LAYER} looks. Maps: root mean square over the channels, "
        "yellow is strong; one scale per layer."
    )
    figure.savefig(out, dpi=110)


def draw_grid(axes: Axes, pixels: Pixels, row: Row) -> None:
    axes.imshow(pixels)
    y, x = np.meshgrid(*row.centres, indexing="ij")
    axes.scatter(x, y, s=6, c="white", edgecolors="black", linewidths=0.5)
    # The outermost cells may look past the edge.
    axes.set_xlim(-0.5, pixels.shape[1] - 0.5)
    axes.set_ylim(pixels.shape[0] - 0.5, -0.5)
    axes.set_title(
        f"where layer {GRID_LAYER} looks: {len(row.centres[0])} x {len(row.centres[1])} cells"
    )
    axes.set_ylabel(row.title, fontsize="large")
    axes.set_xticks([])
    axes.set_yticks([])


def draw_map(axes: Axes, values: np.ndarray, title: str, limits: tuple[float, float]) -> None:
    axes.imshow(values, cmap="cividis", vmin=limits[0], vmax=limits[1], interpolation="nearest")
    axes.set_title(f"{title}: {values.shape[0]} x {values.shape[1]}")
    axes.set_xticks([])
    axes.set_yticks([])


# ---- the main job


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--weights", type=existing_file, help="a safetensors file with the keys of timm's " + MODEL
    )
    parser.add_argument(
        "--image", type=existing_file, help="a photograph; its centre square is used"
    )
    parser.add_argument(
        "--size", type=int, default=224, help="side of the input in pixels (default: %(default)s)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("quickstart.png"),
        help="the picture (default: %(default)s)",
    )
    return parser.parse_args(argv)


def existing_file(text: str) -> Path:
    path = Path(text)
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"there is no file {text!r}")
    return path


def choose_image(
    image: Path | None, photographs: Sequence[Photograph], size: int
) -> tuple[Pixels, str]:
    """The pixels (size, size, 3) to look at, and what to call them."""
    if image is None and photographs:
        paths = [photograph.path for photograph in photographs]
        image = next((path for path in paths if path.name == FAVOURITE), paths[0])
    if image is None:
        return drawn_square(
            size
        ), "a drawn picture: no --image, and no photographs in $STRIDESURGERY_DATA"
    return read_square(image, size), image.name


def data_folder() -> Path | None:
    named = os.environ.get("STRIDESURGERY_DATA")
    if named and not Path(named).is_dir():
        raise SystemExit(
            f"STRIDESURGERY_DATA names {named!r}, which is no folder. Correct it or unset it."
        )
    return Path(named) if named else None


def find_photographs(data: Path | None) -> list[Photograph]:
    folder = data / "coco_public" if data is not None else None
    return nameable_photographs(folder) if folder is not None and folder.is_dir() else []


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    size, data = arguments.size, data_folder()
    classifier = load_classifier(arguments.weights, data)
    print(f"{MODEL} with {classifier.source}\n")

    report = ss.inspect(classifier.net, input_size=size)
    print(report)
    fine = ss.eliminate(classifier.net, SURGERY, input_size=size)
    print(f"\n{ss.verify(classifier.net, fine, input_size=size)}")

    photographs = find_photographs(data)
    if photographs and classifier.trained:
        print_top1(classifier, photographs, size)

    pixels, called = choose_image(arguments.image, photographs, size)
    images = classifier.prepare([pixels])
    print(f"\nLooking at {called}")
    if classifier.trained:
        for title, net in (("original", classifier.net), (f"{SURGERY}, not fine-tuned", fine)):
            [(index, score)] = classifier.top1(net, images)
            print(f"  {title}: {guess_name(index)} ({score:.2f})")

    names = {layer.index: layer.name for layer in report.layers}
    before = maps_at(classifier.net, list(names.values()), images)
    after = maps_at(fine, list(names.values()), images)
    print_map_sizes(names, before, after)

    fine_report = ss.inspect(fine, input_size=size)
    rows = [
        picture_row("original", report.layers, before),
        picture_row(SURGERY, fine_report.layers, after),
    ]
    draw_picture(pixels, rows, arguments.out)
    print(f"\nSaved {arguments.out}")


if __name__ == "__main__":
    main()
