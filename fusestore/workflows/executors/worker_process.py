"""One worker: the command in a process of its own, with its place among the workers."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from fusestore.workflows.executors.outcome import output_files

PROGRAM = (sys.executable, "-c", "from fusestore_cli.worker import main; main()")
"""Runs the command of its arguments until its standard input is closed: see `start_worker`."""

_THREADS = (
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"),
    *("NUMBA_NUM_THREADS", "POLARS_MAX_THREADS", "RAYON_NUM_THREADS"),
)


def start_worker(
    arguments: tuple[str, ...], environment: Mapping[str, str], file: Path
) -> subprocess.Popen[bytes]:
    """Start a worker.

    Its standard input is a pipe from this process: when this process ends, however it ends, the
    pipe closes and the worker ends. A Ctrl-C of the terminal reaches only this process, which
    decides what the workers are sent.

    Args:
        arguments: the command line after `fusestore`.
        environment: variables that are set beside those of this process.
        file: what the worker prints goes to the `output_files` of this one.
    """
    out, err = output_files(file)
    with out.open("wb") as printed, err.open("wb") as said:
        return subprocess.Popen(  # noqa: S603 - our own program
            [*PROGRAM, *arguments],
            stdin=subprocess.PIPE,
            stdout=printed,
            stderr=said,
            env={**os.environ, **environment},
            start_new_session=True,
        )


def place_of_worker(rank: int, world_size: int, local_rank: int) -> dict[str, str]:
    """The variables by which a worker chooses its first shard and its GPU: those of torchrun."""
    return {"RANK": str(rank), "WORLD_SIZE": str(world_size), "LOCAL_RANK": str(local_rank)}


def threads_of_worker(cores: int) -> dict[str, str]:
    """The variables that limit a worker's threads; what the user has set stays."""
    return {name: str(cores) for name in _THREADS if name not in os.environ}


def num_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
