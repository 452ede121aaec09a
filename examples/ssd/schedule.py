"""The paper's optimiser: SGD with momentum, and a learning rate that falls along a cosine, epoch by epoch."""

from math import cos, pi

import torch
from torch import nn

from examples.ssd.configurations import Recipe

MOMENTUM, WEIGHT_DECAY = 0.9, 1e-4


def learning_rate(recipe: Recipe, epoch: int) -> float:
    """For all steps of an epoch: a straight line up over the warm-up, then half a cosine towards zero."""
    if epoch < recipe.warmup:
        return recipe.learning_rate * (epoch + 1) / (recipe.warmup + 1)
    share = (epoch - recipe.warmup) / max(1, recipe.epochs - recipe.warmup)
    return recipe.learning_rate * (1 + cos(pi * share)) / 2


def optimiser(
    net: nn.Module, recipe: Recipe, weight_decay: float = WEIGHT_DECAY
) -> torch.optim.SGD:
    learned = [p for p in net.parameters() if p.requires_grad]
    return torch.optim.SGD(
        learned, lr=recipe.learning_rate, momentum=MOMENTUM, weight_decay=weight_decay
    )


def set_learning_rate(sgd: torch.optim.Optimizer, rate: float) -> None:
    for group in sgd.param_groups:
        group["lr"] = rate
