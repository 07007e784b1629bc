"""The rank of this process, from the environment variables of torchrun and Slurm."""

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
)
"""Rank, world size, and the lowest rank if that is not 0: torchrun, srun, a Slurm array."""


def process_rank() -> Rank:
    """The rank of this process among those started with it; (0, 1) if no variable is set."""
    for rank_name, size_name, lowest_name in _VARIABLES:
        size = _number(size_name)
        if size is not None and size > 1:
            rank = (_number(rank_name) or 0) - (_number(lowest_name or "") or 0)
            return Rank(rank % size, size)
    return Rank(0, 1)


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
