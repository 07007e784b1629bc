"""Process-wide state that a run changes and restores: determinism and signal handlers."""

from __future__ import annotations

import contextlib
import hashlib
import signal
import threading
import time
from collections.abc import Iterator

import torch

_ONE_CTRL_C_SECONDS = 2.0
"""Signals within this time count as one: the terminal and a launcher send the same Ctrl-C."""


@contextlib.contextmanager
def deterministic(seed: int) -> Iterator[None]:
    """Deterministic algorithms and a seed inside; restores settings and random state afterwards."""
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    devices = list(range(torch.cuda.device_count()))
    with torch.random.fork_rng(devices):
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(enabled, warn_only=warn_only)


def seed_step(seed: int, step: int, rank: int) -> None:
    """Set torch's random state of a step, such as for dropout.

    It follows from its arguments alone, so no checkpoint needs it, and the processes of a run draw
    different numbers.
    """
    digest = hashlib.sha256(f"{seed} {step} {rank}".encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:8], "little"))


class StopSignals:
    """Records SIGINT and SIGTERM; a second Ctrl-C raises KeyboardInterrupt at once."""

    def __init__(self) -> None:
        self._requested_at: float | None = None
        self._ends_at_once = False

    @property
    def requested(self) -> bool:
        """Whether a signal came, so that the run should end at the next resumable step."""
        return self._requested_at is not None

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside, a signal raises KeyboardInterrupt at once, because the work can be repeated."""
        self._ends_at_once = True
        try:
            yield
        finally:
            self._ends_at_once = False

    def note(self, number: int, frame: object) -> None:
        """The signal handler."""
        del frame
        now = time.monotonic()
        first = self._requested_at
        self._requested_at = now if first is None else first
        again = first is not None and now - first > _ONE_CTRL_C_SECONDS
        if self._ends_at_once or (again and number == signal.SIGINT):
            raise KeyboardInterrupt


@contextlib.contextmanager
def stop_signals() -> Iterator[StopSignals]:
    """Record SIGINT and SIGTERM instead of ending the process (in the main thread only)."""
    stops = StopSignals()
    if threading.current_thread() is not threading.main_thread():
        yield stops
        return
    before = {
        number: signal.signal(number, stops.note) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield stops
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
