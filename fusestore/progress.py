"""How long steps report their progress, whoever displays it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

Progress = Callable[[int, int], None]
"""Called with (done, total), in units the stage names; `done` never decreases."""

MeasuredProgress = Callable[[int, int, str], None]
"""`Progress`, with a few words on what was measured on the way."""


def ignore_progress(_done: int, _total: int) -> None:
    """A `Progress` that displays nothing."""


class ProgressCounter:
    """Adds up what steps have done and reports the sum; used by one thread."""

    def __init__(self, total: int, progress: Progress) -> None:
        self._done, self._total, self._progress = 0, total, progress

    def add(self, count: int) -> None:
        """Count `count` more as done."""
        self._done += count
        self._progress(self._done, self._total)


class Reporter(Protocol):
    """Displays what a pipeline does: in the command line, in a notebook, or not at all."""

    def line(self, text: str) -> None:
        """Print one message."""

    def stage(self, title: str, unit: str) -> AbstractContextManager[Progress]:
        """Begin a long step; the progress it yields counts in `unit`."""

    def measured_stage(self, title: str, unit: str) -> AbstractContextManager[MeasuredProgress]:
        """Begin a long step that also reports a measurement."""


class SilentReporter:
    """Displays nothing."""

    def line(self, text: str) -> None:
        """Print nothing."""

    def stage(self, title: str, unit: str) -> AbstractContextManager[Progress]:
        """Ignore the progress."""
        del title, unit
        return nullcontext(ignore_progress)

    def measured_stage(self, title: str, unit: str) -> AbstractContextManager[MeasuredProgress]:
        """Ignore the progress and the measurement."""
        del title, unit
        return nullcontext(lambda _done, _total, _measured: None)
