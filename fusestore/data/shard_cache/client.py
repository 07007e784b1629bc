"""The side of fetching that a training process sees: shards as maps, fetched in the background.

Threads of this process fetch, or, where it was *forked*, a helper process that is started for it
(`fetch.helper`): a process that was forked after s3fs was used hangs in it. Whoever fetches begins
when the first shard is missing; all processes of a machine share shards through `ShardFolder`.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import IO, Any, BinaryIO, Protocol, Self

import numpy as np
import numpy.typing as npt

from fusestore import errors
from fusestore.data.shard_cache.job import FetchJob
from fusestore.data.shard_cache.layout import ShardLayout
from fusestore.errors import CorruptionError, FusestoreError, StorageError

_IMPORTED_IN = os.getpid()
"""A process with another id was forked from the one that imported this module."""

_Values = Mapping[str, npt.NDArray[Any]]

_ATTEMPTS = 10
"""Times a shard is looked for: it may be evicted before it is opened, or be damaged there."""


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
                self._ask(now=shard).wait(shard)
                continue
            size = os.fstat(file.fileno()).st_size
            # "c": written to, a page is copied first.
            content = np.memmap(file, np.uint8, mode="c") if size else np.empty(0, np.uint8)
            content = content.view(np.ndarray)
            just_written = self._fetcher is not None and self._fetcher.wrote(shard, file)
            if just_written or self._layout.is_sound(content):
                self._open[shard] = (file, self._layout.values(content))
                return self._open[shard][1]
            # Written by a machine that lost power, or by a disk that fails.
            self._folder.close(file)
            self._folder.discard(shard)
        raise CorruptionError(
            f"Shard {shard} of {self._job.source}, fetched to {self._folder.path}, was gone or "
            "damaged there again and again. Check the disk, or give another cache_dir."
        )

    def _ask(self, **wanted: Any) -> _Fetcher:  # noqa: ANN401 - see `FetchServer.want`
        if self._fetcher is None or not self._fetcher.alive:
            forked = os.getpid() != _IMPORTED_IN
            self._fetcher = _Helper(self._job) if forked else _Threads(self._job)
        self._fetcher.want(**wanted)
        return self._fetcher


class _Fetcher(Protocol):
    """Something that fetches in the background."""

    @property
    def alive(self) -> bool:
        """Whether it can be asked."""
        ...

    def want(self, *, now: int | None = None, ahead: list[int] | None = None) -> None:
        """Say what is wanted; see `FetchServer.want`."""
        ...

    def wait(self, shard: int) -> None:
        """Until the shard that was wanted now is there; raises what went wrong."""
        ...

    def wrote(self, shard: int, file: BinaryIO) -> bool:
        """Whether the shard's open file was written from memory of this very process."""
        ...

    def close(self) -> None:
        """End it."""
        ...


class _Threads:
    """Fetches in this process."""

    alive = True

    def __init__(self, job: FetchJob) -> None:
        # Only who fetches imports what fetching needs.
        from fusestore.data.shard_cache.server import FetchServer

        self._answers: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self._server = FetchServer(job, self._answers.put)
        self.want = self._server.want
        self.wrote = self._server.wrote
        self.close = self._server.close

    def wait(self, shard: int) -> None:
        problem = self._answers.get()
        if problem is not None:
            raise problem


class _Helper:
    """A process that fetches for this one; ends when its input does."""

    def __init__(self, job: FetchJob) -> None:
        self._source = job.source
        self._process = subprocess.Popen(
            [sys.executable, "-m", "fusestore.data.shard_cache.fetch_helper"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        # Options may hold credentials: not on the command line, which everyone can read.
        self._send(asdict(job))

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def want(self, *, now: int | None = None, ahead: list[int] | None = None) -> None:
        self._send({"now": now, "ahead": ahead})

    def wait(self, shard: int) -> None:
        line = _pipe(self._process.stdout).readline()
        if not line:
            raise StorageError(
                f"The process that fetches shard {shard} of {self._source} ended with code "
                f"{self._process.wait()}, perhaps for want of memory."
            )
        problem = json.loads(line)
        if problem is not None:
            kind = getattr(errors, problem[0], FusestoreError)
            raise kind(problem[1])

    def wrote(self, shard: int, file: BinaryIO) -> bool:
        return False

    def close(self) -> None:
        # A process forked from this one may still hold the pipe, which then does not end.
        self._send(None)
        _pipe(self._process.stdin).close()
        _pipe(self._process.stdout).close()
        self._process.wait()

    def _send(self, message: Mapping[str, object] | None) -> None:
        stream = _pipe(self._process.stdin)
        try:
            stream.write(json.dumps(message).encode() + b"\n")
            stream.flush()
        except BrokenPipeError:
            # It ended; reading its answer says so.
            return


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None  # noqa: S101 - made with PIPE
    return stream
