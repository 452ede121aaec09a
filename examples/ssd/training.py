"""A detector being trained: one step, one epoch, and checkpoints that resume to the same state."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from examples.ssd import data
from examples.ssd.configurations import Configuration, Recipe
from examples.ssd.data import Batch, CocoImages, seeded
from examples.ssd.model import Detector, build
from examples.ssd.processes import Processes, Stop
from examples.ssd.programs import DetectionError, read_tensors, write_atomically

FORMAT = 4  # of checkpoints
AMP = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}
# May change at --resume: what a machine that is gone changes, and the way out of a bad loss.
MAY_CHANGE = ("lr", "device", "processes", "workers", "save_every", "max_steps")


@dataclass(frozen=True)
class Options(Recipe):
    """Settings of training: the recipe, and what belongs to the run.

    augment: as SSD does; else images are only resized. amp: off, bf16 or fp16.
    ema: decay of the averaged weights, such as 0.999, less in the first steps; 0: none are kept.
    freeze_norms: batch norms use their running statistics and leave them.
    workers: processes that read images, for each process that trains.
    save_every: minutes. max_steps: of the whole run; it stops there as at a signal. 0: no limit.
    """

    weight_decay: float = 1e-4
    seed: int = 0
    augment: bool = True
    amp: str = "off"
    ema: float = 0.0
    freeze_norms: bool = False
    workers: int = 2
    save_every: float = 5.0
    max_steps: int = 0


class Training:
    """A detector being trained: what it is made of, its steps, and its checkpoints."""

    def __init__(
        self,
        ssd: Detector,
        row: Configuration,
        images: CocoImages,
        everyone: Processes,
        options: Options,
        folder: Path,
        stop: Stop | None = None,
    ) -> None:
        self.ssd, self.row, self.images, self.options = ssd, row, images, options
        self.everyone, self.stop, self.path = everyone, stop or Stop(), folder / "last.pt"
        if options.batch % everyone.world or len(images) < everyone.world:
            raise DetectionError(f"a batch cannot be dealt to {everyone.world} processes.")
        self.norms = [module for module in ssd.modules() if isinstance(module, _BatchNorm)]
        few = min(options.batch, len(images)) < 2 * everyone.world
        if self.norms and few and not options.freeze_norms:
            raise DetectionError("batch norms need two images a process; or give --freeze-norms.")
        own = {"images": images.said, "device": everyone.device.type, "processes": everyone.world}
        self.run = {**asdict(options), **own}
        ssd.to(everyone.device)
        self.net = DistributedDataParallel(ssd) if everyone.world > 1 else ssd
        learned = [p for p in ssd.parameters() if p.requires_grad]
        self.sgd = torch.optim.SGD(learned, options.lr, 0.9, weight_decay=options.weight_decay)
        self.amp, device = AMP[options.amp], everyone.device.type
        self.scaler = torch.amp.GradScaler(device, enabled=self.amp is torch.float16)
        self.average = ModelEmaV3(ssd, options.ema, use_warmup=True) if options.ema else None
        self.best: Detector = self.average.module if self.average else ssd
        # What a checkpoint keeps of the run.
        self.parts = {"model": ssd, "best": self.best, "sgd": self.sgd, "scaler": self.scaler}
        self.steps, self.saved = 0, time.monotonic()  # steps that are done
        self.per_epoch = max(1, len(images) // options.batch)

    @property
    def finished(self) -> bool:
        return self.steps >= self.options.epochs * self.per_epoch

    # ---- steps

    def run_epoch(self, log: Callable[[int, Mapping[str, float]], None] | None = None) -> bool:
        """Go on to the end of the epoch, which a checkpoint marks; false: stopped before, saved."""
        options, everyone = self.options, self.everyone
        epoch, done = divmod(self.steps, self.per_epoch)
        for group in self.sgd.param_groups:
            group["lr"] = rate(options, epoch)
        self.net.train()
        for norm in self.norms if options.freeze_norms else ():
            norm.eval()
        batches = data.epoch_batches(len(self.images), options.batch, options.seed, epoch)
        own = [batch[everyone.rank :: everyone.world] for batch in batches[done:]]
        transform = data.transform(self.row.size, options.augment)
        read = data.loader(self.images, transform, own, options.workers)
        title = f"epoch {epoch + 1}/{options.epochs}"
        for batch in tqdm(read, title, leave=False, disable=log is None):
            told = bool(self.stop.code) or 0 < options.max_steps <= self.steps
            due = time.monotonic() - self.saved >= 60 * options.save_every
            # All decide together: one that went on alone would wait for the others for ever.
            end, now = everyone.sum(torch.tensor([told, due]).int())
            if end or now:
                self.save()
            if end:
                return False
            loss = self.step(batch)
            if log is not None:
                log(self.steps, {"loss": loss, "rate": rate(options, epoch)})
        self.save()
        return True

    def step(self, batch: Batch) -> float:
        """Take one step of all processes together, and return the loss."""
        device, (pixels, targets, _) = self.everyone.device, batch
        # What is random in the network depends on the step alone: a resumed run sees the same.
        torch.manual_seed(seeded(self.options.seed, self.steps, self.everyone.rank))
        images = list(pixels.to(device, non_blocking=True).float() / 255)
        targets = [{k: v.to(device) for k, v in target.items()} for target in targets]
        with torch.autocast(device.type, self.amp, enabled=self.amp is not None):
            losses = self.net(images, targets)
        # torchvision divides by this process's positives, at least 1; here those of all count.
        own = losses["positives"].clamp(min=1)
        loss = (losses["bbox_regression"] + losses["classification"]) * own
        told = torch.stack([loss.detach(), losses["positives"]]).cpu().double()
        total, positives = self.everyone.sum(told)
        value = total / max(1, positives)
        self._check("the loss", torch.tensor(value))
        self.sgd.zero_grad()
        # DistributedDataParallel averages the gradients.
        self.scaler.scale(loss * self.everyone.world / max(1, positives)).backward()
        self.scaler.step(self.sgd)
        self.scaler.update()
        self.steps += 1
        if self.average is not None:
            self.average.update(self.ssd, self.steps)
        return value

    def _check(self, what: str, value: Tensor) -> None:
        if not value.isfinite().all():
            kept = f"{self.path} from before is kept" if self.path.is_file() else "none was saved"
            told = f"{what} is no number any more at step {self.steps}; of checkpoints, {kept}."
            raise DetectionError(f"{told} The usual way out is --resume with a lower --lr.")

    # ---- checkpoints

    def save(self) -> None:
        """Write a checkpoint, unless a weight or a statistic is no number."""
        for value in (*self.ssd.buffers(), *self.best.buffers()):
            if self.everyone.world > 1:  # each saw its own images: those of the first count
                torch.distributed.broadcast(value, 0)
        for name, value in self.ssd.state_dict().items():
            self._check(name, value)
        if self.everyone.first:
            content = {
                "format": FORMAT,
                "configuration": asdict(self.row),
                "categories": self.images.categories,
                "pixels": (self.ssd.transform.image_mean, self.ssd.transform.image_std),
                "steps": self.steps,
                "run": self.run,
                **{name: part.state_dict() for name, part in self.parts.items()},
            }
            with write_atomically(self.path) as part:
                torch.save(content, part)
        self.saved = time.monotonic()

    def resume(self) -> str:
        """Go on where the checkpoint was written; return what is otherwise now and may be."""
        content = self.everyone.gather(load(self.path) if self.everyone.first else None)[0]
        then = {**content["run"], **asdict(content["configuration"])}
        now = {**self.run, **asdict(self.row)}
        refused = changes({k: v for k, v in then.items() if k not in MAY_CHANGE}, now)
        if refused or content["categories"] != self.images.categories:
            told = f"{self.path} is of a run with {refused or 'other categories'}"
            raise DetectionError(f"{told}; resume what was started, or name another --out.")
        for name, part in self.parts.items():
            part.load_state_dict(content[name])
        self.steps = content["steps"]
        return changes({k: then[k] for k in ("lr", "device", "processes")}, now)


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return what of `before` is otherwise now, with both values, for people."""
    return ", ".join(f"{k} {v} (now {now[k]})" for k, v in before.items() if v != now[k])


