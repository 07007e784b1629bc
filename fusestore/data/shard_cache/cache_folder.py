"""Fetched shards on this machine's disk, shared by its processes: locks, the limit, eviction.

`<root>/<dataset>/<shard>` is a whole shard, `<root>/<dataset>/.tmp-<shard>` one that is being
fetched. All coordination is by `flock`, so nothing has to be cleaned up after a process that was
killed:

- whoever fetches a shard holds an exclusive lock on its unfinished file, which is then renamed;
- whoever uses one holds a shared lock on it, and only what nobody holds is evicted;
- room is made under a lock of the root, so that processes together keep the limit.

Only files of these names are ever removed. Where a filesystem knows no locks, a shard may be
fetched twice or evicted while it is mapped, which costs time or disk, and is never wrong.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

from fusestore.errors import StorageError
from fusestore.storage.file_lock import lock_file, locked, unlock_file
from fusestore.storage.publish import TEMPORARY_PREFIX

_SHARD_NAME = re.compile(rf"(?:{re.escape(TEMPORARY_PREFIX)})?\d{{6,}}")
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT}


class NoRoomError(StorageError):
    """Everything that could make room for a shard is in use."""


@dataclass(frozen=True)
class ShardFolder:
    """The fetched shards of one dataset, below a root that all datasets share.

    Attributes:
        root: folder of all datasets' shards.
        dataset: what tells the dataset from others: the folder's name below the root.
        shard_bytes: of each of its shards.
        limit: bytes that all shards below the root may take together; None: what the disk has.
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
        """Whether the shard is there, now."""
        return self._file(shard).exists()

    def open(self, shard: int) -> BinaryIO | None:
        """The shard's file, which stays until `close`; None if it is not there."""
        try:
            file = self._file(shard).open("rb")
        except FileNotFoundError:
            return None
        lock_file(file, fcntl.LOCK_SH)
        if os.fstat(file.fileno()).st_nlink == 0:
            self.close(file)
            return None
        with contextlib.suppress(OSError):
            os.utime(file.fileno())
        return file

    def close(self, file: BinaryIO) -> None:
        """Give up a file of `open`; maps of it stay valid, and the shard may be evicted."""
        # A map of the file, too, would keep the lock otherwise.
        unlock_file(file)
        file.close()

    def discard(self, shard: int) -> None:
        """Remove a shard, whoever uses it: it is damaged."""
        self._file(shard).unlink(missing_ok=True)

    @contextlib.contextmanager
    def claim(self, shard: int) -> Iterator[BinaryIO | None]:
        """An empty file for a shard that is missing; it disappears unless `keep` was called.

        Yields:
            The file, or None when another process, or another thread, is fetching the shard or
            has just fetched it.
        """
        temporary = self._temporary(shard)
        self.path.mkdir(parents=True, exist_ok=True)
        opened = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        with (
            os.fdopen(opened, "r+b") as file,
            locked(file, fcntl.LOCK_EX | fcntl.LOCK_NB) as held,
        ):
            # The one before may have renamed or removed what was opened here.
            if not held or not _is_at(file, temporary):
                yield None
                return
            try:
                file.truncate(0)
                yield None if self.has(shard) else file
            finally:
                if _is_at(file, temporary):
                    temporary.unlink()

    def reserve(self, file: BinaryIO, needed: Collection[int]) -> None:
        """Give a claimed file its size on the disk, evicting the shards used longest ago.

        Args:
            file: from `claim`.
            needed: shards of this dataset to be left alone, though nobody has them open.

        Raises:
            NoRoomError: what is left is in use.
        """
        # Without a limit the shards are looked at only when the disk is full.
        if self.limit is None and _allocate(file, self.shard_bytes):
            return
        spared = {self._file(shard) for shard in needed}
        with self._root_lock():
            present = sorted(self._present(file))
            taken = sum(entry.num_bytes for entry in present)
            candidates = iter([entry for entry in present if entry.path not in spared])
            while True:
                within_limit = self.limit is None or taken + self.shard_bytes <= self.limit
                if within_limit and _allocate(file, self.shard_bytes):
                    return
                evicted = next((entry for entry in candidates if _evict(entry.path)), None)
                if evicted is None:
                    problem = "its disk is full" if within_limit else f"it may have {self.limit:,}"
                    raise NoRoomError(
                        f"{self.root} has no room for a shard of {self.shard_bytes:,} bytes: "
                        f"{problem}, and the {taken:,} bytes of shards there are in use. Raise "
                        "cache_limit, free disk space, or stream with a smaller shuffle_span."
                    )
                taken -= evicted.num_bytes

    def keep(self, shard: int) -> None:
        """The file that was claimed for the shard holds it now: show it."""
        # Whoever counts shards at this moment would miss one that changes its name.
        with self._root_lock():
            self._temporary(shard).rename(self._file(shard))

    @contextlib.contextmanager
    def _root_lock(self) -> Iterator[None]:
        """Held by whoever counts, evicts or renames shards below the root."""
        with (self.root / ".lock").open("ab") as file, locked(file):
            yield

    def _file(self, shard: int) -> Path:
        return self.path / f"{shard:06d}"

    def _temporary(self, shard: int) -> Path:
        return self.path / f"{TEMPORARY_PREFIX}{shard:06d}"

    def _present(self, apart: BinaryIO) -> Iterator[_Entry]:
        """All shards below the root, unfinished ones too, but for the claimed one."""
        own = os.fstat(apart.fileno()).st_ino
        for path in self.root.glob("*/*"):
            if _SHARD_NAME.fullmatch(path.name):
                # Another process may remove or rename it at this moment.
                with contextlib.suppress(FileNotFoundError):
                    status = path.stat()
                    if status.st_ino != own:
                        yield _Entry(status.st_mtime_ns, path, status.st_size)


class _Entry(NamedTuple):
    """A file below the root; the one used longest ago sorts first."""

    used_ns: int
    path: Path
    num_bytes: int


def _is_at(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _evict(path: Path) -> bool:
    """Remove the file unless somebody holds it; whether it is gone."""
    try:
        with path.open("rb") as file, locked(file, fcntl.LOCK_EX | fcntl.LOCK_NB) as held:
            if not held:
                return False
            path.unlink()
    except FileNotFoundError:
        pass
    return True


def _allocate(file: BinaryIO, num_bytes: int) -> bool:
    """Give the file its size and the disk space for it; False when the disk is full."""
    try:
        os.posix_fallocate(file.fileno(), 0, num_bytes)
    except OSError as error:
        file.truncate(0)
        if error.errno not in _DISK_FULL:
            raise
        return False
    return True
