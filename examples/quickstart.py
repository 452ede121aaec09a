"""Remove one stride from a pretrained MobileNet v1 and look at what changes.

    python -m examples.quickstart    # finds weights and a photograph, or says what it has instead
    python -m examples.quickstart --image photo.jpg --weights mobilenetv1_100.safetensors

Prints the table of layers, checks the operated network against the original, says what both see in
a photograph, and saves a picture of where their cells look and of their maps. $STRIDESURGERY_DATA
may name a folder with ImageNet weights (`weights/`) and photographs (`coco_public/images`).
"""

import argparse
import os
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import timm
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageDraw
from safetensors.torch import load_file
from timm.data import ImageNetInfo
from torch import Tensor, nn

import stridesurgery as ss

MODEL, SURGERY = "mobilenetv1_100", "S1L0"
WEIGHTS = "weights/mobilenet_v1_100_imagenet1001_timm_dequant.safetensors"  # in the data folder
PHOTOGRAPH = "coco_public/images/000000000154.jpg"  # zebras near and far
LAYERS = (4, 6, 11)  # that are drawn; an SSD's first predictor reads the last one


def load(weights: Path | None) -> tuple[nn.Module, str]:
    """Return the network with the weights of a file, else downloaded, else random, and which."""
    if weights is not None:
        state = load_file(weights)
        # Converted from TensorFlow: a background class, "same" padding, pixels around 128.
        converted = len(state["classifier.bias"]) == 1001
        more = {"num_classes": 1001, "pad_type": "same", "bn_eps": 1e-3} if converted else {}
        net = timm.create_model(MODEL, **more)
        net.load_state_dict(state)
        return net.eval(), weights.name
    try:
        if not os.environ.get("HF_HUB_OFFLINE"):  # else timm would retry for most of a minute
            hub = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
            urllib.request.urlopen(hub, timeout=5).close()
        return timm.create_model(MODEL, pretrained=True).eval(), "timm's pretrained weights"
    except Exception as reason:  # no network, a proxy, a full disk: each raises its own
        print(f"No weights given, and none could be downloaded: {reason}")
        torch.manual_seed(0)
        return timm.create_model(MODEL).eval(), "RANDOM weights: nothing it sees means anything"


def square(path: Path | None, size: int) -> Image.Image:
    """Return the centre square of a photograph, or a drawn picture."""
    if path is None:
        image = Image.new("RGB", (size, size), "#7ba05b")
        for n in range(1, 7):  # things far and near
            side, x = size * n * n // 120, size * n // 8
            ImageDraw.Draw(image).ellipse((x, x, x + side, x + side), fill="white", outline="black")
        return image
    with Image.open(path) as image:
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        box = (left, top, left + side, top + side)
        return image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC, box)


def guess(net: nn.Module, images: Tensor) -> str:
    """Return the class that a network finds likeliest."""
    with torch.inference_mode():
        scores = net(images).softmax(dim=1)[0]
    number = int(scores.argmax()) - (len(scores) - 1000)  # converted networks have a background
    name = "background" if number < 0 else ImageNetInfo().index_to_description(number)
    return f"{name} ({scores.max():.2f})"


def draw(image: Image.Image, networks: dict[str, nn.Module], images: Tensor, out: Path) -> None:
    """Draw where each network's cells look, and how strongly they respond, in the same colours."""
    figure = Figure(figsize=(13.5, 7.6), layout="constrained")
    axes = figure.subplots(len(networks), 1 + len(LAYERS))
    for line, (title, net) in zip(axes, networks.items(), strict=True):
        layers = ss.inspect(net, image.width).layers
        grid = layers[LAYERS[-1]]
        ys, xs = (grid.offset[i] + grid.step[i] * np.arange(grid.out_grid[i]) for i in (0, 1))
        line[0].imshow(image)
        line[0].scatter(*np.meshgrid(xs, ys), s=6, c="white", edgecolors="black", linewidths=0.5)
        line[0].set(title=f"where layer {grid.index} looks", ylabel=title)
        features = ss.features(net, LAYERS, input_size=image.width)
        with torch.inference_mode():
            maps = features(images).values()
        for panel, index, x in zip(line[1:], LAYERS, maps, strict=True):
            print(f"  {title:<10}layer {index:>2}: {' x '.join(map(str, x.shape[1:]))}")
            panel.imshow(x[0].square().mean(dim=0).sqrt(), cmap="cividis")
            panel.set(title=f"layer {index}: {x.shape[2]} x {x.shape[3]}")
        for panel in line:
            panel.set(xticks=[], yticks=[])
    figure.suptitle(f"{MODEL}: the same weights before and after {SURGERY}")
    figure.savefig(out, dpi=110)


def existing(text: str) -> Path:
    if not Path(text).is_file():
        raise argparse.ArgumentTypeError(f"there is no file {text!r}")
    return Path(text)


def main(argv: Sequence[str] | None = None) -> None:
    """Operate, check, look."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--weights", type=existing, help=f"a safetensors file in the keys of timm's {MODEL}")
    add("--image", type=existing, help="a photograph; its centre square is used")
    add("--size", type=int, default=224, help="side of the input in pixels (224)")
    add("--out", type=Path, default=Path("quickstart.png"), help="the picture (quickstart.png)")
    arguments = parser.parse_args(argv)
    data = Path(os.environ.get("STRIDESURGERY_DATA") or "nowhere")
    found = [path if path.is_file() else None for path in (data / WEIGHTS, data / PHOTOGRAPH)]
    net, source = load(arguments.weights or found[0])
    path = arguments.image or found[1]
    print(f"{MODEL} with {source}\n\n{ss.inspect(net, input_size=arguments.size)}")
    fine = ss.eliminate(net, SURGERY, input_size=arguments.size)
    print(f"\n{ss.verify(net, fine, input_size=arguments.size)}")

    image = square(path, arguments.size)
    config = timm.data.resolve_model_data_config(net)
    grey = [128 / 255] * 3 if getattr(net, "num_classes", 0) == 1001 else None
    mean, std = (torch.tensor(grey or config[k]).view(3, 1, 1) for k in ("mean", "std"))
    images = ((torch.tensor(np.array(image)).permute(2, 0, 1) / 255 - mean) / std)[None]
    networks: dict[str, nn.Module] = {"original": net, SURGERY: fine}
    print(
        f"\nLooking at {path.name if path else 'a drawn picture: no --image, and no data folder'}"
    )
    if not source.startswith("RANDOM"):
        for title, one in networks.items():
            print(f"  {title}, not fine-tuned: {guess(one, images)}")
    draw(image, networks, images, arguments.out)
    print(f"\nSaved {arguments.out}")


if __name__ == "__main__":
    main()
