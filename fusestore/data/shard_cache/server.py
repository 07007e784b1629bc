"""Fetches requested shards in background threads, the most urgent first; used by `client`."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from fusestore.data.shard_cache.cache_folder import NoRoomError
from fusestore.data.shard_cache.download import Download
from fusestore.data.shard_cache.job import FetchJob
from fusestore.fuse.manifest import FusedManifest
from fusestore.storage.location import Location

SHARDS_AT_ONCE = 3
"""Shards fetched at a time: some are verified and decoded while others arrive."""

_POLL_S = 0.02
_ROOM_TIMEOUT_S = 60
"""Seconds that a shard that is needed now waits for room before an error."""


class FetchServer:
    """Starts its threads at once, and fetches until it is closed.

    Args:
        job: the dataset and its local folder.
        answer: called once for each shard requested as `now`, with its error or None.
    """

    def __init__(self, job: FetchJob, answer: Callable[[BaseException | None], None]) -> None:
        self._folder = job.folder
        manifest = FusedManifest.load(Location.parse(job.manifest_file))
        self._download = Download(Location(job.source, job.storage_options), manifest)
        self._answer = answer
        self._changed = threading.Condition()
        self._of_thread = threading.local()
        self._now: int | None = None
        self._ahead: list[int] = []
        self._under_way: set[int] = set()
        self._written: dict[int, int] = {}
        self._first_is_done = False
        self._beginning = False
        self._closed = False
        for _ in range(SHARDS_AT_ONCE):
            threading.Thread(target=self._work, daemon=True).start()

    def request(self, *, now: int | None = None, ahead: list[int] | None = None) -> None:
        """Replace the requests; None keeps the current request.

        Args:
            now: the shard that the caller waits for; answered once. One at a time.
            ahead: shards to prefetch, in this order.
        """
        with self._changed:
            self._now = now if now is not None else self._now
            self._ahead = ahead if ahead is not None else self._ahead
            self._changed.notify_all()

    def wrote(self, shard: int, file: BinaryIO) -> bool:
        """Whether this server has written the shard's open file."""
        return self._written.get(shard) == os.fstat(file.fileno()).st_ino

    def close(self) -> None:
        """Stop the threads and abandon running downloads."""
        with self._changed:
            self._closed = True
            self._now = None
            self._changed.notify_all()
        self._download.pool.shutdown(wait=False, cancel_futures=True)

    def _work(self) -> None:
        while True:
            with self._changed:
                while (shard := self._next()) is None and not self._closed:
                    self._changed.wait()
                if shard is None or self._closed:
                    return
                self._under_way.add(shard)
                self._beginning = True
            problem: BaseException | None = None
            try:
                settled = self._fetch(shard)
            except Exception as error:
                settled, problem = True, error
            with self._changed:
                self._under_way.discard(shard)
                self._first_is_done = True
                self._beginning = False
                if shard in self._ahead:
                    self._ahead.remove(shard)
                # A shard that could not be prefetched is tried again when it is needed.
                is_answer = shard == self._now and settled
                if is_answer:
                    self._now = None
                self._changed.notify_all()
            if is_answer:
                self._answer(problem)

    def _next(self) -> int | None:
        # The first sample waits for the first shard, which gets all bandwidth and processor time.
        if self._under_way and not self._first_is_done:
            return None
        # Shards begin one at a time, so that the pool has their requests in order of urgency.
        if self._beginning:
            return None
        urgent = [] if self._now is None else [self._now]
        return next((s for s in [*urgent, *self._ahead] if s not in self._under_way), None)

    def _begun(self) -> None:
        """Allow the next shard to begin."""
        with self._changed:
            self._beginning = False
            self._changed.notify_all()

    def _fetch(self, shard: int) -> bool:
        """Fetch the shard unless it exists; False if it was abandoned as not urgent."""
        deadline = time.monotonic() + _ROOM_TIMEOUT_S
        while not self._folder.has(shard):
            try:
                if self._try(shard):
                    return True
            except NoRoomError:
                if self._is_urgent(shard) and time.monotonic() > deadline:
                    raise
            if not self._is_urgent(shard):
                return False
            self._begun()
            # Another process is fetching it, or uses the disk space.
            time.sleep(_POLL_S)
        return True

    def _try(self, shard: int) -> bool:
        self._download.check_there(shard)
        with self._folder.create(shard) as file:
            if file is None:
                return False
            with self._changed:
                needed = {self._now} if shard == self._now else {self._now, *self._ahead}
            self._folder.reserve(file, {each for each in needed if each is not None})
            content = self._memory()
            self._download.fetch(shard, content, self._begun, alone=not self._first_is_done)
            file.write(content.data)
            file.flush()
            self._written[shard] = os.fstat(file.fileno()).st_ino
            self._folder.publish(shard)
        return True

    def _memory(self) -> npt.NDArray[np.uint8]:
        """Memory for one shard, reused by the thread because the kernel clears new memory first.

        Writing to a map of the file instead takes five times as long.
        """
        if not hasattr(self._of_thread, "memory"):
            self._of_thread.memory = np.empty(self._folder.shard_bytes, np.uint8)
        memory: npt.NDArray[np.uint8] = self._of_thread.memory
        return memory

    def _is_urgent(self, shard: int) -> bool:
        with self._changed:
            return shard == self._now
