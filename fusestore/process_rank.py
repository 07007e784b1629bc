"""The rank of this process, from the environment variables of torchrun, Slurm and Kubernetes."""

from __future__ import annotations

import os
from typing import NamedTuple


class Rank(NamedTuple):
    """One of `world_size` processes, counted from 0."""

    rank: int
    world_size: int


_VARIABLES = (
    ("RANK", "WORLD_SIZE", None),
    ("SLURM_PROCID", "SLURM_NTASKS", None),
    ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_MIN"),
    ("JOB_COMPLETION_INDEX", "WORLD_SIZE", None),
)
"""Rank, world size, and the lowest rank if that is not 0: torchrun, srun, a Slurm array, and an
indexed job of Kubernetes. Kubernetes sets no world size, so the job has to."""


def process_rank() -> Rank:
    """The rank of this process among those started with it; (0, 1) if no variable is set."""
    alone = Rank(0, 1)
    for rank_name, size_name, lowest_name in _VARIABLES:
        rank, size = _number(rank_name), _number(size_name)
        if size is None or size <= 1:
            continue
        if rank is not None:
            return Rank((rank - (_number(lowest_name or "") or 0)) % size, size)
        # Another launcher may say which of these processes this is.
        alone = Rank(0, size)
    return alone


def first_shard(num_shards: int) -> int:
    """The shard that this process begins with, so that processes started together spread."""
    rank, world_size = process_rank()
    return rank * num_shards // world_size


def launcher_rank() -> int:
    """The rank of this process in one run of torchrun or `accelerate launch`; 0 without a launcher.

    The tasks of a Slurm job are separate runs unless a launcher connects them.
    """
    return _number("RANK") or 0


def local_rank() -> int:
    """The rank of this process among the processes of its machine."""
    for name in ("LOCAL_RANK", "SLURM_LOCALID"):
        number = _number(name)
        if number is not None:
            return number
    return 0


def _number(name: str) -> int | None:
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else None
