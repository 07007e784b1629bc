"""How long steps tell what they are doing, without knowing who listens."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

Progress = Callable[[int, int], None]
"""Called with (done, total), in units the stage names; `done` never decreases."""

MeasuredProgress = Callable[[int, int, str], None]
"""`Progress`, and in a few words what was measured on the way."""


def ignore_progress(_done: int, _total: int) -> None:
    """The listener who does not listen."""


class Reporter(Protocol):
    """Who listens to a pipeline: the command line, a notebook, nobody."""

    def line(self, text: str) -> None:
        """Say one thing."""

    def stage(self, title: str, unit: str) -> AbstractContextManager[Progress]:
        """Begin a long step; the progress it yields counts in `unit`."""

    def measured_stage(self, title: str, unit: str) -> AbstractContextManager[MeasuredProgress]:
        """Begin a long step that says more than how far it is."""


class SilentReporter:
    """Says nothing."""

    def line(self, text: str) -> None:
        """Say nothing."""

    def stage(self, title: str, unit: str) -> AbstractContextManager[Progress]:
        """Count for nobody."""
        del title, unit
        return nullcontext(ignore_progress)

    def measured_stage(self, title: str, unit: str) -> AbstractContextManager[MeasuredProgress]:
        """Count for nobody."""
        del title, unit
        return nullcontext(lambda _done, _total, _measured: None)
