"""A running average of the weights, which often detects better than the weights themselves."""

import torch
from torch import Tensor, nn


class Average:
    """weights: name to tensor, the exponential average; integers and buffers of the network are copied."""

    def __init__(self, net: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights: dict[str, Tensor] = {
            k: v.detach().clone() for k, v in net.state_dict().items()
        }

    @torch.no_grad()
    def update(self, net: nn.Module, step: int) -> None:
        """After step number `step` of the run (from 0): early on the average follows faster."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in net.state_dict().items():
            if value.is_floating_point():
                self.weights[name].lerp_(value, 1 - decay)
            else:
                self.weights[name].copy_(value)
