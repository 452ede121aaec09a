"""The training loop: steps, checkpoints, stops and starts. `train` is the program around it."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from examples.ssd import checkpoint
from examples.ssd.annotations import Annotations
from examples.ssd.augment import seeded
from examples.ssd.average import Average
from examples.ssd.configurations import Configuration, Recipe
from examples.ssd.data import Batch, Epoch, Images, training_batches
from examples.ssd.errors import CheckpointError, RequestError, TrainingError
from examples.ssd.journal import Journal
from examples.ssd.loss import losses
from examples.ssd.model import SSD
from examples.ssd.options import AMP, Options, prepared, wrapped
from examples.ssd.processes import Processes
from examples.ssd.schedule import learning_rate, optimiser, set_learning_rate
from examples.ssd.stop import Stop


@dataclass
class Progress:
    """Where a run stands: `step` steps of `epoch` are done."""

    epoch: int = 0
    step: int = 0


class Training:
    """A detector being trained. What it is made of is decided once, here; `run` does the rest."""

    def __init__(
        self,
        ssd: SSD,
        row: Configuration,
        recipe: Recipe,
        images: Images,
        everyone: Processes,
        options: Options,
        folder: Path,
        stop: Stop | None = None,
    ) -> None:
        self.row, self.recipe, self.images, self.everyone = row, recipe, images, everyone
        self.options, self.folder, self.stop = options, folder, stop or Stop()
        self.device = everyone.device
        self.ssd = prepared(ssd, options, everyone)
        self.net = wrapped(self.ssd, options, everyone)
        self.sgd: torch.optim.Optimizer = optimiser(self.ssd, recipe, options.weight_decay)
        self.amp = AMP[options.amp]
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.amp is torch.float16)
        self.average = None if options.ema is None else Average(self.ssd, options.ema)
        self.progress = Progress()

    @property
    def annotations(self) -> Annotations:
        return self.images.annotations

    @property
    def checkpoint(self) -> Path:
        return self.folder / "last.pt"

    # ---- the loop

    def run_epoch(self, journal: Journal | None, shown: bool = False) -> bool:
        """Go on to the end of the epoch. False: stopped before it, with a checkpoint.

        Raises:
            TrainingError: the loss or a weight is no number any more.
        """
        epoch = self._epoch()
        loader = training_batches(self.images, epoch, self.options.workers, self.device.type == "cuda")
        rate = learning_rate(self.recipe, self.progress.epoch)
        set_learning_rate(self.sgd, rate)
        self._train_mode()
        bar = tqdm(
            loader,
            desc=f"epoch {self.progress.epoch + 1}/{self.recipe.epochs}",
            initial=self.progress.step,
            total=epoch.batches,
            leave=False,
            disable=not shown,
        )
        for batch in bar:
            number = self.progress.epoch * epoch.batches + self.progress.step
            values, stop = self._step(batch, number)
            bar.set_postfix(loss=f"{values['loss']:.3f}")
            self.progress.step += 1
            if journal is not None and number % self.options.log_every == 0:
                journal.write("training", number, {**values, "rate": rate})
            if stop or number + 1 == self.options.max_steps:
                self.save()
                return False
        self.progress = Progress(self.progress.epoch + 1)
        self.save()
        return True

    def _epoch(self) -> Epoch:
        if self.recipe.batch % self.everyone.share.world:
            raise RequestError(
                f"a batch of {self.recipe.batch} cannot be dealt to {self.everyone.share.world} processes."
            )
        progress, share = self.progress, self.everyone.share
        epoch = Epoch(
            len(self.images), self.recipe.batch, self.options.seed, progress.epoch, first=progress.step, share=share
        )
        if epoch.batch < share.world:
            raise RequestError(f"{len(self.images)} images are too few for {share.world} processes.")
        return epoch

    def _train_mode(self) -> None:
        self.net.train()
        if self.options.freeze_norms:
            for norm in (m for m in self.ssd.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)):
                norm.eval()

    def _step(self, batch: Batch, number: int) -> tuple[dict[str, float], bool]:
        """One step of all processes together; what it cost, and whether any process was told to stop."""
        # Whatever is random in the network depends on the step alone, so that a resumed run sees the same.
        torch.manual_seed(seeded(self.options.seed, number, self.everyone.share.rank))
        batch = batch.to(self.device)
        images = self.ssd.prepare(batch.images)
        if self.options.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, self.amp, enabled=self.amp is not None):
            offsets, logits = self.net(images)
        own = losses(offsets, logits, self.ssd.priors, batch.boxes, batch.labels, batch.counts)
        told = own.boxes.new_tensor(self.stop.signal is not None)
        sums = torch.stack([v.detach().double() for v in (own.boxes, own.classes, own.positives, told)])
        boxes, classes, positives, stop = self.everyone.summed(sums).tolist()
        positives = max(1.0, positives)
        values = {"loss": (boxes + classes) / positives, "boxes": boxes / positives, "classes": classes / positives}
        if not math.isfinite(values["loss"]):
            raise self._broken(f"the loss is {values['loss']}", number)
        # DistributedDataParallel averages gradients; the positives are those of all processes.
        self._descend((own.boxes + own.classes) * self.everyone.share.world / positives)
        if self.average is not None:
            self.average.update(self.ssd, number)
        return values, stop > 0

    def _descend(self, loss: Tensor) -> None:
        self.sgd.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.sgd)
        self.scaler.update()

    def _broken(self, what: str, number: int) -> TrainingError:
        kept = (
            f"the checkpoint {self.checkpoint} from before is kept"
            if self.checkpoint.is_file()
            else "there is no checkpoint yet"
        )
        return TrainingError(f"{what} at step {number}: training stops, {kept}. A lower --lr is the usual way out.")

    @contextmanager
    def averaged(self) -> Iterator[SSD]:
        """The detector with its averaged weights, for a while; as it is, if there are none."""
        if self.average is None:
            yield self.ssd
            return
        own = {k: v.clone() for k, v in self.ssd.state_dict().items()}
        try:
            self.ssd.load_state_dict(self.average.weights)
            yield self.ssd
        finally:
            self.ssd.load_state_dict(own)

    # ---- checkpoints

    def save(self) -> None:
        """Write a checkpoint, unless a weight or a statistic is no number.

        Raises:
            TrainingError: one is; the checkpoint from before is kept.
        """
        self.everyone.agree(self.ssd.buffers())  # each has seen its own images: the first one's statistics count
        if self.average is not None:
            self.everyone.agree(self.average.weights.values())
        broken = next((name for name, v in self.ssd.state_dict().items() if not torch.isfinite(v).all()), None)
        if broken is not None:
            raise self._broken(f"{broken} is no number any more", self.progress.step)
        if self.everyone.first:
            checkpoint.save(self.checkpoint, self.content())
        self.everyone.wait()

    def content(self) -> dict[str, Any]:
        return {
            **checkpoint.described(self.row, self.annotations.categories),
            "model": self.ssd.state_dict(),
            "average": None if self.average is None else self.average.weights,
            "optimiser": self.sgd.state_dict(),
            "scaler": self.scaler.state_dict(),
            "epoch": self.progress.epoch,
            "step": self.progress.step,
            "run": self._run(),
        }

    def _run(self) -> dict[str, int]:
        """What must not change between stop and resume, or the images would come in another order."""
        return {"seed": self.options.seed, "batch": self.recipe.batch, "images": len(self.images)}

    def resume(self, path: Path) -> None:
        """Go on where a checkpoint was written.

        Raises:
            CheckpointError: it is of another network or run.
        """
        content = checkpoint.load(path)
        if "optimiser" not in content:
            raise CheckpointError(f"{path} has weights only; start a new run from it with --init-from.")
        if checkpoint.categories_in(content) != self.annotations.categories:
            known, asked = (c.classes for c in (checkpoint.categories_in(content), self.annotations.categories))
            raise CheckpointError(f"{path} is of {known} classes with the background, the data has {asked}, or others.")
        if checkpoint.configuration_in(content) != self.row:
            name = checkpoint.configuration_in(content).name
            raise CheckpointError(
                f"{path} is of {name}, set up otherwise than {self.row.name} is now; resume with the options it was "
                "started with."
            )
        changed = [f"{k} {v} (now {self._run()[k]})" for k, v in content["run"].items() if v != self._run()[k]]
        if changed:
            raise CheckpointError(f"{path} is of a run with {', '.join(changed)}; it cannot be resumed as another.")
        checkpoint.restore(self.ssd, content["model"], str(path))
        self.sgd.load_state_dict(content["optimiser"])
        self.scaler.load_state_dict(content["scaler"])
        self.progress = Progress(content["epoch"], content["step"])
        if (self.average is None) != (content["average"] is None):
            had = "without" if content["average"] is None else "with"
            raise CheckpointError(f"{path} is of a run {had} --ema; resume it {had} --ema.")
        if self.average is not None:
            checkpoint.check_weights(self.ssd, content["average"], str(path))
            self.average.weights = {k: v.to(self.device) for k, v in content["average"].items()}
