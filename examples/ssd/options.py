"""How to train, beside the recipe, and the network made ready for it."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from examples.ssd.errors import RequestError
from examples.ssd.model import SSD
from examples.ssd.norms import SharedNorms
from examples.ssd.processes import Processes
from examples.ssd.schedule import WEIGHT_DECAY

AMP = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Options:
    """How to train, beside the recipe."""

    seed: int = 0
    augment: bool = True  # as SSD does; else images are only resized
    workers: int = 0  # processes that read images, for each process that trains
    amp: str = "off"
    channels_last: bool = False
    compile: bool = False
    ema: float | None = None  # decay of the averaged weights, such as 0.999
    freeze_norms: bool = False  # batch norms use their running statistics and leave them
    sync_norms: bool = False  # batch norms see the batches of all processes
    weight_decay: float = WEIGHT_DECAY
    log_every: int = 10  # steps
    max_steps: int | None = None  # of the whole run; stops there as a signal would


def prepared(ssd: SSD, options: Options, everyone: Processes) -> SSD:
    """On its device, in its memory format, with the norms that the options ask for."""
    if options.sync_norms and everyone.device.type == "cuda":
        from timm.layers import (
            convert_sync_batchnorm,
        )  # knows timm's norms, which hold their activation

        ssd = convert_sync_batchnorm(ssd)
    ssd = ssd.to(everyone.device)
    return ssd.to(memory_format=torch.channels_last) if options.channels_last else ssd  # type: ignore[call-overload]


def norms(options: Options, everyone: Processes) -> AbstractContextManager:
    """What to enter for every step, so that batch norms see what the options ask for."""
    by_hand = options.sync_norms and everyone.several and everyone.device.type != "cuda"
    if by_hand and options.compile:
        raise RequestError("--sync-norms and --compile go together on GPUs only.")
    return SharedNorms() if by_hand else nullcontext()


def wrapped(ssd: SSD, options: Options, everyone: Processes) -> nn.Module:
    """What the steps call: over all processes, and compiled."""
    net: nn.Module = ssd
    if everyone.several:
        devices = [everyone.device] if everyone.device.type == "cuda" else None
        net = DistributedDataParallel(
            net, device_ids=devices, broadcast_buffers=not options.freeze_norms
        )
    return torch.compile(net) if options.compile else net  # type: ignore[return-value]
