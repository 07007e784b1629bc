"""`ShardQueue`: encodes and writes shards while the model computes the next shards."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from threading import Event
from types import TracebackType
from typing import Self

from fusestore.cache.rows import Rows

WRITERS = 2
"""Writing threads; each encodes about 100,000 rows of 32 entries a second."""


class ShardQueue:
    """Passes shards to writing threads; at most one shard waits besides those being written.

    When a write fails, `check` and `put` raise its error and nothing more is written. Leaving the
    `with` block waits until all shards are written, even after an error in the block, so that no
    computed shard is lost.
    """

    def __init__(self, write: Callable[[int, Rows], object], writers: int = WRITERS) -> None:
        """`write(shard, rows)` publishes one shard; several threads call it."""
        self._write = write
        self._room = writers + 1
        self._pool = ThreadPoolExecutor(max_workers=writers, thread_name_prefix="write-shard")
        self._pending: set[Future[None]] = set()
        self._failed = Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._pool.shutdown(wait=True)
        if error is None:
            self.check()

    def put(self, shard: int, rows: Rows) -> None:
        """Add a shard; waits while the queue is full."""
        self.check()
        while len(self._pending) >= self._room:
            wait(self._pending, return_when=FIRST_COMPLETED)
            self.check()
        self._pending.add(self._pool.submit(self._work, shard, rows))

    def check(self) -> None:
        """Raise the error of a failed write, if there is one."""
        done = {future for future in self._pending if future.done()}
        self._pending -= done
        for future in done:
            future.result()

    def _work(self, shard: int, rows: Rows) -> None:
        if self._failed.is_set():
            return
        try:
            self._write(shard, rows)
        except BaseException:
            self._failed.set()
            raise
