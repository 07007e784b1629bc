"""How workers ended, and what that means for their job."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fusestore.errors import EngineError
from fusestore.workflows.executors.shared_job import Job

_MAX_MESSAGE = 2_000


@dataclass(frozen=True)
class Outcome:
    """How one worker ended.

    Attributes:
        worker: its number, from 0.
        code: its exit code; negative for a signal; None if its machine was lost.
        message: the last message that it printed.
        printed: its standard output.
    """

    worker: int
    code: int | None
    message: str
    printed: str = ""

    @property
    def failed(self) -> bool:
        """Whether the worker ended before the artifact was complete."""
        return self.code != 0

    def describe(self) -> str:
        """How it ended, as the end of a sentence."""
        if self.code is None:
            return f"was lost: {self.message}" if self.message else "was lost"
        if self.code < 0:
            return f"was killed by {_signal_name(-self.code)}"
        return f"ended with exit code {self.code}: {self.message or 'it printed nothing'}"


def outcome_of(worker: int, code: int, file: Path) -> Outcome:
    """The outcome of a process that `start_worker` started with this file."""
    printed, said = (
        path.read_text(encoding="utf-8", errors="replace") for path in output_files(file)
    )
    return Outcome(worker, code, last_message(said), printed)


def output_files(file: Path) -> tuple[Path, Path]:
    """The files of a worker's standard output and standard error."""
    return file.with_suffix(".out"), file.with_suffix(".err")


def last_message(printed: str) -> str:
    """The error that a command ended with, or else the last line that it printed."""
    _, found, message = printed.rpartition("Error: ")
    if found:
        return " ".join(message.split())[:_MAX_MESSAGE]
    lines = [line.strip() for line in printed.splitlines() if line.strip()]
    return lines[-1][:_MAX_MESSAGE] if lines else ""


def check_outcomes(job: Job, outcomes: Sequence[Outcome]) -> None:
    """Check that a worker saw the artifact complete: each ends with success only then.

    Raises:
        EngineError: every worker failed.
    """
    if any(not outcome.failed for outcome in outcomes):
        return
    reasons: dict[str, list[int]] = {}
    for outcome in outcomes:
        reasons.setdefault(outcome.describe(), []).append(outcome.worker)
    lines = [
        f"Worker{'s' * (len(workers) > 1)} {', '.join(map(str, workers))} {reason}"
        for reason, workers in reasons.items()
    ]
    raise EngineError(
        f"All {len(outcomes)} workers of {job.title} ended before it was complete. Finished shards "
        "are kept; the same command continues.\n" + "\n".join(lines)
    )


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
