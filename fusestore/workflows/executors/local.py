"""`run_local`: workers that are processes of this machine."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from types import FrameType

from fusestore.process_rank import Rank, process_rank
from fusestore.progress import Progress, Reporter
from fusestore.storage.replace import scratch_folder
from fusestore.workflows.executors.outcome import Outcome, check_outcomes, outcome_of
from fusestore.workflows.executors.shared_job import Job
from fusestore.workflows.executors.worker_process import (
    num_cores,
    place_of_worker,
    start_worker,
    threads_of_worker,
)

SECONDS_BETWEEN_LOOKS = 0.2
"""Seconds between two looks at the workers."""

_LOOKS_PER_REPORT = 5
_SECONDS_TO_END = 60.0


def run_local(job: Job, reporter: Reporter, *, workers: int = 2, cores: int | None = None) -> None:
    """Complete an artifact by several processes of this machine.

    A worker that ends early ends nothing else: the others take over its shards. A Ctrl-C or a
    SIGTERM is passed on to the workers, which write the shards that they have computed.

    Args:
        job: the command and its artifact.
        reporter: receives one progress, of all workers together.
        workers: number of processes.
        cores: threads of each; by default the cores of this machine, divided.

    Raises:
        EngineError: every worker failed; the message has the last message of each.
        KeyboardInterrupt: after a Ctrl-C or a SIGTERM, when all workers have ended.
    """
    with reporter.stage(f"{job.title} by {workers} workers", "rows") as progress:
        outcomes = run_workers(
            job.arguments,
            workers,
            reporter,
            lambda: report_rows(job, progress),
            place=process_rank(),
            cores=cores,
        )
    check_outcomes(job, outcomes)


def run_workers(
    arguments: tuple[str, ...],
    workers: int,
    reporter: Reporter,
    report: Callable[[], None],
    *,
    place: Rank = Rank(0, 1),  # noqa: B008 - a tuple of two numbers
    cores: int | None = None,
    expected: Collection[int] = (0,),
) -> list[Outcome]:
    """Run a command in several processes, each with its rank in the environment.

    Args:
        arguments: the command line after `fusestore`.
        workers: number of processes.
        reporter: receives a line about each worker that ends early.
        report: called every second, and when all workers have ended.
        place: of this process among those that start workers of the same artifact.
        cores: threads of each; by default the cores of this machine, divided.
        expected: exit codes of a worker that has done its work.

    Raises:
        KeyboardInterrupt: after a Ctrl-C or a SIGTERM, when all workers have ended.
    """
    first, world_size = place.rank * workers, place.world_size * workers
    threads = threads_of_worker(cores or max(1, num_cores() // workers))
    with scratch_folder("workers") as folder, sigterm_interrupts():
        files = [folder / str(worker) for worker in range(workers)]
        started: list[subprocess.Popen[bytes]] = []
        try:
            for worker, file in enumerate(files):
                variables = place_of_worker(first + worker, world_size, worker)
                started.append(start_worker(arguments, {**threads, **variables}, file))
            return _wait(started, files, reporter, report, expected)
        finally:
            _end(started)


def _wait(
    started: Sequence[subprocess.Popen[bytes]],
    files: Sequence[Path],
    reporter: Reporter,
    report: Callable[[], None],
    expected: Collection[int],
) -> list[Outcome]:
    outcomes: dict[int, Outcome] = {}
    looks = 0
    while len(outcomes) < len(started):
        for worker, process in enumerate(started):
            if worker in outcomes or process.poll() is None:
                continue
            outcomes[worker] = outcome = outcome_of(worker, process.returncode, files[worker])
            if outcome.code not in expected:
                reporter.line(f"Worker {worker} of {len(started)} {outcome.describe()}")
        if looks % _LOOKS_PER_REPORT == 0:
            report()
        looks += 1
        time.sleep(SECONDS_BETWEEN_LOOKS)
    report()
    return [outcomes[worker] for worker in range(len(started))]


def report_rows(job: Job, progress: Progress) -> None:
    """Report the rows of a job that are done by any writer."""
    rows = job.rows_done()
    if rows is not None:
        progress(*rows)


def _end(started: Sequence[subprocess.Popen[bytes]]) -> None:
    """End workers that still run: first as a Ctrl-C does, and after a while at once."""
    running = [process for process in started if process.poll() is None]
    try:
        for process in running:
            process.send_signal(signal.SIGINT)
        deadline = time.monotonic() + _SECONDS_TO_END
        for process in running:
            process.wait(max(0.0, deadline - time.monotonic()))
    except (KeyboardInterrupt, subprocess.TimeoutExpired):
        for process in running:
            process.kill()
        for process in running:
            process.wait()
    for process in started:
        if process.stdin is not None:
            process.stdin.close()


@contextlib.contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Inside, a SIGTERM is a Ctrl-C: schedulers send it before they kill."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
