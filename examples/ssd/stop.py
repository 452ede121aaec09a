"""A run that is told to stop ends in order."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SAME = 2.0  # seconds in which a second signal is the first one again: a launcher passes on what its workers got too


class Stop:
    """Set by a signal: the step that runs is finished, a checkpoint is written, and the run ends.

    A second signal ends it at once, and so does the first one while there is nothing to save.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self.told_at = 0.0
        self.nothing_to_save = False
        self.process = os.getpid()

    @property
    def code(self) -> int:
        """The exit code of a process that a signal stopped."""
        return 128 + (self.signal or 0)

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        before = {
            number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """What happens inside is not saved, so a signal ends it at once."""
        if self.signal is not None:
            raise SystemExit(self.code)
        self.nothing_to_save = True
        try:
            yield
        finally:
            self.nothing_to_save = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self.process:
            return  # a worker, just forked: what it means is for the process that trains to say
        again = self.signal is not None
        if again and time.monotonic() - self.told_at < SAME:
            return
        self.signal, self.told_at = number, time.monotonic()
        if again or self.nothing_to_save:
            raise SystemExit(self.code)


def left_to_parent(worker: int) -> None:
    """For workers that read images: Ctrl-C reaches them too, but is for the process that trains."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