def rate(recipe: Recipe, epoch: int) -> float:
    """Return the learning rate of an epoch: a line up (warm-up), then half a cosine to zero."""
    if epoch < recipe.warmup:
        return recipe.lr * (epoch + 1) / (recipe.warmup + 1)
    share = (epoch - recipe.warmup) / max(1, recipe.epochs - recipe.warmup)
    return recipe.lr * (1 + math.cos(math.pi * share)) / 2


# ---- checkpoint files


def load(path: Path) -> dict[str, Any]:
    """Return the content of a checkpoint, its configuration among it."""
    content = read_tensors(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise DetectionError(f"{path} is no checkpoint of these programs, or of another version.")
    fields = content["configuration"]
    row = Configuration(**{**fields, "recipe": Recipe(**fields["recipe"])})
    return {**content, "configuration": row}


def detector(path: Path) -> tuple[Detector, Configuration, dict[int, str]]:
    """Return the network of a checkpoint in eval mode, with its averaged weights if it has any.

    With it come its configuration, and what its labels 1.. mean, by category id.
    """
    content = load(path)
    row, categories, (mean, std) = (content[k] for k in ("configuration", "categories", "pixels"))
    ssd = build(row, 1 + len(categories), image_mean=mean, image_std=std)
    ssd.load_state_dict(content["best"])
    return ssd.eval(), row, categories
