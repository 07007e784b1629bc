"""One process makes a shard, the others wait for it: file locks that end with their process.

A lock only saves work. Shards are published whole and are the same bytes whoever makes them, so
where a filesystem knows no locks, or two machines fill one folder of object storage, a shard may be
paid for twice, but it is never torn.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from fusestore.storage.file_lock import locked
from fusestore.storage.location import Location
from fusestore.storage.packages import user_cache_folder
from fusestore.storage.publish import TEMPORARY_PREFIX
from fusestore.store.receipts import shard_part


@contextlib.contextmanager
def shard_lock(folder: Location, shard: int) -> Iterator[None]:
    """Hold the lock of a shard, waiting for whoever has it.

    Look again whether the shard is there once it is held: the one before may have made it.

    Args:
        folder: the fused dataset's folder. Locks of a remote one are kept on this machine.
        shard: the shard's number.
    """
    path = lock_folder(folder) / shard_part(shard)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file, locked(file):
        yield
        # Only after success: whoever waits now finds the shard, by whichever file it waits.
        path.unlink(missing_ok=True)


def remove_locks(folder: Location) -> None:
    """Remove what killed processes left; only when no shard is missing any more."""
    shutil.rmtree(lock_folder(folder), ignore_errors=True)


def lock_folder(folder: Location) -> Path:
    """Where the locks of a fused dataset lie: never among what is published."""
    if folder.is_local:
        return folder.path / f"{TEMPORARY_PREFIX}locks"
    digest = hashlib.sha256(folder.url.encode()).hexdigest()
    return user_cache_folder() / "locks" / digest[:32]
