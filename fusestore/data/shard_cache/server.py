"""Fetches what is wanted, the most urgent first, in threads of its own (for `fetch.client`)."""

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
"""Some are verified and decoded while others arrive."""

_POLL_S = 0.02
_ROOM_TIMEOUT_S = 60
"""How long a shard that is needed now waits for room before that is an error."""


class FetchServer:
    """Begins at once, and fetches until it is closed.

    Args:
        job: what is fetched, and where to.
        answer: told of each shard that was asked for now: what went wrong, or None.
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

    def want(self, *, now: int | None = None, ahead: list[int] | None = None) -> None:
        """Change what is wanted; None leaves it as it is.

        Args:
            now: a shard that is waited for: answered, once. Only one can be.
            ahead: what will be needed, in this order.
        """
        with self._changed:
            self._now = now if now is not None else self._now
            self._ahead = ahead if ahead is not None else self._ahead
            self._changed.notify_all()

    def wrote(self, shard: int, file: BinaryIO) -> bool:
        """Whether the shard's open file is one that this server has written."""
        return self._written.get(shard) == os.fstat(file.fileno()).st_ino

    def close(self) -> None:
        """End; what is under way is given up."""
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
                # What could not be had ahead of its use is tried again when it is needed.
                asked = shard == self._now and settled
                if asked:
                    self._now = None
                self._changed.notify_all()
            if asked:
                self._answer(problem)

    def _next(self) -> int | None:
        # The first sample waits for the first shard: nothing takes link or processor from it.
        if self._under_way and not self._first_is_done:
            return None
        # Requests stand in line in the order in which shards are wanted.
        if self._beginning:
            return None
        wanted = [] if self._now is None else [self._now]
        return next((s for s in [*wanted, *self._ahead] if s not in self._under_way), None)

    def _begun(self) -> None:
        """The next shard may stand in line."""
        with self._changed:
            self._beginning = False
            self._changed.notify_all()

    def _fetch(self, shard: int) -> bool:
        """See that the shard is there; False if it was given up because it is not needed yet."""
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
            # Another process is fetching it, or has the room.
            time.sleep(_POLL_S)
        return True

    def _try(self, shard: int) -> bool:
        with self._folder.claim(shard) as file:
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
            self._folder.keep(shard)
        return True

    def _memory(self) -> npt.NDArray[np.uint8]:
        """Room for one shard, the thread's own: new memory would be cleared by the kernel first.

        Filling a map of the file instead takes the kernel five times as long.
        """
        if not hasattr(self._of_thread, "memory"):
            self._of_thread.memory = np.empty(self._folder.shard_bytes, np.uint8)
        memory: npt.NDArray[np.uint8] = self._of_thread.memory
        return memory

    def _is_urgent(self, shard: int) -> bool:
        with self._changed:
            return shard == self._now
