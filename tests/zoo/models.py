"""Which models are swept, and how they are built: without weights on the meta device, or for real and awake."""

import contextlib
import json
import logging
import warnings
from pathlib import Path

import timm
import torch
import torchvision
from torch import nn

TIMM_NAMES = Path(__file__).with_name("timm_names.json")


def names() -> list[str]:
    """Every model of the zoo as "timm/NAME" or "torchvision/NAME"; what this timm lacks is left out."""
    missing = set(missing_names())
    ours = [f"timm/{name}" for name in json.loads(TIMM_NAMES.read_text())]
    theirs = [
        f"torchvision/{name}" for name in torchvision.models.list_models(module=torchvision.models)
    ]
    return [name for name in ours if name not in missing] + theirs


def missing_names() -> list[str]:
    """Names of the list that this version of timm does not have."""
    return [
        f"timm/{name}" for name in json.loads(TIMM_NAMES.read_text()) if not timm.is_model(name)
    ]


def build(name: str) -> tuple[nn.Module, str]:
    """The model in eval mode and the device it is on: "meta" where its constructor allows, else "cpu"."""
    try:
        with torch.device("meta"):
            return create(name), "meta"
    except Exception:  # the constructor computes with numbers, which meta tensors do not have
        return create(name), "cpu"


def create(name: str) -> nn.Module:
    """The model with its initial weights, in eval mode."""
    library, _, short = name.partition("/")
    with quiet():
        if library == "timm":
            return timm.create_model(short, pretrained=False).eval()
        more = (
            {"init_weights": False} if short in ("googlenet", "inception_v3") else {}
        )  # their init takes a minute
        return torchvision.models.get_model(short, weights=None, **more).eval()


@contextlib.contextmanager
def quiet():
    """Without the warnings that constructors give."""
    logging.getLogger("timm").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def awaken(model: nn.Module, seed: int = 0) -> nn.Module:
    """Randomise what a constructor leaves constant: norms, running statistics, layer scales, gains, zeroed tables.

    A residual branch whose last norm is zero contributes nothing, and a wrong surgery inside it
    would pass.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if not tensor.is_floating_point() or tensor.numel() == 0 or name.endswith("attn_mask"):
            continue
        statistic = name.endswith(("running_mean", "running_var"))
        constant = isinstance(tensor, nn.Parameter) and bool((tensor == tensor.flatten()[0]).all())
        if not (statistic or constant):
            continue
        noise = torch.rand(tensor.shape, generator=generator)
        centred = name.endswith(("running_mean", "bias")) or (
            tensor.numel() > 1 and not tensor.any() and tensor.dim() > 1
        )
        with torch.no_grad():
            tensor.copy_(0.4 * (noise - 0.5) if centred else 0.5 + noise)
    return model
