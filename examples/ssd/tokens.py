"""How much of a backbone works on tokens, where an SSD finds no map to read."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def share_on_tokens(net: nn.Module, features: nn.Module, size: int) -> float:
    """The share of a backbone's parameters that work on tokens (N, L, C), and that no map of `features` needs."""
    needed = {name for name, p in features.named_parameters() if p.requires_grad}
    on_tokens: set[str] = set()

    def note(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: object, output: Any) -> None:
            first = output[0] if isinstance(output, tuple) else output
            if isinstance(first, Tensor) and first.ndim == 3:
                on_tokens.update(
                    f"{path}.{name}" for name, _ in module.named_parameters(recurse=False)
                )

        return hook

    handles = [module.register_forward_hook(note(path)) for path, module in net.named_modules()]
    try:
        with torch.inference_mode():
            net.eval()(torch.zeros(1, 3, size, size))
    finally:
        for handle in handles:
            handle.remove()
    sizes = {name: p.numel() for name, p in net.named_parameters()}
    return sum(sizes[name] for name in on_tokens - needed) / sum(sizes.values())
