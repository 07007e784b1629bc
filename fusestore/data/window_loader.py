"""Batches for trainers that count steps: the number of a step determines its windows.

Such trainers (transformers' Trainer, and those made of it) keep no state of a loader. To resume,
they skip batches of the loader's batch sampler. So datasets and streams are both read by position
here, and what is skipped is not read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fusestore.data.collation import collate
from fusestore.data.mixture import TrainingDataset
from fusestore.data.order import BatchOrder
from fusestore.data.place import distributed_place
from fusestore.data.streaming.loader import worker_options
from fusestore.data.streaming.stream import Stream
from fusestore.data.streaming.stream_reader import WindowReader
from fusestore.data.windows import padding_sample
from fusestore.errors import InvalidInputError

_Place = tuple[int, int]
"""Epoch and position."""


class WindowLoader(DataLoader[dict[str, Tensor]]):
    """One rank's batches of a dataset, a mixture or a stream, epoch after epoch.

    A map-style dataset is read in the order of `BatchOrder`, which is that of `fusestore train`. A
    stream is read in its own order, and its own position is neither used nor changed. An iteration
    is one epoch; the next iteration is the next epoch, unless `set_epoch` says otherwise.

    `Accelerator.prepare` returns the loader unchanged, because it has one rank's windows: batches
    stay on the CPU until the training loop moves them.
    """

    # accelerate looks at this: `prepare` would shard the windows a second time.
    _is_accelerate_prepared = True

    def __init__(
        self,
        dataset: TrainingDataset | Stream,
        batch_size: int = 1,
        *,
        seed: int = 0,
        shuffle: bool = True,
        rank: int | None = None,
        world_size: int | None = None,
        num_workers: int = 0,
        collate_fn: Callable[[list[dict[str, Tensor]]], Any] = collate,
        **options: Any,  # noqa: ANN401 - DataLoader's own
    ) -> None:
        """Make batches of one rank.

        Args:
            dataset: what is read.
            batch_size: windows per batch and rank.
            seed: of a map-style dataset's order; a stream has its own.
            shuffle: False: each window once, in the order of their numbers (a stream: that of its
                first epoch). Where the ranks do not divide the windows, the last ranks get padding
                (`window` −1, one position without label or distribution), at most one each.
            rank: of this process, below `world_size`. By default, both are those of
                torch.distributed, else the variables RANK and WORLD_SIZE.
            world_size: processes that share the windows.
            num_workers: worker processes, started by forkserver, unless `options` say otherwise
                (`multiprocessing_context`).
            collate_fn: makes a batch of samples.
            options: further options of DataLoader.

        Raises:
            InvalidInputError: numbers out of range, or an option that would change the order.
        """
        for name in ("sampler", "batch_sampler", "drop_last"):
            if options.get(name):
                raise InvalidInputError(
                    f"WindowLoader takes no {name}: the order is that of the dataset or stream."
                )
        if (rank is None) != (world_size is None) or not 0 <= (rank or 0) < (world_size or 1):
            raise InvalidInputError(
                f"rank={rank}, world_size={world_size}: give both, with 0 ≤ rank < world_size, or "
                "neither."
            )
        share = distributed_place() if rank is None or world_size is None else (rank, world_size)
        order: BatchOrder | PositionOrder
        source: Dataset[dict[str, Tensor]]
        if isinstance(dataset, Stream):
            source = StreamedWindows(dataset)
            order = PositionOrder(dataset.num_windows, batch_size, *share, repeats=not shuffle)
        elif shuffle:
            source = dataset
            order = BatchOrder(
                dataset, batch_size, seed=seed, epoch=0, rank=share[0], world_size=share[1]
            )
        else:
            source = PaddedWindows(dataset)
            order = PositionOrder(len(dataset), batch_size, *share, repeats=True)
        if options.get("multiprocessing_context") is None:
            options |= worker_options(num_workers, options.get("worker_init_fn"))
        # Without its own generator a loader would draw from the global one.
        options.setdefault("generator", torch.Generator())
        super().__init__(
            source,
            batch_sampler=order,
            num_workers=num_workers,
            collate_fn=collate_fn,
            **options,
        )
        self._order = order

    def set_epoch(self, epoch: int) -> None:
        """Continue at the beginning of an epoch."""
        self._order.set_epoch(epoch)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """The batches of an epoch."""
        epoch = self._order.epoch
        try:
            for number, batch in enumerate(super().__iter__(), 1):
                # Not after the last batch: some training loops ask for no batch after that.
                if number == len(self):
                    self._order.set_epoch(epoch + 1)
                yield batch
        finally:
            if isinstance(self.dataset, StreamedWindows):
                self.dataset.close()


class PositionOrder:
    """A `batch_sampler` of places: epoch and position, in batches of one rank.

    Step s takes positions `[s · B · W, (s + 1) · B · W)`; of these rank r takes every W-th. Every
    rank gets as many: positions from `num_windows` on stand for padding.

    Attributes:
        epoch: of the next iteration.
    """

    def __init__(
        self, num_windows: int, batch_size: int, rank: int, world_size: int, *, repeats: bool
    ) -> None:
        """Order positions.

        Args:
            num_windows: positions of an epoch.
            batch_size: B.
            rank: r.
            world_size: W.
            repeats: whether each epoch is the first one again.
        """
        if batch_size < 1:
            raise InvalidInputError(f"batch_size={batch_size}: expected 1 or more.")
        self.epoch = 0
        self._batch_size = batch_size
        self._rank, self._world_size = rank, world_size
        self._per_rank = -(-num_windows // world_size)
        self._repeats = repeats

    def set_epoch(self, epoch: int) -> None:
        """Continue at the beginning of an epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self._per_rank // self._batch_size)

    def __iter__(self) -> Iterator[list[_Place]]:
        epoch = 0 if self._repeats else self.epoch
        for start in range(0, self._per_rank, self._batch_size):
            numbers = range(start, min(start + self._batch_size, self._per_rank))
            yield [(epoch, number * self._world_size + self._rank) for number in numbers]


