"""The side of fetching that a training process sees: shards as maps, fetched in the background.

Threads of this process fetch; they begin when the first shard is missing. All processes of a
machine share shards through `ShardFolder`. A forked process fetches nothing: it lacks the threads
of the clients that its parent has used, and would wait for them for ever.
"""

from __future__ import annotations

import os
import queue
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, BinaryIO, Self

import numpy as np
import numpy.typing as npt

from fusestore.data.shard_cache.job import FetchJob
from fusestore.data.shard_cache.layout import ShardLayout
from fusestore.errors import CorruptionError
from fusestore.forked import check_not_forked

_Values = Mapping[str, npt.NDArray[Any]]

_ATTEMPTS = 10
"""Times a shard is looked for: it may be evicted before it is opened, or be damaged there."""

_MAX_OPEN = 256
"""Shards that are open at a time; the one opened longest ago is closed, and may be evicted."""


class FetchedShards:
    """The shards that one process uses, mapped. Not for use after a fork, nor by several threads.

    Args:
        job: what is fetched.
        layout: of its shards.
    """

    def __init__(self, job: FetchJob, layout: ShardLayout) -> None:
        self._job = job
        self._folder = job.folder
        self._layout = layout
        self._open: dict[int, tuple[BinaryIO, _Values]] = {}
        self._checked: dict[int, int] = {}
        self._fetcher: _Fetcher | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release(list(self._open))
        if self._fetcher is not None:
            self._fetcher.close()
            self._fetcher = None

    def pieces(self, start: int, stop: int) -> list[_Values]:
        """Positions `[start, stop)`, shard by shard; waits for what is missing.

        Args:
            start: the first position.
            stop: one past the last.

        Returns:
            For each shard that they lie in, views of its map by the array's name: [positions] or
            [positions, k]. They stay valid after `release`. What is written to them goes to a copy
            of the page, of this process and this map alone.

        Raises:
            CorruptionError: what the storage has is not what the manifest says.
            AccessDeniedError, StorageError: the storage failed, or there is no room.
        """
        rows = self._layout.rows_per_shard
        found: list[_Values] = []
        for shard in range(start // rows, -(-stop // rows)):
            part = slice(max(start - shard * rows, 0), min(stop - shard * rows, rows))
            values = self._values(shard)
            found.append({name: array[part] for name, array in values.items()})
        return found

    def expect(self, shards: Sequence[int]) -> None:
        """Say what will be needed, in this order; replaces what was said before."""
        missing = [shard for shard in shards if shard not in self._open]
        if self._fetcher is not None or not all(map(self._folder.has, missing)):
            self._ask(ahead=missing)

    def release(self, shards: Iterable[int]) -> None:
        """Shards that are not needed any more."""
        for shard in shards:
            if shard in self._open:
                self._folder.close(self._open.pop(shard)[0])

    def _values(self, shard: int) -> _Values:
        if shard in self._open:
            return self._open[shard][1]
        for _ in range(_ATTEMPTS):
            file = self._folder.open(shard)
            if file is None:
                self._ask(now=shard).wait()
                continue
            status = os.fstat(file.fileno())
            # "c": written to, a page is copied first.
            is_empty = status.st_size == 0
            content = np.empty(0, np.uint8) if is_empty else np.memmap(file, np.uint8, mode="c")
            content = content.view(np.ndarray)
            just_written = self._fetcher is not None and self._fetcher.wrote(shard, file)
            checked = just_written or self._checked.get(shard) == status.st_ino
            if checked or self._layout.is_sound(content):
                self._checked[shard] = status.st_ino
                self._open[shard] = (file, self._layout.values(content))
                if len(self._open) > _MAX_OPEN:
                    self.release([next(iter(self._open))])
                return self._open[shard][1]
            # Written by a machine that lost power, or by a disk that fails.
            self._folder.close(file)
            self._folder.discard(shard)
        raise CorruptionError(
            f"Shard {shard} of {self._job.source}, fetched to {self._folder.path}, was gone or "
            "damaged there again and again. Check the disk, or give another cache_dir."
        )

    def _ask(self, **wanted: Any) -> _Fetcher:  # noqa: ANN401 - see `FetchServer.want`
        if self._fetcher is None:
            check_not_forked(f"fetches shards of {self._job.source}")
            self._fetcher = _Fetcher(self._job)
        self._fetcher.want(**wanted)
        return self._fetcher


class _Fetcher:
    """A `FetchServer`, and the line of its answers."""

    def __init__(self, job: FetchJob) -> None:
        # Only who fetches imports what fetching needs.
        from fusestore.data.shard_cache.server import FetchServer

        self._answers: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self._server = FetchServer(job, self._answers.put)
        self.want = self._server.want
        self.wrote = self._server.wrote
        self.close = self._server.close

    def wait(self) -> None:
        """Until the shard that was wanted now is there; raises what went wrong."""
        problem = self._answers.get()
        if problem is not None:
            raise problem
