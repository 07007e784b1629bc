"""What every stream of windows does: ranks, workers, epochs and state, over an order of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch.distributed
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from fusestore.data.streaming.stream_reader import WindowReader
from fusestore.data.windows import filler
from fusestore.errors import IncompatibleError, InvalidInputError


class Identity(NamedTuple):
    """A part of a state that must be the same where it is loaded: its value, and what it is of.

    Attributes:
        value: JSON.
        meaning: for messages.
        is_of_data: whether the stream's `digest` stands for it too.
    """

    value: Any
    meaning: str
    is_of_data: bool = False


class Stream(IterableDataset[dict[str, Tensor]]):
    """Windows in an order that is a function of epoch and position, epoch after epoch.

    Iterating goes on behind the last sample that was given out, up to the end of the epoch; the
    next iteration is the next epoch. Of W ranks, rank r gets positions r, r + W, r + 2W, … of what
    is left of the epoch. All get equally many: where the epoch ends before the last rank had its
    turn, that rank gets a filler (`window` −1, one position, nothing to learn), so that every
    position comes once an epoch, whatever W is, and no rank waits for another.

    In DataLoader workers the state is not counted: use `StreamingLoader`, which counts what the
    training loop was given, or `set_epoch` before each epoch.

    A subclass has the attributes `name`, `digest`, `target`, `window_length`, `vocab_size`, `top_k`
    and `sampled`, and the methods below that raise NotImplementedError.

    Attributes:
        name: for messages.
        digest: of the data.
        target, window_length, vocab_size, top_k, sampled: as in `FusedDataset`.
        batch_size: windows per batch of each rank, which several workers must know in order to
            take whole batches in turns; None: not said.
    """

    name: str
    digest: str
    target: str
    window_length: int
    vocab_size: int
    top_k: int
    sampled: bool

    def __init__(self, batch_size: int | None, rank: int | None, world_size: int | None) -> None:
        """Begin at the first position.

        Args:
            batch_size: as given to the DataLoader; needed for more than one worker.
            rank: of this process, below `world_size`; both are by default those of
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
                "none."
            )
        self.batch_size = batch_size
        self._place = None if rank is None or world_size is None else (rank, world_size)
        self._epoch = 0
        self._position = 0

    @property
    def num_windows(self) -> int:
        """Positions of an epoch, of all ranks together."""
        raise NotImplementedError

    def reader(self, epoch: int, start: int) -> WindowReader:
        """Opens an epoch at a position."""
        raise NotImplementedError

    def _identity(self) -> dict[str, Identity]:
        """All that the order depends on, by its name in a state; JSON."""
        raise NotImplementedError

    def follows(self, seed: int) -> bool:
        """Whether windows come in the order of the map-style dataset, or mixture, at this seed."""
        raise NotImplementedError

    @property
    def order_identity(self) -> dict[str, Any]:
        """What the order of a given `digest`'s windows depends on; JSON."""
        return {key: part.value for key, part in self._identity().items() if not part.is_of_data}

    def describe(self, windows: Sequence[int]) -> str:
        """Windows, for messages; fillers are none."""
        return f"windows {[window for window in windows if window >= 0]} of {self.name}"

    def largest_token_id(self) -> int:
        """The largest token id anywhere in the data; reads, and so fetches, all of it once."""
        largest = 0
        with self.reader(0, 0) as reader:
            for position in range(self.num_windows):
                sample = reader.sample(position)
                for name in ("input_ids", "next_ids", "fused_ids"):
                    largest = max(largest, int(sample[name].max()))
        return largest

    def __len__(self) -> int:
        """Samples of one rank in an epoch, fillers included."""
        return -(-self.num_windows // self.place()[1])

    def __getstate__(self) -> dict[str, Any]:
        # A spawned worker has no torch.distributed to ask.
        return {**self.__dict__, "_place": self.place()}

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        worker = get_worker_info()
        numbers, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        if workers > 1 and self.batch_size is None:
            raise InvalidInputError(
                f"{workers} workers would put other windows together than one does. Use "
                f"fusestore.data.StreamingLoader, or give {type(self).__name__} the batch_size "
                "that the DataLoader has."
            )
        rank, world_size = self.place()
        epoch, start = self._epoch, self._position
        left = -(-(self.num_windows - start) // world_size)
        batch_size = self.batch_size or 1
        mine = (n for n in range(left) if n // batch_size % workers == numbers)
        with self.reader(epoch, start) as reader:
            for number in mine:
                position = start + number * world_size + rank
                ended = position >= self.num_windows
                sample = (
                    filler(self.top_k, sampled=self.sampled) if ended else reader.sample(position)
                )
                if worker is None:
                    self.seek(epoch, start + (number + 1) * world_size)
                yield sample

    def place(self) -> tuple[int, int]:
        """Rank and world size of this process."""
        if self._place is not None:
            return self._place
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))

    def set_epoch(self, epoch: int) -> None:
        """Go to the beginning of an epoch."""
        if epoch < 0:
            raise InvalidInputError(f"epoch={epoch}: expected 0 or more.")
        self.seek(epoch, 0)

    def seek(self, epoch: int, position: int) -> None:
        """Go to a position of all ranks together; behind the last one begins the next epoch."""
        ended = position >= self.num_windows
        self._epoch, self._position = (epoch + 1, 0) if ended else (epoch, position)

    def state_dict(self) -> dict[str, Any]:
        """Where the stream is; the same on every rank, and good for any number of ranks."""
        identity = {key: part.value for key, part in self._identity().items()}
        return {**identity, "epoch": self._epoch, "position": self._position}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go where `state_dict` was taken.

        Raises:
            IncompatibleError: the state is of other data or another order.
            InvalidInputError: it is no state.
        """
        own = self.state_dict()
        if not isinstance(state, Mapping) or set(state) != set(own):
            raise InvalidInputError(f"Not the state of a stream: {state!r:.200}.")
        for key, part in self._identity().items():
            if state[key] != part.value:
                raise IncompatibleError(
                    f"The state is of {part.meaning}: {key} is {state[key]!r}, this stream has "
                    f"{part.value!r}. Open the stream it was taken of, or begin a new one."
                )
        epoch, position = state["epoch"], state["position"]
        if not all(type(value) is int for value in (epoch, position)) or not (
            epoch >= 0 and 0 <= position < self.num_windows
        ):
            raise InvalidInputError(
                f"Not the state of a stream: epoch {epoch!r}, position {position!r} of "
                f"{self.num_windows} windows."
            )
        self.seek(epoch, position)
