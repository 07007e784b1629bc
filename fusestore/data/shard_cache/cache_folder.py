"""Fetched shards on this machine's disk, shared by its processes: locks, the limit, eviction.

`<root>/<dataset>/<shard>` is a whole shard, `<root>/<dataset>/.tmp-<shard>` an unfinished file. All
coordination is by locks of files, so killed processes leave nothing to clean up:

- a process that fetches a shard holds an exclusive lock on its unfinished file, and renames it;
- a process that uses a shard holds a shared lock on it, and only unlocked shards are evicted;
- eviction holds a lock of the root, so that all processes together keep the limit.

Only files with these names are removed. On a filesystem without locks, a shard may be fetched twice
or evicted while it is mapped, which costs time or disk but never gives wrong data.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

from fusestore.data.shard_cache.flock import lock_shared, locked_alone, unlock
from fusestore.errors import StorageError
from fusestore.storage.file_lock import locked
from fusestore.storage.private_folder import open_for_lock
from fusestore.storage.publish import TEMPORARY_PREFIX

_SHARD_NAME = re.compile(rf"(?:{re.escape(TEMPORARY_PREFIX)})?\d{{6,}}")
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT}
_ZEROS = 2**20


class NoRoomError(StorageError):
    """All shards that could be evicted are in use."""


@dataclass(frozen=True)
class ShardFolder:
    """The fetched shards of one dataset, below a root that all datasets share.

    Attributes:
        root: folder of all datasets' shards.
        dataset: name of the dataset's folder below the root; unique to the dataset.
        shard_bytes: size of each shard.
        limit: bytes of all shards below the root; None: as much as the disk has.
    """

    root: Path
    dataset: str
    shard_bytes: int
    limit: int | None

    @property
    def path(self) -> Path:
        """The dataset's own folder."""
        return self.root / self.dataset

    def has(self, shard: int) -> bool:
        """Whether the shard exists; another process may evict it at any time."""
        return self._file(shard).exists()

    def open(self, shard: int) -> BinaryIO | None:
        """The shard's file, which is not evicted before `close`; None if it does not exist."""
        try:
            file = _open_without_links(self._file(shard))
        except FileNotFoundError:
            return None
        lock_shared(file)
        if os.fstat(file.fileno()).st_nlink == 0:
            self.close(file)
            return None
        with contextlib.suppress(OSError):
            os.utime(file.fileno())
        return file

    def close(self, file: BinaryIO) -> None:
        """Close a file of `open`; maps of it stay valid, and the shard may be evicted."""
        # Unlocked first, because a map of the file would keep the lock.
        unlock(file)
        file.close()

    def discard(self, shard: int) -> None:
        """Remove a damaged shard, even while it is used."""
        self._file(shard).unlink(missing_ok=True)

    @contextlib.contextmanager
    def create(self, shard: int) -> Iterator[BinaryIO | None]:
        """An empty file for a missing shard; it is removed afterwards unless `publish` was called.

        Yields:
            The file; None if another process or thread is fetching the shard or has just done so.
        """
        temporary = self._temporary(shard)
        self.path.mkdir(parents=True, exist_ok=True)
        with os.fdopen(open_for_lock(temporary), "r+b") as file, locked_alone(file) as held:
            # The previous holder of the lock may have renamed or removed the opened file.
            if not held or not _is_at(file, temporary):
                yield None
                return
            try:
                file.truncate(0)
                yield None if self.has(shard) else file
            finally:
                if _is_at(file, temporary):
                    temporary.unlink()

    def remove_unfinished(self) -> None:
        """Remove what killed processes left of shards that they fetched."""
        for path in self.path.glob(f"{TEMPORARY_PREFIX}*"):
            if _SHARD_NAME.fullmatch(path.name):
                # Who fetches it holds its lock.
                with contextlib.suppress(OSError):
                    _evict(path)

    def reserve(self, file: BinaryIO, needed: Collection[int]) -> None:
        """Allocate the disk space of a file, evicting the least recently used shards.

        Args:
            file: from `create`.
            needed: shards of this dataset that are not evicted, even if no process has them open.

        Raises:
            NoRoomError: all shards that may be evicted are in use.
        """
        # Without a limit, shards are evicted only when the disk is full.
        if self.limit is None and _allocate(file, self.shard_bytes):
            return
        protected = {self._file(shard) for shard in needed}
        with self._root_lock():
            present = sorted(self._present(file))
            taken = sum(entry.num_bytes for entry in present)
            candidates = iter([entry for entry in present if entry.path not in protected])
            while True:
                within_limit = self.limit is None or taken + self.shard_bytes <= self.limit
                if within_limit and _allocate(file, self.shard_bytes):
                    return
                evicted = next((entry for entry in candidates if _evict(entry.path)), None)
                if evicted is None:
                    problem = "its disk is full" if within_limit else f"its limit is {self.limit:,}"
                    raise NoRoomError(
                        f"{self.root} has no room for a shard of {self.shard_bytes:,} bytes: "
                        f"{problem}, and its {taken:,} bytes of shards are in use. Raise "
                        "cache_limit, free disk space, or stream with a smaller shuffle_span."
                    )
                taken -= evicted.num_bytes

    def publish(self, shard: int) -> None:
        """Make the completed file of `create` visible as the shard."""
        # Under the lock, because a count of the shards would miss a file that is being renamed.
        with self._root_lock():
            self._temporary(shard).rename(self._file(shard))

    @contextlib.contextmanager
    def _root_lock(self) -> Iterator[None]:
        """The lock for counting, evicting and renaming shards below the root."""
        with locked(self.root / ".lock"):
            yield

    def _file(self, shard: int) -> Path:
        return self.path / f"{shard:06d}"

    def _temporary(self, shard: int) -> Path:
        return self.path / f"{TEMPORARY_PREFIX}{shard:06d}"

    def _present(self, created: BinaryIO) -> Iterator[_Entry]:
        """All shards and unfinished files below the root, except for the created file."""
        created_inode = os.fstat(created.fileno()).st_ino
        for path in self.root.glob("*/*"):
            if _SHARD_NAME.fullmatch(path.name):
                # Another process may remove or rename it before the next line.
                with contextlib.suppress(FileNotFoundError):
                    status = path.stat()
                    if status.st_ino != created_inode:
                        yield _Entry(status.st_mtime_ns, path, status.st_size)


def _open_without_links(path: Path) -> BinaryIO:
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
    return os.fdopen(os.open(path, flags), "rb")


class _Entry(NamedTuple):
    """A file below the root; the least recently used file sorts first."""

    used_ns: int
    path: Path
    num_bytes: int


def _is_at(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _evict(path: Path) -> bool:
    """Remove the file unless a process has it open; returns whether it is removed."""
    try:
        with path.open("rb") as file, locked_alone(file) as held:
            if not held:
                return False
            path.unlink()
    except FileNotFoundError:
        pass
    return True


def _allocate(file: BinaryIO, num_bytes: int) -> bool:
    """Allocate the file's disk space; False if the disk is full."""
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, num_bytes)
        else:
            _write_zeros(file, num_bytes)
    except OSError as error:
        file.truncate(0)
        if error.errno not in _DISK_FULL:
            raise
        return False
    return True


def _write_zeros(file: BinaryIO, num_bytes: int) -> None:
    """Allocate disk space on macOS, which has no call for it that a full disk answers."""
    file.seek(0)
    for start in range(0, num_bytes, _ZEROS):
        file.write(bytes(min(_ZEROS, num_bytes - start)))
    file.flush()
    file.seek(0)
