"""A detector being trained: one step, one epoch, and checkpoints that resume to the same state."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from examples.ssd import data
from examples.ssd.configurations import Configuration, Recipe
from examples.ssd.data import Batch, CocoImages, seeded
from examples.ssd.model import Detector, build
from examples.ssd.processes import Processes, Stop
from examples.ssd.programs import DetectionError, read_tensors, sentence, write_atomically

FORMAT = 2  # of checkpoints
AMP = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}
# May change at --resume: the way out of a loss that is no number, what changes sums by rounding
# only (a machine that is gone must not end the run), and what no step depends on.
MAY_CHANGE = ("lr", "device", "processes", "workers", "save_every", "max_steps")


@dataclass(frozen=True)
class Options(Recipe):
    """Settings of training: the recipe, and what belongs to the run.

    augment: as SSD does; else images are only resized. amp: off, bf16 or fp16.
    ema: decay of the averaged weights, such as 0.999; 0: none are kept.
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
    """A detector being trained; what it is made of is decided once, here."""

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
        if options.batch % everyone.world or len(images) < everyone.world:
            raise DetectionError(f"a batch cannot be dealt to {everyone.world} processes.")
        learning = not options.freeze_norms and any(map(is_norm, ssd.modules()))
        if learning and min(options.batch, len(images)) < 2 * everyone.world:
            raise DetectionError("batch norms need two images a process; or give --freeze-norms.")
        self.row, self.images, self.everyone, self.options = row, images, everyone, options
        self.stop, self.path = stop or Stop(), folder / "last.pt"
        own = {"images": images.digest(), "device": everyone.device.type}
        self.run = {**asdict(options), **own, "processes": everyone.world}
        for rank, other in enumerate(everyone.gather(self.run)):
            if other != self.run:
                raise DetectionError(f"process {rank} has {changes(self.run, other)}.")
        self.net: nn.Module = ssd.to(everyone.device)
        self.ssd, still = ssd, options.freeze_norms
        if everyone.world > 1:
            self.net = DistributedDataParallel(ssd, broadcast_buffers=not still)
        learned = [p for p in ssd.parameters() if p.requires_grad]
        self.sgd = torch.optim.SGD(learned, options.lr, 0.9, weight_decay=options.weight_decay)
        self.amp = AMP[options.amp]
        enabled = self.amp is torch.float16
        self.scaler = torch.amp.GradScaler(everyone.device.type, enabled=enabled)
        self.average = averaged(ssd, options.ema) if options.ema else None
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
        rate = schedule(self.sgd, options, epoch)
        self.net.train()
        for norm in self.ssd.modules():
            if options.freeze_norms and is_norm(norm):
                norm.eval()
        batches = data.epoch_batches(len(self.images), options.batch, options.seed, epoch)
        own = [batch[everyone.rank :: everyone.world] for batch in batches[done:]]
        transform = data.for_training(self.row.size, options.augment)
        read = or_problem(data.loader(self.images, transform, own, options.workers))
        title, quiet = f"epoch {epoch + 1}/{options.epochs}", log is None
        for batch in tqdm(read, title, len(batches), initial=done, leave=False, disable=quiet):
            problem = batch if isinstance(batch, Exception) else None
            told = problem or self.stop.code or 0 < options.max_steps <= self.steps
            due = time.monotonic() - self.saved >= 60 * options.save_every
            # All decide together: one that went on alone would wait for the others for ever.
            end, now = everyone.sum(torch.tensor([bool(told), due]).int())
            if end or now:
                self.save()
            if problem is not None:
                raise DetectionError(
                    f"{sentence(problem).rstrip('. ')}. {self.path} holds the run up to step "
                    f"{self.steps}: once this is mended, --resume goes on."
                ) from problem
            if end:
                return False
            values = self.step(batch)  # type: ignore[arg-type]
            if log is not None:
                log(self.steps, {**values, "rate": rate})
        self.save()
        return True

    def step(self, batch: Batch) -> dict[str, float]:
        """Take one step of all processes together, and return what it cost."""
        device, (pixels, targets, _) = self.everyone.device, batch
        # What is random in the network depends on the step alone: a resumed run sees the same.
        torch.manual_seed(seeded(self.options.seed, self.steps, self.everyone.rank))
        images = list(pixels.to(device, non_blocking=True).float() / 255)
        targets = [{k: v.to(device) for k, v in target.items()} for target in targets]
        with torch.autocast(device.type, self.amp, enabled=self.amp is not None):
            losses = self.net(images, targets)
        # torchvision divides by this process's positives, at least 1; here those of all count.
        own = losses["positives"].clamp(min=1)
        boxes, classes = losses["bbox_regression"] * own, losses["classification"] * own
        told = torch.stack([boxes, classes, losses["positives"]]).detach().cpu().double()
        *sums, positives = self.everyone.sum(told)
        positives = max(1.0, positives)
        values = {"boxes": sums[0] / positives, "classes": sums[1] / positives}
        values["loss"] = values["boxes"] + values["classes"]
        self._check("the loss", torch.tensor(values["loss"]))
        self.sgd.zero_grad()
        # DistributedDataParallel averages the gradients.
        self.scaler.scale((boxes + classes) * self.everyone.world / positives).backward()
        self.scaler.step(self.sgd)
        self.scaler.update()
        if self.average is not None:
            self.average.update_parameters(self.ssd)
        self.steps += 1
        return values

    def _check(self, what: str, value: Tensor) -> None:
        if not value.isfinite().all():
            kept = f"{self.path} from before is kept" if self.path.is_file() else "none was saved"
            raise DetectionError(
                f"{what} is no number any more at step {self.steps}; of checkpoints, {kept}. The "
                "usual way out is --resume with a lower --lr."
            )

    # ---- checkpoints

    def save(self) -> None:
        """Write a checkpoint, unless a weight or a statistic is no number."""
        if self.everyone.world > 1:
            for value in self.ssd.buffers():  # each has seen its own images: the first one's count
                torch.distributed.broadcast(value, 0)
        for name, value in self.ssd.state_dict().items():
            self._check(name, value)
        content = {
            "format": FORMAT,
            "configuration": asdict(self.row),
            "categories": self.images.categories,
            "pixels": (self.ssd.transform.image_mean, self.ssd.transform.image_std),
            "model": self.ssd.state_dict(),
            "average": self.average and self.average.module.state_dict(),
            "optimiser": self.sgd.state_dict(),
            "scaler": self.scaler.state_dict(),
            "steps": self.steps,
            "run": self.run,
        }
        self.everyone.from_first(lambda: save(self.path, content))
        self.saved = time.monotonic()

    def resume(self) -> str:
        """Go on where the checkpoint was written; return what is otherwise now and may be."""
        content = self.everyone.from_first(lambda: load(self.path))
        then = {**content["run"], **asdict(content["configuration"])}
        now = {**self.run, **asdict(self.row)}
        refused = changes({k: v for k, v in then.items() if k not in MAY_CHANGE}, now)
        if refused or content["categories"] != self.images.categories:
            raise DetectionError(
                f"{self.path} is of a run with {refused or 'other categories'}; resume with what it "
                "was started with, or name another --out."
            )
        restore(self.ssd, content["model"], self.path)
        if self.average is not None:
            restore(self.average.module, content["average"], self.path)
            self.average.n_averaged.fill_(content["steps"])
        self.sgd.load_state_dict(content["optimiser"])
        self.scaler.load_state_dict(content["scaler"])
        self.steps = content["steps"]
        return changes({k: then[k] for k in ("lr", "device", "processes")}, now)


