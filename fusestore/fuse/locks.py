"""File locks, so that one process makes a shard and the others wait; they end with their process.

A lock only saves work. Shards are published whole and their bytes do not depend on the process that
makes them. So a filesystem without locks, or two machines that write to one folder of object
storage, may make a shard twice, but never a torn one.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from fusestore.storage.file_lock import is_free, locked
from fusestore.storage.location import Location
from fusestore.storage.packages import user_cache_folder
from fusestore.storage.publish import TEMPORARY_PREFIX
from fusestore.store.receipts import shard_part

LOCK_FOLDER = f"{TEMPORARY_PREFIX}locks"
"""In the folder of a local fused dataset."""


@contextlib.contextmanager
def shard_lock(folder: Location, shard: int) -> Iterator[None]:
    """Hold the lock of a shard; waits until it is free.

    The process that held the lock before may have made the shard: check again after this.

    Args:
        folder: the fused dataset's folder. Locks of a remote folder are kept on this machine.
        shard: the shard's number.
    """
    path = lock_folder(folder) / shard_part(shard)
    with locked(path):
        yield
        # Only after success: a process that waits on the deleted file finds the shard made.
        # Windows removes no open file, so there `remove_locks` does.
        with contextlib.suppress(PermissionError):
            path.unlink(missing_ok=True)


def remove_locks(folder: Location) -> None:
    """Remove the locks that killed processes left; only when no shard is missing."""
    shutil.rmtree(lock_folder(folder), ignore_errors=True)


def is_lock(path: str) -> bool:
    """Whether a file of a store, by its path, lies where locks are."""
    return path.split("/")[-2:-1] == [LOCK_FOLDER]


def remove_free_lock(file: Location, *, dry_run: bool = False) -> bool:
    """Remove the file of a lock if nobody holds the lock; whether nobody does.

    Args:
        file: for which `is_lock` holds.
        dry_run: only say so.
    """
    if not file.is_local or file.leads_out or not is_free(file.path, remove=not dry_run):
        return False
    if not dry_run:
        # Who makes a lock there at this moment makes the folder again.
        with contextlib.suppress(OSError):
            file.parent.path.rmdir()
    return True


def lock_folder(folder: Location) -> Path:
    """The folder of a fused dataset's locks, outside what is published."""
    if folder.is_local:
        return (folder / LOCK_FOLDER).path
    digest = hashlib.sha256(folder.url.encode()).hexdigest()
    return user_cache_folder() / "locks" / digest[:32]
