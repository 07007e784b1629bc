"""The order of windows in a stream: a pure function of dataset, seed, epoch and position.

Windows are grouped into blocks of about a shard. An epoch concatenates the blocks in a shuffled
order, and then mixes: the window at place i gets the key i + u, with u uniform in [0, span), and
windows are sorted by key. So every window moves by less than `span` places, a stream needs only the
few shards that `span` consecutive places touch, and it can begin when the first shard has arrived.
Without a span all windows are mixed, as in a map-style dataset. Ranks, workers and batch size
select positions of the order, but never change it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from fusestore.data.order import permutation
from fusestore.errors import InvalidInputError

_Indices = npt.NDArray[np.int64]

_MAX_PLACES = 2**31
"""Keys are 32 bits of place and 32 bits of fraction."""


@dataclass(frozen=True)
class StreamOrder:
    """The order of one dataset's windows.

    Attributes:
        digest: the dataset's (of its plan): another dataset has another order.
        num_tokens: T.
        window_length: tokens per window; the last window may be shorter.
        starts: int64 [n + 1], the first position of each window, and T; None where windows are cut
            every `window_length` tokens.
        rows_per_block: tokens of a block; it has the windows that begin in them.
        seed: another seed gives another order.
        span: places that windows are mixed over; 1 keeps a shard's windows together and in order.
            None: all windows are mixed, in the order of `FusedDataset.order`.
    """

    digest: str
    num_tokens: int
    window_length: int
    rows_per_block: int
    seed: int
    span: int | None
    # Not compared, because `digest` includes it.
    starts: _Indices | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        span = 1 if self.span is None else self.span
        if not 0 <= self.seed < 2**63 or not 1 <= span < _MAX_PLACES:
            raise InvalidInputError(
                f"seed={self.seed}, shuffle_span={self.span}: expected 0 ≤ seed < 2**63 and "
                f"1 ≤ shuffle_span < {_MAX_PLACES:,}."
            )
        if self.num_windows >= _MAX_PLACES:
            raise InvalidInputError(
                f"{self.num_windows:,} windows are more than a stream can order "
                f"({_MAX_PLACES:,}). Fuse with a larger window_length."
            )

    @property
    def num_windows(self) -> int:
        """Windows in an epoch, n."""
        if self.starts is not None:
            return len(self.starts) - 1
        return -(-self.num_tokens // self.window_length)

    def bounds(self, window: int) -> tuple[int, int]:
        """A window's positions: the first, and one past the last."""
        if self.starts is not None:
            return int(self.starts[window]), int(self.starts[window + 1])
        start = window * self.window_length
        return start, min(start + self.window_length, self.num_tokens)

    def windows(self, epoch: int) -> _Indices:
        """The window at each position of an epoch, int64 [n]; every window once."""
        if epoch < 0:
            raise InvalidInputError(f"epoch={epoch}: expected 0 or more.")
        if self.span is None:
            return permutation(self.num_windows, self.seed, epoch)
        starts = self._block_starts()
        shuffled = np.argsort(self._random(epoch, "shards", len(starts) - 1), kind="stable")
        windows = np.concatenate([np.arange(starts[b], starts[b + 1]) for b in shuffled])
        fraction = self._random(epoch, "windows", len(windows)) >> np.uint64(32)
        keys = np.arange(len(windows), dtype=np.uint64) << np.uint64(32)
        keys += fraction * np.uint64(self.span)
        return windows[np.argsort(keys, kind="stable")].astype(np.int64)

    def uses(self, windows: _Indices) -> tuple[_Indices, _Indices]:
        """The first and last use of each block in a range of an epoch.

        Args:
            windows: int64 [m].

        Returns:
            int64 [blocks] each: the first and the last index into `windows` of the block's windows;
            m and −1 for a block without any.
        """
        starts = self._block_starts()
        blocks = np.searchsorted(starts, windows, side="right") - 1
        first = np.full(len(starts) - 1, len(windows), np.int64)
        last = np.full(len(starts) - 1, -1, np.int64)
        np.minimum.at(first, blocks, np.arange(len(windows)))
        np.maximum.at(last, blocks, np.arange(len(windows)))
        return first, last

    def shards(self, rows_per_shard: int) -> tuple[_Indices, _Indices]:
        """The shards of each block's windows.

        Args:
            rows_per_shard: tokens per shard, as the dataset is stored.

        Returns:
            int64 [blocks] each: the first and the last shard, both included.
        """
        blocks = self._block_starts()
        if self.starts is not None:
            edges = self.starts[blocks]
        else:
            edges = np.minimum(blocks * self.window_length, self.num_tokens)
        return edges[:-1] // rows_per_shard, (edges[1:] - 1) // rows_per_shard

    def working_set(self, rows_per_shard: int) -> int:
        """The largest number of shards that any epoch of any seed needs at one time.

        While a block is in use, some of its windows were read and others will be. At any time these
        blocks touch `span` consecutive places: two blocks at the ends, and whole blocks in between.
        """
        num_shards = -(-self.num_tokens // rows_per_shard)
        if self.span is None:
            return num_shards
        sizes = np.sort(np.diff(self._block_starts()))
        inside = int(np.searchsorted(np.cumsum(sizes), self.span - 2, side="right"))
        blocks = min(len(sizes), 1 if self.span == 1 else 2 + inside)
        low, high = self.shards(rows_per_shard)
        return min(num_shards, blocks * int((high - low).max() + 1))

    def _block_starts(self) -> _Indices:
        """First window of each block, and n; blocks without windows are omitted."""
        tokens = np.arange(0, self.num_tokens, self.rows_per_block, dtype=np.int64)
        if self.starts is not None:
            starts = np.searchsorted(self.starts, tokens)
        else:
            starts = -(-tokens // self.window_length)
        return np.unique(np.append(np.minimum(starts, self.num_windows), self.num_windows))

    def _random(self, epoch: int, purpose: str, count: int) -> npt.NDArray[np.uint64]:
        """Raw Philox output, which NumPy guarantees never to change."""
        text = f"{self.digest} {self.seed} {epoch} {purpose}"
        key = int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "little")
        return np.random.Philox(key=key).random_raw(count)