def is_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm)


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return what of `before` is otherwise now, with both values, for people."""
    return ", ".join(f"{k} {v} (now {now[k]})" for k, v in before.items() if v != now[k])


def or_problem(batches: Iterable[Batch]) -> Iterator[Batch | Exception]:
    """Yield the batches; where reading fails, the problem instead, as the last one."""
    try:
        yield from batches
    except (DetectionError, RuntimeError) as problem:  # RuntimeError: a reading process was killed
        yield problem


def schedule(sgd: torch.optim.Optimizer, recipe: Recipe, epoch: int) -> float:
    """Set the learning rate of an epoch: a line up over the warm-up, then half a cosine to zero."""

    def factor(epoch: int) -> float:
        if epoch < recipe.warmup:
            return (epoch + 1) / (recipe.warmup + 1)
        share = (epoch - recipe.warmup) / max(1, recipe.epochs - recipe.warmup)
        return (1 + math.cos(math.pi * share)) / 2

    for group in sgd.param_groups:
        group["initial_lr"] = recipe.lr
    return float(LambdaLR(sgd, factor, last_epoch=epoch - 1).get_last_lr()[0])


def averaged(ssd: Detector, decay: float) -> AveragedModel:
    """Return the running average of the weights, which follows faster early on."""

    def update(old: Tensor, new: Tensor, count: Tensor | int) -> Tensor:
        share = min(decay, (1 + int(count)) / (10 + int(count)))
        return new.lerp(old, share) if new.is_floating_point() else new

    return AveragedModel(ssd, avg_fn=update, use_buffers=True)


# ---- checkpoint files


class Known(NamedTuple):
    """A trained network, what it is made of and what its labels 1.. mean, by category id."""

    ssd: Detector
    row: Configuration
    categories: dict[int, str]


def save(path: Path, content: Mapping[str, Any]) -> None:
    """Write a checkpoint; if the disk does not take it, what was there before is kept."""
    try:
        with write_atomically(path) as part:
            torch.save(content, part)
    except (OSError, RuntimeError) as problem:  # torch's writer turns the disk's errors into these
        raise DetectionError(f"{path} could not be written ({sentence(problem)}).") from problem


def load(path: Path) -> dict[str, Any]:
    """Return the content of a checkpoint, its configuration among it."""
    content = read_tensors(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise DetectionError(f"{path} is no checkpoint of these programs, or of another version.")
    try:
        fields = content["configuration"]
        row = Configuration(**{**fields, "recipe": Recipe(**fields["recipe"])})
    except (TypeError, KeyError, DetectionError) as problem:
        raise DetectionError(f"{path}: its configuration is not understood: {problem}.") from None
    return {**content, "configuration": row}


def detector(path: Path) -> Known:
    """Return the network of a checkpoint in eval mode, with its averaged weights if it has any."""
    content = load(path)
    row, categories, (mean, std) = (content[k] for k in ("configuration", "categories", "pixels"))
    ssd = build(row, 1 + len(categories), image_mean=mean, image_std=std)
    restore(ssd, content["average"] or content["model"], path)
    return Known(ssd.eval(), row, categories)


def restore(net: nn.Module, weights: Any, path: Path) -> None:
    """Load all weights, or say which do not fit."""
    try:
        net.load_state_dict(weights)
    except (RuntimeError, AttributeError, TypeError) as problem:
        why = " ".join(str(problem).split())[:300]
        raise DetectionError(f"{path}: its weights are of another network: {why}") from None
