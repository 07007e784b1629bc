"""Samples of a stream by position: from a local dataset, or from fetched shards."""

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
"""Blocks (of about a shard) to prefetch."""

_Indices = npt.NDArray[np.int64]


class WindowReader(Protocol):
    """A context that reads samples of one epoch at ascending positions."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    def sample(self, position: int) -> dict[str, Tensor]:
        """The sample at a position, which must not be below that of the call before."""
        ...


class LocalReader:
    """Reads the local form, memory-mapped.

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
    """Reads fetched shards: prefetches the next shards, and releases those it has read.

    A sample of one shard is a view of the shard's map, copied only into its batch. Every reader has
    its own maps and reads each window once, so changes to a sample affect no other reader or epoch.

    Args:
        job: the dataset and its local folder.
        layout: of the dataset's shards.
        order: the order of `windows`.
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
        views = self._shards.views(start, stop)
        rows = views[0]
        if len(views) > 1:
            # The arrays of a sample are contiguous.
            rows = empty_rows(stop - start, self._top_k)
            for name, values in rows.items():
                np.concatenate([view[name] for view in views], out=values)
        return sample_of(rows, window, sampled=self._sampled)

    def _move(self, position: int) -> None:
        """Prefetch and release shards, if blocks begin or end before this position."""
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
            finished = self._shards_in(self._by_last[self._num_ended : ended])
            self._shards.release(shard for shard in finished if shard not in needed)
        if begun != self._num_begun:
            self._shards.prefetch(list(needed))
        self._num_begun, self._num_ended = begun, ended

    def _shards_in(self, blocks: _Indices) -> dict[int, None]:
        """The distinct shards of some blocks, in the order of the blocks."""
        return dict.fromkeys(shard for block in blocks for shard in self._shards_of[block])
