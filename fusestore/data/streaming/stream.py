"""`Stream`, the base of all streams of windows: ranks, workers, epochs and state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch.distributed
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from fusestore.data.accelerated import is_sharded_by_accelerate
from fusestore.data.place import distributed_place
from fusestore.data.streaming.stream_reader import WindowReader
from fusestore.data.windows import padding_sample
from fusestore.errors import IncompatibleError, InvalidInputError


class Identity(NamedTuple):
    """A field of a state that must be equal in the stream that loads it.

    Attributes:
        value: JSON.
        meaning: for messages: what another value belongs to.
        is_of_data: whether the stream's `digest` includes it.
    """

    value: Any
    meaning: str
    is_of_data: bool = False


class Stream(IterableDataset[dict[str, Tensor]]):
    """Windows in an order that is a function of epoch and position, epoch after epoch.

    Iteration continues after the last yielded sample, up to the end of the epoch; the next
    iteration is the next epoch. Of W ranks, rank r gets positions r, r + W, r + 2W, … of the rest
    of the epoch. All ranks get the same number: where the epoch ends before a rank's last position,
    that rank gets padding (`window` −1, one position without label or distribution). So every
    position comes once in an epoch for every W, and no rank waits for another.

    In DataLoader workers the state is not counted: use `StreamingLoader`, which counts the batches
    that the training loop received, or `set_epoch` before each epoch. Both also reach persistent
    workers.

    A subclass has the attributes `name`, `digest`, `target`, `window_length`, `vocab_size`,
    `top_k`, `sampled` and `whole_documents`, and the methods below that raise NotImplementedError.

    Attributes:
        name: for messages.
        digest: of the data.
        target, window_length, vocab_size, top_k, sampled, whole_documents: as in `FusedDataset`.
        batch_size: windows per batch of each rank; several workers need it to take whole batches
            in turns. None: unknown.
    """

    name: str
    digest: str
    target: str
    window_length: int
    vocab_size: int
    top_k: int
    sampled: bool
    whole_documents: bool

    def __init__(self, batch_size: int | None, rank: int | None, world_size: int | None) -> None:
        """Begin at the first position.

        Args:
            batch_size: that of the DataLoader; needed for more than one worker.
            rank: of this process, below `world_size`. By default, both are those of
                torch.distributed, else the variables RANK and WORLD_SIZE.
            world_size: processes that share the stream.

        Raises:
            InvalidInputError: numbers out of range.
        """
        if batch_size is not None and batch_size < 1:
            raise InvalidInputError(f"batch_size={batch_size}: expected 1 or more.")
        if (rank is None) != (world_size is None) or not 0 <= (rank or 0) < (world_size or 1):
            raise InvalidInputError(
                f"rank={rank}, world_size={world_size}: give both, with 0 ≤ rank < world_size, or "
                "neither."
            )
        self.batch_size = batch_size
        self._place = None if rank is None or world_size is None else (rank, world_size)
        self._epoch = 0
        self._position = 0
        # Persistent workers keep a copy of the stream, and read here where an iteration begins.
        start: Any = torch.zeros(2, dtype=torch.int64)
        self._start = start.share_memory_()
        self._was_iterated_in_worker = False

    @property
    def num_windows(self) -> int:
        """Positions of an epoch, over all ranks."""
        raise NotImplementedError

    def reader(self, epoch: int, start: int) -> WindowReader:
        """Reader of an epoch from a position."""
        raise NotImplementedError

    def _identity(self) -> dict[str, Identity]:
        """Everything that the order depends on, by its name in a state; JSON."""
        raise NotImplementedError

    def follows(self, seed: int) -> bool:
        """Whether the order is that of the map-style dataset, or mixture, at this seed."""
        raise NotImplementedError

    @property
    def order_identity(self) -> dict[str, Any]:
        """Everything except for the data that the order depends on; JSON."""
        fields = self._identity().items()
        return {key: field.value for key, field in fields if not field.is_of_data}

    def place_of(self, window: int, position: int) -> str:
        """A position of a window, for messages."""
        raise NotImplementedError

    def describe(self, windows: Sequence[int]) -> str:
        """Windows without padding, for messages."""
        return f"windows {[window for window in windows if window >= 0]} of {self.name}"

    def largest_token_id(self) -> int:
        """The largest token id in the data; reads, and so fetches, all of it."""
        largest = 0
        with self.reader(0, 0) as reader:
            for position in range(self.num_windows):
                sample = reader.sample(position)
                for name in ("input_ids", "next_ids", "fused_ids"):
                    largest = max(largest, int(sample[name].max()))
        return largest

    def __len__(self) -> int:
        """Samples of one rank in an epoch, including padding."""
        return -(-self.num_windows // self.place()[1])

    def __getstate__(self) -> dict[str, Any]:
        # In a spawned worker, torch.distributed is not initialized.
        return {**self.__dict__, "_place": self.place()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        # Multiprocessing passes shared memory on; a plain pickle holds a copy.
        self._start.share_memory_()

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        self._check_sharded_once()
        worker = get_worker_info()
        worker_id, num_workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        if num_workers > 1 and self.batch_size is None:
            raise InvalidInputError(
                f"{num_workers} workers without a batch size would make other batches than one "
                f"worker. Use fusestore.data.StreamingLoader, or give {type(self).__name__} the "
                "batch_size of the DataLoader."
            )
        if self._was_iterated_in_worker:
            self._epoch, self._position = self._start.tolist()
        self._was_iterated_in_worker = worker is not None
        return self._samples(worker_id, num_workers, is_counted=worker is None)

    def _samples(
        self, worker_id: int, num_workers: int, *, is_counted: bool
    ) -> Iterator[dict[str, Tensor]]:
        rank, world_size = self.place()
        epoch, start = self._epoch, self._position
        remaining = -(-(self.num_windows - start) // world_size)
        batch_size = self.batch_size or 1
        numbers = (n for n in range(remaining) if n // batch_size % num_workers == worker_id)
        with self.reader(epoch, start) as reader:
            for number in numbers:
                position = start + number * world_size + rank
                if position < self.num_windows:
                    sample = reader.sample(position)
                else:
                    sample = padding_sample(self.top_k, sampled=self.sampled)
                if is_counted:
                    self.advance(epoch, start + (number + 1) * world_size)
                yield sample

    def place(self) -> tuple[int, int]:
        """Rank and world size of this process."""
        return distributed_place() if self._place is None else self._place

    def set_epoch(self, epoch: int) -> None:
        """Continue at the beginning of an epoch."""
        if epoch < 0:
            raise InvalidInputError(f"epoch={epoch}: expected 0 or more.")
        # accelerate calls this in every process before it iterates.
        self._check_sharded_once()
        self.seek(epoch, 0)

    def seek(self, epoch: int, position: int) -> None:
        """Continue at a position over all ranks; after the last position, at the next epoch."""
        self.advance(epoch, position)
        self._start[:] = torch.tensor([self._epoch, self._position])

    def advance(self, epoch: int, position: int) -> None:
        """Count samples that were yielded: like `seek`, but unknown to workers that are running."""
        ended = position >= self.num_windows
        self._epoch, self._position = (epoch + 1, 0) if ended else (epoch, position)

    def _check_sharded_once(self) -> None:
        rank, world_size = self.place()
        if world_size > 1 and is_sharded_by_accelerate(self):
            raise InvalidInputError(
                f"accelerate shards {self.name}, a stream that gives rank {rank} of {world_size} "
                "only its own windows: most windows would be lost. Use "
                "fusestore.data.StreamingLoader, which Accelerator.prepare leaves as it is; in a "
                "transformers Trainer, return one from get_train_dataloader."
            )

    def state_dict(self) -> dict[str, Any]:
        """The position of the stream; the same on every rank, and valid for any number of ranks."""
        identity = {key: field.value for key, field in self._identity().items()}
        return {**identity, "epoch": self._epoch, "position": self._position}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue at the position of a `state_dict`.

        Raises:
            IncompatibleError: the state is of other data or another order.
            InvalidInputError: it is no state of a stream.
        """
        expected = self.state_dict().keys()
        if not isinstance(state, Mapping) or state.keys() != expected:
            raise InvalidInputError(
                f"Not the state of a stream: {state!r:.200}; expected the keys "
                f"{', '.join(expected)}. Give what `state_dict` returned."
            )
        for key, field in self._identity().items():
            if state[key] != field.value:
                raise IncompatibleError(
                    f"The state is of {field.meaning}: {key} is {state[key]!r}, this stream has "
                    f"{field.value!r}. Open the stream that the state is of, or begin a new one."
                )
        epoch, position = state["epoch"], state["position"]
        if not all(type(value) is int for value in (epoch, position)) or not (
            epoch >= 0 and 0 <= position < self.num_windows
        ):
            raise InvalidInputError(
                f"Not the state of a stream: epoch {epoch!r}, position {position!r} of "
                f"{self.num_windows} windows. Give what `state_dict` returned."
            )
        self.seek(epoch, position)
