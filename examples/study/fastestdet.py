"""FastestDet, a small COCO detector with batch norms that are alive: rebuilt from the keys of its weights.

A ShuffleNetV2 whose last three maps are brought to one grid; each cell of it says one box (Xuehao Ma, 2022, BSD-3).
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from examples.study.shufflenet import ShuffleNetV2, conv
from examples.study.stock_boxes import Candidates

INPUT_SIZE = 352  # pixels
CLASSES = 80
LEAST_SCORE = 0.02


class Pointwise(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1x1 = nn.Sequential(*conv(inputs, outputs), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.conv1x1(x)


def depthwise(channels: int, times: int) -> nn.Sequential:
    return nn.Sequential(
        *(
            m
            for _ in range(times)
            for m in (*conv(channels, channels, 5, groups=channels), nn.ReLU())
        )
    )


class Pyramid(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.Conv1x1 = Pointwise(inputs, outputs)
        self.S1, self.S2, self.S3 = (depthwise(outputs, n) for n in (1, 2, 3))
        self.output = nn.Sequential(*conv(3 * outputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        x = self.Conv1x1(x)
        return torch.relu(x + self.output(torch.cat([self.S1(x), self.S2(x), self.S3(x)], 1)))


class Head(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv5x5 = nn.Sequential(*depthwise(inputs, 1), *conv(inputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv5x5(x)


class Heads(nn.Module):
    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.conv1x1 = Pointwise(inputs, inputs)
        self.obj_layers, self.reg_layers, self.cls_layers = (
            Head(inputs, 1),
            Head(inputs, 4),
            Head(inputs, CLASSES),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns boxes as they are said (N, 4, H, W) and scores (N, CLASSES, H, W)."""
        x = self.conv1x1(x)
        sure = self.obj_layers(x).sigmoid() ** 0.6 * self.cls_layers(x).softmax(dim=1) ** 0.4
        return self.reg_layers(x), sure


class FastestDet(nn.Module):
    """images (N, 3, H, W), BGR in 0..1 -> boxes as they are said (N, 4, H/16, W/16), scores (N, 80, H/16, W/16)."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone: nn.Module = ShuffleNetV2()
        self.upsample, self.avg_pool = nn.Upsample(scale_factor=2), nn.AvgPool2d(3, 2, 1)
        self.SPP, self.detect_head = Pyramid(48 + 96 + 192, 96), Heads(96)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first, second, third = self.backbone(x)
        return self.detect_head(
            self.SPP(torch.cat([self.avg_pool(first), second, self.upsample(third)], 1))
        )


def load(folder: Path) -> FastestDet:
    """In eval mode."""
    net = FastestDet()
    net.load_state_dict(load_file(folder / "fastestdet_coco.safetensors"))
    return net.eval()


def candidates(
    said: Tensor,
    scores: Tensor,
    image: tuple[int, int],
    category_ids: Sequence[int],
    scale: float = 1.0,
) -> Candidates:
    """The boxes of a batch of one that are worth a look. scale: how large objects are that look as large as before."""
    rows, columns = said.shape[-2:]
    best, label = scores[0].max(dim=0)  # one class a cell
    row, column = (best > LEAST_SCORE).nonzero(as_tuple=True)
    x, y, width, height = said[0][:, row, column]
    centre = torch.stack([(y.tanh() + row) / rows, (x.tanh() + column) / columns], dim=1)
    half = torch.stack([height.sigmoid(), width.sigmoid()], dim=1) * scale / 2
    corners = torch.cat([centre - half, centre + half], dim=1).clamp(0, 1) * said.new_tensor(
        [*image, *image]
    )
    return Candidates(corners, best[row, column], torch.tensor(category_ids)[label[row, column]])
