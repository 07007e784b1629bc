"""Which share of the windows this process reads."""

from __future__ import annotations

import os

import torch


def distributed_place() -> tuple[int, int]:
    """Rank and world size of this process.

    They are those of torch.distributed, else the variables RANK and WORLD_SIZE, else (0, 1).
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
