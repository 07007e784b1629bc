"""Several streams as one, in fixed proportions."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Self

import numpy as np
import torch
from torch import Tensor

from fusestore.data.mixable import check_mixable, mixture_digest, own_seed
from fusestore.data.mixture_order import MixtureOrder, integer_weights
from fusestore.data.streaming.stream import Identity, Stream
from fusestore.data.streaming.stream_reader import WindowReader
from fusestore.data.streaming.streaming_dataset import StreamingFusedDataset
from fusestore.errors import InvalidInputError


class StreamingMixture(Stream):
    """The windows of several fused datasets, each in the order of its own stream.

    `MixtureOrder` gives the order of the datasets; `FusedMixture` explains an epoch. The mixture
    uses the orders and shards of its streams, and has its own ranks, batches and state. Samples are
    those of `FusedDataset`, except that `window` is numbered dataset by dataset.

    Attributes:
        streams: in the caller's order.
        weights: in the smallest integers.
        name: the streams' names.
        digest: as of a `FusedMixture` of the same datasets.
        target, window_length, vocab_size, top_k: equal to those of every stream.
        sampled: whether rows of any source of any stream are samples.
        whole_documents: whether windows of any stream hold whole documents.
    """

    def __init__(
        self,
        streams: Sequence[StreamingFusedDataset],
        weights: Sequence[float] | None = None,
        *,
        batch_size: int | None = None,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        """Mix streams.

        Args:
            streams: of one target, window length and number of entries per row.
            weights: relative number of windows of each stream; None: its size.
            batch_size: as for `Stream`, as are the next two.
            rank: of this process.
            world_size: processes that share the mixture.

        Raises:
            IncompatibleError: the streams do not belong together.
            InvalidInputError: no streams, the same dataset twice, invalid weights, or a
                `cache_limit` below the total need of the streams.
        """
        super().__init__(batch_size, rank, world_size)
        check_mixable(streams)
        _check_limits(streams)
        self.streams = tuple(streams)
        sizes = tuple(stream.num_windows for stream in streams)
        self.weights = integer_weights(weights, sizes)
        self.name = " + ".join(stream.name for stream in streams)
        self.digest = mixture_digest(streams, self.weights)
        self.target = streams[0].target
        self.window_length = streams[0].window_length
        self.vocab_size = streams[0].vocab_size
        self.top_k = streams[0].top_k
        self.sampled = any(stream.sampled for stream in streams)
        self.whole_documents = any(stream.whole_documents for stream in streams)
        self._turns = MixtureOrder(sizes, self.weights)

    @property
    def num_windows(self) -> int:
        """Windows of all datasets."""
        return self._turns.num_windows

    def place_of(self, window: int, position: int) -> str:
        """See `Stream`."""
        firsts = np.cumsum([0, *self._turns.sizes])
        index = int(np.searchsorted(firsts, window, side="right")) - 1
        return self.streams[index].place_of(window - int(firsts[index]), position)

    def follows(self, seed: int) -> bool:
        """See `Stream`."""
        return all(stream.follows(own_seed(stream.digest, seed)) for stream in self.streams)

    def largest_token_id(self) -> int:
        """The largest token id in the datasets; reads, and so fetches, all of them."""
        return max(stream.largest_token_id() for stream in self.streams)

    def reader(self, epoch: int, start: int) -> WindowReader:
        """See `Stream`."""
        return _MixedReader(self.streams, self._turns, epoch)

    def _identity(self) -> dict[str, Identity]:
        orders = [stream.order for stream in self.streams]
        digests = [stream.digest for stream in self.streams]
        return {
            "datasets": Identity(digests, "other datasets", is_of_data=True),
            "weights": Identity(list(self.weights), "a mixture of other weights"),
            "seeds": Identity([order.seed for order in orders], "orders of other seeds"),
            "shuffle_spans": Identity([o.span for o in orders], "orders of other shuffle_spans"),
        }


class _MixedReader:
    """See `WindowReader`. Opens each stream's reader at its first turn."""

    def __init__(
        self, streams: Sequence[StreamingFusedDataset], order: MixtureOrder, epoch: int
    ) -> None:
        self._streams = streams
        self._firsts = np.cumsum([0, *order.sizes])
        self._turn, self._number = order.turns(epoch)
        self._open: dict[int, tuple[int, WindowReader]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for _, reader in self._open.values():
            reader.__exit__(kind, error, traceback)
        self._open.clear()

    def sample(self, position: int) -> dict[str, Tensor]:
        """See `WindowReader`."""
        turn = int(self._turn[position])
        epoch, place = divmod(int(self._number[position]), self._streams[turn].num_windows)
        sample = self._reader(turn, epoch, place).sample(place)
        sample["window"] = torch.tensor(int(sample["window"]) + int(self._firsts[turn]))
        return sample

    def _reader(self, turn: int, epoch: int, place: int) -> WindowReader:
        """The reader of a stream's epoch; closes that of the epoch before."""
        if turn in self._open:
            current, reader = self._open[turn]
            if current == epoch:
                return reader
            del self._open[turn]
            reader.__exit__(None, None, None)
        reader = self._streams[turn].reader(epoch, place).__enter__()
        self._open[turn] = epoch, reader
        return reader


def _check_limits(streams: Sequence[StreamingFusedDataset]) -> None:
    """Check that the cache limit has room for all streams that share a folder."""
    needed: dict[str, int] = {}
    for stream in streams:
        needed[stream.cache_root] = needed.get(stream.cache_root, 0) + stream.needed_bytes
    for stream in streams:
        limit, total = stream.cache_limit, needed[stream.cache_root]
        if limit is not None and limit < total:
            raise InvalidInputError(
                f"cache_limit={limit:,} bytes of {stream.name} is too small for the mixture: its "
                f"datasets need up to {total:,} bytes of shards at a time. Raise cache_limit, "
                "lower shuffle_span, or give the streams different folders as cache_dir."
            )
