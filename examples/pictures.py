"""Draw the pictures of the README and the documentation from the code as it stands.

python -m examples.pictures            # writes docs/pictures/*.png

Costs and grids are told from shapes, and the scene is drawn: no weights are needed. Only `maps`
shows what a network with ImageNet weights makes of a photograph; the weights are found or
downloaded as by `examples.quickstart`.

coins.jpg is cut from a photograph of the Brooklyn Museum without known copyright restrictions,
"Greek coins from Pompeii", as scikit-image has it (`skimage.data.coins`).
"""

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import timm
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2.functional import pil_to_tensor

import stridesurgery as ss
from examples.quickstart import WEIGHTS, load
from stridesurgery import plot

MODEL = "mobilenetv1_100"
SIZE = 300  # pixels, the paper's
PREDICTED = 11  # the layer that the first predictor of the paper's SSD reads


PHOTOGRAPH = Path("docs/pictures/coins.jpg")


def maps() -> Figure:
    """Draw one layer on three grids, in the same colours: principal components of the first map."""
    data = os.environ.get("STRIDESURGERY_DATA")
    net, weights = load(Path(data) / WEIGHTS if data else None)
    if weights.startswith("RANDOM"):
        raise FileNotFoundError("no ImageNet weights were found, and none could be downloaded")
    photograph = Image.open(PHOTOGRAPH).convert("RGB")
    pixels = pil_to_tensor(photograph)
    image = pixels[None] / 127.5 - 1
    nets = {
        "untouched": net,
        'eliminate(net, "S1L0")': ss.eliminate(net, "S1L0"),
        'eliminate(net, "S1L6", dilate=True)': ss.eliminate(net, "S1L6", dilate=True),
    }
    found = {title: map_of(made, image) for title, made in nets.items()}
    cells = found["untouched"].flatten(1)
    mean = cells.mean(1, keepdim=True)
    axes = torch.linalg.svd(cells - mean, full_matrices=False)[0][:, :3].T  # (3, C)
    low, high = (axes @ (cells - mean)).quantile(torch.tensor([0.02, 0.98]), 1)[..., None]
    figure = Figure(figsize=(12, 3.7), layout="constrained")
    panels = figure.subplots(1, 1 + len(found))
    panels[0].imshow(pixels.permute(1, 2, 0).numpy())
    panels[0].set_title("photograph")
    for panel, (title, map_) in zip(panels[1:], found.items(), strict=True):
        colours = ((axes @ (map_.flatten(1) - mean) - low) / (high - low)).clamp(0, 1)
        panel.imshow(
            colours.view(3, *map_.shape[1:]).permute(1, 2, 0).numpy(), interpolation="nearest"
        )
        panel.set_title(f"{title}\n{map_.shape[1]}x{map_.shape[2]} cells", fontsize=10)
    for panel in panels:
        panel.axis("off")
    return figure


def map_of(net: nn.Module, image: Tensor) -> Tensor:
    """Return the map (C, h, w) of the layer that the first predictor reads."""
    with torch.inference_mode():
        made: Tensor = ss.features(net, PREDICTED, input_size=image.shape[2])(image)[str(PREDICTED)]
    return made[0]


def profile() -> Figure:
    """Draw what the paper's Figure 3 has: the base network, one early stride less, two less."""
    return plot.profile(timm.create_model(MODEL), ["S1L0", "S2L4-6"], SIZE)


def field() -> Figure:
    return plot.field(timm.create_model(MODEL), PREDICTED, ["S1L0", "S1L6"], SIZE)


def front() -> Figure:
    found = ss.search(
        timm.create_model(MODEL), 16, taps=PREDICTED, reduction=8, input_size=SIZE, dilate=True
    )
    return plot.front(found)


PICTURES: tuple[Callable[[], Figure], ...] = (maps, profile, field, front)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--out", type=Path, default=Path("docs/pictures"), help="a folder (default: %(default)s)"
    )
    folder = parser.parse_args(argv).out
    folder.mkdir(parents=True, exist_ok=True)
    for draw in PICTURES:
        path = folder / f"{draw.__name__}.png"
        try:
            figure = draw()
        except FileNotFoundError as reason:
            print(f"{path} is left out: {reason}")
            continue
        # without the version, the same picture is the same file
        figure.savefig(path, dpi=100, metadata={"Software": None})
        print(path)


if __name__ == "__main__":
    main()
