"""An epoch of training: batch after batch, and what ends it before its time."""

from collections.abc import Iterable, Iterator

from tqdm import tqdm

from examples.ssd.data import Batch, training_batches
from examples.ssd.errors import DataError, TrainingError
from examples.ssd.journal import Journal
from examples.ssd.programs import sentence
from examples.ssd.training import Progress, Training


def run_epoch(training: Training, journal: Journal | None, shown: bool = False) -> bool:
    """Go on to the end of the epoch, which a checkpoint marks. False: stopped before it, with a checkpoint as well.

    Raises:
        TrainingError: the loss or a weight is no number any more, and the checkpoint from before is kept; or an image
            cannot be read, and a checkpoint is written.
    """
    epoch, rate = training.epoch(), training.enter_epoch()
    pinned = training.device.type == "cuda"
    bar = tqdm(
        _or_problem(training_batches(training.images, epoch, training.options.workers, pinned)),
        desc=f"epoch {epoch.epoch + 1}/{training.recipe.epochs}",
        initial=epoch.first,
        total=epoch.batches,
        leave=False,
        disable=not shown,
    )
    with bar:
        for batch in bar:
            number = training.steps_done
            # All processes decide together: one that went on alone would wait for the others for ever.
            if training.everyone.any(isinstance(batch, Exception) or _told_to_stop(training)):
                training.save()
                if isinstance(batch, Exception):
                    raise _unreadable(batch, training) from batch
                return False
            values = training.step(batch)
            bar.set_postfix(loss=f"{values['loss']:.3f}")
            if journal is not None and number % training.options.log_every == 0:
                journal.write("training", number, {**values, "rate": rate})
    training.progress = Progress(epoch.epoch + 1)
    training.save()
    return True


def _or_problem(batches: Iterable[Batch]) -> Iterator[Batch | Exception]:
    """The batches; where reading fails, the problem instead, as the last one."""
    try:
        yield from batches
    except (
        DataError,
        RuntimeError,
    ) as problem:  # RuntimeError: a process that reads images was killed
        yield problem


def _told_to_stop(training: Training) -> bool:
    most = training.options.max_steps
    return training.stop.signal is not None or (most is not None and training.steps_done >= most)


def _unreadable(problem: Exception, training: Training) -> TrainingError:
    said, where = sentence(problem).rstrip(". "), training.checkpoint
    return TrainingError(
        f"{said}. {where} holds the run up to step {training.steps_done}: once this is mended, --resume goes on."
    )
