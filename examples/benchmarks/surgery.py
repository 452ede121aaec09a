"""Cost of a surgery beside what one would use instead, and the result beside one made by hand.

    python -m examples.benchmarks.surgery            # medians of 15 rounds, one thread
    python -m examples.benchmarks.surgery --json results.json

Every round times all candidates one after the other, so that a change of the machine's speed meets
all alike; the ratios are medians of per-round ratios.
"""

import copy
from collections.abc import Callable

import timm
import torch
import torchvision.models
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

import stridesurgery as ss
from examples.benchmarks.timing import Rows, arguments, rounds, save, show, summary

# model, and a node in the middle of it for torchvision's extractor (which needs one)
MODELS: dict[str, Callable[[], nn.Module]] = {
    "resnet50": torchvision.models.resnet50,
    "efficientnet_b0": torchvision.models.efficientnet_b0,
    "convnext_tiny": torchvision.models.convnext_tiny,
    "inception_v3": lambda: torchvision.models.inception_v3(init_weights=False),
}
LAST = {
    "resnet50": "layer4",
    "efficientnet_b0": "features",
    "convnext_tiny": "features",
    "inception_v3": "Mixed_7c",
}
# whose first convolution is plain: patched by hand it is the same network
INFERENCE = ("mobilenetv1_100", "resnet18")


def surgery_times(name: str, count: int) -> Rows:
    """Time one model's surgery beside torchvision's feature extractor and a plain copy."""
    net = MODELS[name]().eval()
    candidates: dict[str, Callable[[], object]] = {
        "create_feature_extractor": lambda: create_feature_extractor(net, [LAST[name]]),
        "inspect": lambda: ss.inspect(net),
        "eliminate": lambda: ss.eliminate(net, S=1),
        "copy.deepcopy": lambda: copy.deepcopy(net),
    }
    return summary(rounds(candidates, count, name), "create_feature_extractor")


def patched_by_hand(net: nn.Module) -> nn.Module:
    """A copy whose first convolution has stride 1."""
    patched = copy.deepcopy(net)
    first = next(m for m in patched.modules() if isinstance(m, nn.Conv2d))
    first.stride = (1, 1)
    return patched


def inference_times(name: str, count: int) -> Rows:
    """Time the operated network beside one patched by hand, on one 160 x 160 image."""
    net = timm.create_model(name).eval()
    image = torch.randn(1, 3, 160, 160)
    by_hand, operated = patched_by_hand(net), ss.eliminate(net, "S1L0")
    with torch.inference_mode():
        if not torch.equal(by_hand(image), operated(image)):
            raise AssertionError(f"{name}: patched by hand is another network")
        both: dict[str, Callable[[], object]] = {
            "by hand": lambda: by_hand(image),
            "operated": lambda: operated(image),
        }
        return summary(rounds(both, count, name), "by hand")


def main() -> None:
    """Run both comparisons and print them."""
    asked = arguments(__doc__)
    surgery = {name: surgery_times(name, asked.rounds) for name in MODELS}
    inference = {name: inference_times(name, 2 * asked.rounds) for name in INFERENCE}
    show("Surgery: ratios to torchvision's create_feature_extractor", surgery)
    show("Inference: ratios to the stride patched by hand (equal outputs, checked)", inference)
    save(asked, {"surgery": surgery, "inference": inference})


if __name__ == "__main__":
    main()
