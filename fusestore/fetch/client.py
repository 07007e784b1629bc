"""The side of fetching that a training process sees: shards as maps, fetched by a helper process.

The helper (`fetch.server`) is started when the first shard is missing, one for each process that
reads; helpers of one machine share what they fetch through `ShardFolder`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, Self

import numpy as np
import numpy.typing as npt

from fusestore import errors
from fusestore.errors import CorruptionError, FusestoreError, StorageError
from fusestore.fetch.folder import ShardFolder
from fusestore.fetch.layout import ShardLayout

_Values = Mapping[str, npt.NDArray[Any]]

_ATTEMPTS = 10
"""Times a shard is looked for: it may be evicted before it is opened, or be damaged there."""


@dataclass(frozen=True)
class FetchJob:
    """What is fetched and where to. Can be pickled; has no open files.

    Attributes:
        source: path or URL of the fused dataset's folder.
        storage_options: for its filesystem.
        root: folder of all datasets' shards on this machine.
        dataset: digest of the manifest file; names the dataset's folder below the root.
        shard_bytes: of each fetched shard.
        limit: bytes for everything below the root; None: no limit.
    """

    source: str
    storage_options: tuple[tuple[str, str], ...]
    root: str
    dataset: str
    shard_bytes: int
    limit: int | None

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """The job that `asdict` and JSON were made of."""
        options = tuple((key, value) for key, value in content["storage_options"])
        return cls(**{**content, "storage_options": options})

    @property
    def folder(self) -> ShardFolder:
        """Where its shards are kept."""
        return ShardFolder(Path(self.root), self.dataset, self.shard_bytes, self.limit)

    @property
    def manifest_file(self) -> Path:
        """A copy of the manifest, so that every process reads the same one."""
        return self.folder.path / "manifest.json"


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
        self._helper: _Helper | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release(list(self._open))
        if self._helper is not None:
            self._helper.close()
            self._helper = None

    def read(self, start: int, stop: int, names: Iterable[str]) -> dict[str, npt.NDArray[Any]]:
        """Copies of positions `[start, stop)` of the named arrays; waits for what is missing.

        Raises:
            CorruptionError: what the storage has is not what the manifest says.
            AccessDeniedError, StorageError: the storage failed, or there is no room.
        """
        rows = self._layout.rows_per_shard
        pieces: list[tuple[_Values, slice]] = []
        for shard in range(start // rows, -(-stop // rows)):
            low = max(start - shard * rows, 0)
            pieces.append((self._values(shard), slice(low, min(stop - shard * rows, rows))))
        return {
            name: np.concatenate([values[name][part] for values, part in pieces]) for name in names
        }

    def expect(self, shards: Sequence[int]) -> None:
        """Say what will be needed, in this order; replaces what was said before."""
        missing = [shard for shard in shards if shard not in self._open]
        if self._helper is not None or not all(map(self._folder.has, missing)):
            self._ask({"ahead": missing})

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
                self._ask({"now": shard}).wait(shard, self._job)
                continue
            size = os.fstat(file.fileno()).st_size
            content = np.memmap(file, np.uint8, mode="r") if size else np.empty(0, np.uint8)
            content = content.view(np.ndarray)
            if self._layout.is_sound(content):
                self._open[shard] = (file, self._layout.values(content))
                return self._open[shard][1]
            # Written by a machine that lost power, or by a disk that fails.
            self._folder.close(file)
            self._folder.discard(shard)
        raise CorruptionError(
            f"Shard {shard} of {self._job.source}, fetched to {self._folder.path}, was gone or "
            "damaged there again and again. Check the disk, or give another cache_dir."
        )

    def _ask(self, message: Mapping[str, object]) -> _Helper:
        if self._helper is None or not self._helper.alive:
            self._helper = _Helper(self._job)
        self._helper.send(message)
        return self._helper


class _Helper:
    """A process that fetches for this one; ends when its input does."""

    def __init__(self, job: FetchJob) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "fusestore.fetch.server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        # Options may hold credentials: not on the command line, which everyone can read.
        self.send(asdict(job))

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def send(self, message: Mapping[str, object] | None) -> None:
        stream = _pipe(self._process.stdin)
        try:
            stream.write(json.dumps(message).encode() + b"\n")
            stream.flush()
        except BrokenPipeError:
            # It ended; reading its answer says so.
            return

    def wait(self, shard: int, job: FetchJob) -> None:
        """Until the shard that was asked for is there."""
        line = _pipe(self._process.stdout).readline()
        if not line:
            raise StorageError(
                f"The process that fetches shard {shard} of {job.source} ended with code "
                f"{self._process.wait()}, perhaps for want of memory."
            )
        problem = json.loads(line)
        if problem is not None:
            kind = getattr(errors, problem[0], FusestoreError)
            raise kind(problem[1])

    def close(self) -> None:
        # A process forked from this one may still hold the pipe, which then does not end.
        self.send(None)
        _pipe(self._process.stdin).close()
        _pipe(self._process.stdout).close()
        self._process.wait()


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None  # noqa: S101 - made with PIPE
    return stream
