"""Samples of a stream by their position: from a local dataset, or from shards as they arrive."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt
from torch import Tensor

from fusestore.data.dataset import FusedDataset
from fusestore.data.shard_cache.client import FetchedShards
from fusestore.data.shard_cache.job import FetchJob
from fusestore.data.shard_cache.layout import ShardLayout
from fusestore.data.streaming.stream_order import StreamOrder
from fusestore.data.windows import empty_rows, sample_of

BLOCKS_AHEAD = 4
"""Blocks (of about a shard) that are fetched before they are needed."""

_Indices = npt.NDArray[np.int64]


class WindowReader(Protocol):
    """Reads samples at rising positions of one epoch; a context."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    def sample(self, position: int) -> dict[str, Tensor]:
        """The sample at a position, which is never smaller than the one before."""
        ...


class LocalReader:
    """From the local form, memory-mapped where it lies.

    Args:
        dataset: the dataset.
        windows: the window at each position, int64 [n].
    """

    def __init__(self, dataset: FusedDataset, windows: _Indices) -> None:
        self._dataset = dataset
        self._windows = windows

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def sample(self, position: int) -> dict[str, Tensor]:
        """See `WindowReader`."""
        return self._dataset[int(self._windows[position])]


class FetchingReader:
    """From fetched shards: asks for what comes next, and lets go of what is not needed any more.

    A sample of one shard is a view of the shard's map: nothing is copied before a batch is made of
    it. Every reader has maps of its own and gives each window once, so what is changed in a sample
    is seen by nobody else, and not in another epoch.

    Args:
        job: what is fetched.
        layout: of its shards.
        order: the order that `windows` is of.
        windows: the window at each position, int64 [n].
        start: the first position that will be read.
        sampled: whether rows of any source are samples.
    """

    def __init__(
        self,
        job: FetchJob,
        layout: ShardLayout,
        order: StreamOrder,
        windows: _Indices,
        start: int,
        sampled: bool,
    ) -> None:
        self._shards = FetchedShards(job, layout)
        self._order = order
        self._windows = windows
        self._sampled = sampled
        self._top_k = layout.top_k
        first, last = order.uses(windows[start:])
        self._first, self._last = first + start, last + start
        used = np.flatnonzero(last >= 0)
        self._by_first = used[np.argsort(first[used], kind="stable")]
        self._by_last = used[np.argsort(last[used], kind="stable")]
        self._num_begun = 0
        self._num_ended = 0
        low, high = order.shards(layout.rows_per_shard)
        self._shards_of = [
            range(a, b + 1) for a, b in zip(low.tolist(), high.tolist(), strict=True)
        ]

    def __enter__(self) -> Self:
        self._shards.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._shards.__exit__(*error)

    def sample(self, position: int) -> dict[str, Tensor]:
        """See `WindowReader`."""
        self._move(position)
        window = int(self._windows[position])
        start, stop = self._order.bounds(window)
        rows, *others = self._shards.pieces(start, stop)
        if others:
            # A sample is one piece of memory.
            pieces = [rows, *others]
            rows = empty_rows(stop - start, self._top_k)
            for name, values in rows.items():
                np.concatenate([piece[name] for piece in pieces], out=values)
        return sample_of(rows, window, sampled=self._sampled)

    def _move(self, position: int) -> None:
        """Blocks that begin or end before this position: ask for shards, and let go of others."""
        begun, ended = self._num_begun, self._num_ended
        while begun < len(self._by_first) and self._first[self._by_first[begun]] <= position:
            begun += 1
        while ended < len(self._by_last) and self._last[self._by_last[ended]] < position:
            ended += 1
        if (begun, ended) == (self._num_begun, self._num_ended):
            return
        soon = self._by_first[: begun + BLOCKS_AHEAD]
        needed = self._shards_in(soon[self._last[soon] >= position])
        if ended != self._num_ended:
            over = self._shards_in(self._by_last[self._num_ended : ended])
            self._shards.release(shard for shard in over if shard not in needed)
        if begun != self._num_begun:
            self._shards.expect(list(needed))
        self._num_begun, self._num_ended = begun, ended

    def _shards_in(self, blocks: _Indices) -> dict[int, None]:
        """The shards of some blocks, each once, in the order of the blocks."""
        return dict.fromkeys(shard for block in blocks for shard in self._shards_of[block])
