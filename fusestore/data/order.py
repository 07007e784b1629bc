"""The order of windows in training: pure functions of integers, the same on every machine.

`permutation(n, seed, epoch)` is an order; batches are consecutive ranges of it. Position, rank,
batch size and number of workers select positions of the order, but never change it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import numpy.typing as npt

from fusestore.data.accelerated import is_sharded_by_accelerate
from fusestore.errors import InvalidInputError


def permutation(num_windows: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """The order of the windows in an epoch, int64 [num_windows].

    Sorts the raw 64-bit output of Philox keyed by (seed, epoch). NumPy guarantees that this output
    never changes, unlike that of `Generator.permutation`.
    """
    if num_windows < 0 or not 0 <= seed < 2**63 or not 0 <= epoch < 2**63:
        raise InvalidInputError(
            f"num_windows={num_windows}, seed={seed}, epoch={epoch}: each must be 0 or more, "
            "and below 2**63."
        )
    key = np.array([seed, epoch], dtype=np.uint64)
    raw = np.random.Philox(key=key).random_raw(num_windows)
    return np.argsort(raw, kind="stable").astype(np.int64)


def batches_per_epoch(num_windows: int, batch_size: int, world_size: int = 1) -> int:
    """Batches of every rank in an epoch; see `BatchOrder`."""
    per_step = batch_size * world_size
    return num_windows // per_step + (num_windows % per_step >= world_size)


class Ordered(Protocol):
    """A dataset with its own order of windows."""

    def __len__(self) -> int:
        """Windows in an epoch."""
        ...

    def order(self, seed: int, epoch: int) -> npt.NDArray[np.int64]:
        """The window at each position of an epoch, int64 [len(self)]."""
        ...


class BatchOrder:
    """A `batch_sampler` for `torch.utils.data.DataLoader`: one epoch's batches of one rank.

    Step s takes the windows `[s · B · W, (s + 1) · B · W)` of the order, and of these rank r takes
    every W-th. The last step may be smaller. If it has fewer windows than ranks, they (at most
    W − 1) are left out of this epoch, so that every rank makes the same number of steps. With
    `keep_all` they are not left out, and the other ranks get an empty batch instead.

    Attributes:
        windows: a dataset or a mixture, which gives the order; for a number, that of `permutation`.
        first_batch: batches to skip, to resume in the middle of an epoch.
        keep_all: whether every window comes in every epoch.
    """

    def __init__(
        self,
        windows: int | Ordered,
        batch_size: int,
        *,
        seed: int,
        epoch: int,
        first_batch: int = 0,
        rank: int = 0,
        world_size: int = 1,
        keep_all: bool = False,
    ) -> None:
        if batch_size < 1 or not 0 <= rank < world_size or first_batch < 0:
            raise InvalidInputError(
                f"batch_size={batch_size}, rank={rank}, world_size={world_size}, "
                f"first_batch={first_batch}: expected batch_size ≥ 1, 0 ≤ rank < world_size and "
                "first_batch ≥ 0."
            )
        self.windows = windows
        self.num_windows = windows if isinstance(windows, int) else len(windows)
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = epoch
        self.first_batch = first_batch
        self.rank = rank
        self.world_size = world_size
        self.keep_all = keep_all

    def __len__(self) -> int:
        if self.keep_all:
            total = -(-self.num_windows // (self.batch_size * self.world_size))
        else:
            total = batches_per_epoch(self.num_windows, self.batch_size, self.world_size)
        return max(0, total - self.first_batch)

    def set_epoch(self, epoch: int) -> None:
        """Continue at the first batch of an epoch."""
        self.epoch, self.first_batch = epoch, 0

    def __iter__(self) -> Iterator[list[int]]:
        if self.world_size > 1 and is_sharded_by_accelerate(self):
            raise InvalidInputError(
                f"accelerate shards the batches of a BatchOrder that gives rank {self.rank} of "
                f"{self.world_size} only its own: most windows would be lost. Do not give its "
                "DataLoader to Accelerator.prepare."
            )
        return self._batches()

    def _batches(self) -> Iterator[list[int]]:
        if isinstance(self.windows, int):
            windows = permutation(self.windows, self.seed, self.epoch)
        else:
            windows = self.windows.order(self.seed, self.epoch)
        per_step = self.batch_size * self.world_size
        for step in range(self.first_batch, self.first_batch + len(self)):
            step_windows = windows[step * per_step : (step + 1) * per_step]
            yield [int(window) for window in step_windows[self.rank :: self.world_size]]