class PaddedWindows(Dataset[dict[str, Tensor]]):
    """A map-style dataset by place; the epoch has no effect."""

    def __init__(self, dataset: TrainingDataset) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, place: _Place) -> dict[str, Tensor]:
        return self.__getitems__([place])[0]

    def __getitems__(self, places: Sequence[_Place]) -> Sequence[dict[str, Tensor]]:
        """The samples of a batch."""
        windows = [window for _, window in places if window < len(self._dataset)]
        # Windows that are read together are collated without a copy.
        samples = self._dataset.__getitems__(windows)
        if len(windows) == len(places):
            return samples
        dataset = self._dataset
        padding = padding_sample(dataset.top_k, sampled=dataset.sampled)
        return [*samples, *[padding] * (len(places) - len(windows))]


class StreamedWindows(Dataset[dict[str, Tensor]]):
    """A stream by place, read at ascending positions of an epoch."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._reader: WindowReader | None = None
        self._next: _Place = (0, 0)

    def __len__(self) -> int:
        return self._stream.num_windows

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_reader": None}

    def __getitem__(self, place: _Place) -> dict[str, Tensor]:
        epoch, position = place
        if position >= self._stream.num_windows:
            return padding_sample(self._stream.top_k, sampled=self._stream.sampled)
        if self._reader is None or epoch != self._next[0] or position < self._next[1]:
            self.close()
            self._reader = self._stream.reader(epoch, position).__enter__()
        self._next = (epoch, position)
        return self._reader.sample(position)

    def close(self) -> None:
        """Release the shards of the epoch that is being read."""
        if self._reader is not None:
            self._reader.__exit__(None, None, None)
            self._reader = None
