"""A detector being trained: what a run is made of, one step, and checkpoints. `loop` goes through an epoch."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from examples.ssd import augment, checkpoint, resuming
from examples.ssd.annotations import Annotations
from examples.ssd.augment import seeded
from examples.ssd.average import Average
from examples.ssd.configurations import Configuration, Recipe
from examples.ssd.data import Batch, Epoch, Images
from examples.ssd.errors import CheckpointError, RequestError, TrainingError
from examples.ssd.model import SSD
from examples.ssd.options import AMP, Options, norms, prepared, wrapped
from examples.ssd.processes import Processes
from examples.ssd.schedule import learning_rate, optimiser, set_learning_rate
from examples.ssd.stop import Stop


@dataclass
class Progress:
    """Where a run stands: `step` steps of `epoch` are done."""

    epoch: int = 0
    step: int = 0


class Training:
    """A detector being trained. What it is made of is decided once, here."""

    def __init__(
        self,
        ssd: SSD,
        row: Configuration,
        recipe: Recipe,
        annotations: Annotations,
        everyone: Processes,
        options: Options,
        folder: Path,
        stop: Stop | None = None,
    ) -> None:
        self.row, self.recipe, self.annotations, self.everyone = row, recipe, annotations, everyone
        self.options, self.checkpoint, self.stop = options, folder / "last.pt", stop or Stop()
        self.run = resuming.facts(recipe, options, annotations, everyone)
        resuming.check_alike(everyone.gathered(self.run))
        self.images = Images(
            annotations, (augment.for_training if options.augment else augment.plain)(row.size)
        )
        self.device = everyone.device
        self.ssd = prepared(ssd, options, everyone)
        self.net = wrapped(self.ssd, options, everyone)
        self.norms = norms(options, everyone)
        self.sgd: torch.optim.Optimizer = optimiser(self.ssd, recipe, options.weight_decay)
        self.amp = AMP[options.amp]
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.amp is torch.float16)
        self.average = None if options.ema is None else Average(self.ssd, options.ema)
        self.progress = Progress()

    def epoch(self) -> Epoch:
        """What is left of the epoch that is next.

        Raises:
            RequestError: its batches cannot be dealt to the processes.
        """
        if self.recipe.batch % self.everyone.share.world:
            raise RequestError(
                f"a batch of {self.recipe.batch} cannot be dealt to {self.everyone.share.world} processes."
            )
        progress, share = self.progress, self.everyone.share
        epoch = Epoch(
            len(self.images),
            self.recipe.batch,
            self.options.seed,
            progress.epoch,
            first=progress.step,
            share=share,
        )
        if epoch.batch < share.world:
            raise RequestError(
                f"{len(self.images)} images are too few for {share.world} processes."
            )
        return epoch

    @property
    def steps_done(self) -> int:
        """Of the whole run."""
        return self.progress.epoch * self.epoch().batches + self.progress.step

    @property
    def finished(self) -> bool:
        return self.progress.epoch >= self.recipe.epochs

    # ---- a step

    def enter_epoch(self) -> float:
        """Make ready for the steps of the epoch that is next; gives its learning rate."""
        rate = learning_rate(self.recipe, self.progress.epoch)
        set_learning_rate(self.sgd, rate)
        self.net.train()
        if self.options.freeze_norms:
            for norm in (
                m for m in self.ssd.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)
            ):
                norm.eval()
        return rate

    def step(self, batch: Batch) -> dict[str, float]:
        """One step of all processes together; what it cost.

        Raises:
            TrainingError: the loss is no number any more.
        """
        number = self.steps_done
        # Whatever is random in the network depends on the step alone, so that a resumed run sees the same.
        torch.manual_seed(seeded(self.options.seed, number, self.everyone.share.rank))
        batch = batch.to(self.device)
        images = self.ssd.prepare(batch.images)
        if self.options.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        with self.norms, torch.autocast(self.device.type, self.amp, enabled=self.amp is not None):
            offsets, logits = self.net(images)
        own = self.ssd.losses(offsets, logits, batch.boxes, batch.labels, batch.counts)
        sums = torch.stack([v.detach().float() for v in (own.boxes, own.classes, own.positives)])
        boxes, classes, positives = self.everyone.summed(sums.cpu().double()).tolist()
        positives = max(1.0, positives)
        values = {
            "loss": (boxes + classes) / positives,
            "boxes": boxes / positives,
            "classes": classes / positives,
        }
        if not math.isfinite(values["loss"]):
            raise self._broken(f"the loss is {values['loss']}", number)
        # DistributedDataParallel averages gradients; the positives are those of all processes.
        self._descend((own.boxes + own.classes) * self.everyone.share.world / positives)
        if self.average is not None:
            self.average.update(self.ssd, number)
        self.progress.step += 1
        return values

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
        return TrainingError(
            f"{what} at step {number}: training stops, {kept}. The usual way out is --resume with a lower --lr."
        )

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
        self.everyone.agree(
            self.ssd.buffers()
        )  # each has seen its own images: the first one's statistics count
        if self.average is not None:
            self.everyone.agree(self.average.weights.values())
        broken = next(
            (name for name, v in self.ssd.state_dict().items() if not torch.isfinite(v).all()), None
        )
        if broken is not None:
            raise self._broken(f"{broken} is no number any more", self.steps_done)
        self.everyone.from_first(lambda: checkpoint.save(self.checkpoint, self._content()))

    def _content(self) -> dict[str, Any]:
        return {
            **checkpoint.described(self.row, self.annotations.categories),
            "model": self.ssd.state_dict(),
            "average": None if self.average is None else self.average.weights,
            "optimiser": self.sgd.state_dict(),
            "scaler": self.scaler.state_dict(),
            "epoch": self.progress.epoch,
            "step": self.progress.step,
            "run": dict(self.run),
        }

    def resume(self) -> str | None:
        """Go on where the checkpoint was written, which the first process reads; what is otherwise now, for people.

        Raises:
            CheckpointError: it is of another network or run.
        """
        path = self.checkpoint
        content = self.everyone.from_first(lambda: checkpoint.load(path))
        differences = resuming.differences(
            path, content, self.row, self.annotations.categories, self.run
        )
        checkpoint.restore(self.ssd, content["model"], str(path))
        if self.average is not None:
            average = content["average"] or {}
            checkpoint.check_weights(self.ssd, average, str(path))
            self.average.weights = {k: v.to(self.device) for k, v in average.items()}
        try:
            self.sgd.load_state_dict(content["optimiser"])
            self.scaler.load_state_dict(content["scaler"])
            if any(
                state["momentum_buffer"].shape != p.shape for p, state in self.sgd.state.items()
            ):
                raise ValueError("it is of other parameters")
        except (
            AttributeError,
            IndexError,
            KeyError,
            RuntimeError,
            TypeError,
            ValueError,
        ) as problem:
            raise CheckpointError(
                f"{path}: the state of its optimiser does not fit: {problem}."
            ) from problem
        self.progress = Progress(content["epoch"], content["step"])
        return differences
