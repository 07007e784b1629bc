"""`ShardQueue`: shards are encoded and written while the model computes the next ones."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from threading import Event
from types import TracebackType
from typing import Self

from fusestore.cache.rows import Rows

WRITERS = 2
"""Shards written at once: one writer encodes about 100,000 rows of 32 entries a second."""


class ShardQueue:
    """Hands shards to writing threads; at most one waits besides those being written.

    When a write fails, `check` and `put` raise its error and nothing more is written. Leaving the
    `with` block waits for what is there to be written: after an error of the block's own too, so
    that nothing that was computed is lost by it.
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
        """Have a shard written; waits while the queue is full."""
        self.check()
        while len(self._pending) >= self._room:
            wait(self._pending, return_when=FIRST_COMPLETED)
            self.check()
        self._pending.add(self._pool.submit(self._work, shard, rows))

    def check(self) -> None:
        """Raise the error of a write that failed, if one did."""
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
