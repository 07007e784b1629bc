"""Making the shards of a fused dataset when they are read: in this process, or beside it.

Making a shard needs Polars, zarr and perhaps s3fs, and a process that was *forked* after those were
used hangs in them. So a forked process, such as a DataLoader's worker on Linux, never makes a shard
itself: it starts `fusestore.data.fill_helper`, a fresh interpreter that serves this one process and
ends with it. The main process, and workers that were spawned, make shards themselves.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

from fusestore import errors
from fusestore.errors import FusestoreError, StorageError
from fusestore.plugins import child_environment, expect_plugins, plugin_names

if TYPE_CHECKING:
    from fusestore.fuse.folder import FusedFolder

_IMPORTED_IN = os.getpid()
"""A process with another id was forked from the one that imported this module."""


@dataclass(frozen=True)
class ShardFiller:
    """Makes shards of one fused dataset. Can be pickled; what it opens stays in the process.

    Attributes:
        store: path or URL of the store that holds the inputs.
        storage_options: for the store's filesystem.
        folder: the fused dataset's local folder, which holds its recipe.json.
    """

    store: str
    storage_options: tuple[tuple[str, str], ...]
    folder: str

    def __getstate__(self) -> dict[str, Any]:
        return {"fields": self.__dict__, "plugins": plugin_names()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state["fields"])
        # A worker has a registry of its own, without the strategies registered by plugins.
        expect_plugins(state["plugins"])

    def __call__(self, shard: int) -> None:
        """Make the shard unless it is there.

        Raises:
            FingerprintMismatchError: an input is not what it was when the dataset was begun.
            CorruptionError: an input is damaged.
            NotFoundError: an input is gone.
            StorageError: the helper process was killed.
        """
        if os.getpid() != _IMPORTED_IN:
            _helper(self).fill(shard)
            return
        with _LOCK:
            _MAKERS.setdefault(self, ShardMaker(self)).make(shard)


class ShardMaker:
    """Makes shards in this process; what it has read of the inputs stays open.

    Imports what a forked process must not use, when it makes the first one.
    """

    def __init__(self, filler: ShardFiller) -> None:
        self._filler = filler
        self._folder: FusedFolder | None = None

    def make(self, shard: int) -> None:
        """Make the shard unless it is there, and the manifest when it was the last; see above."""
        from fusestore.fuse.begin import is_current, reopen
        from fusestore.storage.location import Location
        from fusestore.store.layout import Store

        store = Store.open(self._filler.store, dict(self._filler.storage_options))
        # An input may have been made anew since it was opened. Opening again says what differs.
        if self._folder is None or not is_current(store, self._folder.plan):
            self._folder = None
            self._folder = reopen(store, Location.parse(self._filler.folder))
        self._folder.fill(shard)
        self._folder.complete()


_LOCK = threading.Lock()
_MAKERS: dict[ShardFiller, ShardMaker] = {}
_HELPERS: dict[tuple[int, ShardFiller], _Helper] = {}
"""By process, so that no two processes talk into one pipe after a fork."""


def _helper(filler: ShardFiller) -> _Helper:
    key = (os.getpid(), filler)
    if key not in _HELPERS or not _HELPERS[key].alive:
        _HELPERS[key] = _Helper(filler)
    return _HELPERS[key]


class _Helper:
    """A fresh interpreter that makes shards for this process; ends when its input does."""

    def __init__(self, filler: ShardFiller) -> None:
        self._filler = filler
        self._process = subprocess.Popen(
            [sys.executable, "-m", "fusestore.data.fill_helper"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=child_environment(),
        )
        # Options may hold credentials: not on the command line, which everyone can read.
        self._send([filler.store, list(filler.storage_options), filler.folder])

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def fill(self, shard: int) -> None:
        self._send(shard)
        line = _pipe(self._process.stdout).readline()
        if not line:
            raise StorageError(
                f"The process that made shard {shard} of {self._filler.folder} ended with code "
                f"{self._process.wait()}, perhaps for want of memory. Use fewer workers, or make "
                "all shards first with `fusestore fuse --materialize`."
            )
        problem = json.loads(line)
        if problem is not None:
            kind = getattr(errors, problem[0], FusestoreError)
            raise kind(problem[1])

    def _send(self, message: object) -> None:
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
