"""Fetched shards as memory maps for a training process, fetched in the background.

Threads of this process fetch; they start when the first shard is missing. All processes of a
machine share shards through `ShardFolder`. A forked process fetches nothing: it lacks the threads
of its parent's clients, and would wait for them forever.
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
from fusestore.fuse.choices import KIND_NAMES
from fusestore.storage.shown import shown

_Values = Mapping[str, npt.NDArray[Any]]

_ATTEMPTS = 10
"""Attempts to open a shard: it may be evicted before it is opened, or be damaged on the disk."""

_MAX_OPEN = 256
"""Open shards at a time; the first opened shard is closed first, and may be evicted."""


class FetchedShards:
    """The mapped shards of one process. Not for use after a fork, nor by several threads.

    Args:
        job: the dataset and its local folder.
        layout: of the dataset's shards.
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

    def views(self, start: int, stop: int) -> list[_Values]:
        """Positions `[start, stop)`, shard by shard; waits for missing shards.

        Args:
            start: the first position.
            stop: one past the last.

        Returns:
            For each shard of these positions, views of its map by the array's name: [positions] or
            [positions, k]. They stay valid after `release`. Writing to them changes a private copy
            of the page, of this process and this map.

        Raises:
            CorruptionError: the storage's files do not match the manifest.
            AccessDeniedError, StorageError: the storage failed, or the disk has no room.
        """
        rows = self._layout.rows_per_shard
        views: list[_Values] = []
        for shard in range(start // rows, -(-stop // rows)):
            shard_rows = slice(max(start - shard * rows, 0), min(stop - shard * rows, rows))
            values = self._values(shard)
            views.append({name: array[shard_rows] for name, array in values.items()})
        return views

    def prefetch(self, shards: Sequence[int]) -> None:
        """Fetch shards in this order in the background; replaces the shards of earlier calls."""
        missing = [shard for shard in shards if shard not in self._open]
        if self._fetcher is not None or not all(map(self._folder.has, missing)):
            self._request(ahead=missing)

    def release(self, shards: Iterable[int]) -> None:
        """Close shards that are not needed any more."""
        for shard in shards:
            if shard in self._open:
                self._folder.close(self._open.pop(shard)[0])

    def _values(self, shard: int) -> _Values:
        if shard in self._open:
            return self._open[shard][1]
        for _ in range(_ATTEMPTS):
            file = self._folder.open(shard)
            if file is None:
                self._request(now=shard).wait()
                continue
            status = os.fstat(file.fileno())
            # "c": copy on write.
            is_empty = status.st_size == 0
            content = np.empty(0, np.uint8) if is_empty else np.memmap(file, np.uint8, mode="c")
            content = content.view(np.ndarray)
            just_written = self._fetcher is not None and self._fetcher.wrote(shard, file)
            checked = just_written or self._checked.get(shard) == status.st_ino
            if checked or self._layout.is_sound(content):
                self._checked[shard] = status.st_ino
                values = self._layout.values(content)
                if values["kind"].max() >= len(KIND_NAMES):
                    raise CorruptionError(
                        f"Shard {shard} of {shown(self._job.source)} holds positions of kind "
                        f"{values['kind'].max()}, which is none. Run `fusestore verify` on its "
                        "store, then share it again."
                    )
                self._open[shard] = (file, values)
                if len(self._open) > _MAX_OPEN:
                    self.release([next(iter(self._open))])
                return self._open[shard][1]
            # The machine lost power while it was written, or the disk fails.
            self._folder.close(file)
            self._folder.discard(shard)
        raise CorruptionError(
            f"Shard {shard} of {shown(self._job.source)}, fetched to {self._folder.path}, was "
            f"missing or damaged {_ATTEMPTS} times. Check the disk, or give another cache_dir."
        )

    def _request(self, **shards: Any) -> _Fetcher:  # noqa: ANN401 - see `FetchServer.request`
        if self._fetcher is None:
            check_not_forked(f"fetches shards of {shown(self._job.source)}")
            self._fetcher = _Fetcher(self._job)
        self._fetcher.request(**shards)
        return self._fetcher


class _Fetcher:
    """A `FetchServer` and the queue of its answers."""

    def __init__(self, job: FetchJob) -> None:
        # Imported when it is used: a process that never fetches needs no download libraries.
        from fusestore.data.shard_cache.server import FetchServer

        self._answers: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self._server = FetchServer(job, self._answers.put)
        self.request = self._server.request
        self.wrote = self._server.wrote
        self.close = self._server.close

    def wait(self) -> None:
        """Wait for the shard requested as `now`; raises the error of its download."""
        problem = self._answers.get()
        if problem is not None:
            raise problem
