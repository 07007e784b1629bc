"""Which of several processes this one is, as torchrun and Slurm tell by environment variables."""

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
"""Rank, world size, and the lowest rank where that is not 0: torchrun, srun, a Slurm array."""


def process_rank() -> Rank:
    """This process among those it was started with; (0, 1) when nothing says otherwise."""
    for rank_name, size_name, lowest_name in _VARIABLES:
        size = _number(size_name)
        if size is not None and size > 1:
            rank = (_number(rank_name) or 0) - (_number(lowest_name or "") or 0)
            return Rank(rank % size, size)
    return Rank(0, 1)


def local_rank() -> int:
    """This process among those of its machine."""
    for name in ("LOCAL_RANK", "SLURM_LOCALID"):
        number = _number(name)
        if number is not None:
            return number
    return 0


def _number(name: str) -> int | None:
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else None
