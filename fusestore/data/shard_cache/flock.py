"""`flock` on fetched shards, which are locked while they are read, replaced and removed.

Windows has no such locks, and neither renames nor removes a file that is open.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import BinaryIO

from fusestore.errors import UnsupportedPlatformError
from fusestore.storage.file_lock import NO_LOCKS


def check_has_flock() -> None:
    """Check that this system has `flock`.

    Raises:
        UnsupportedPlatformError: it has not.
    """
    try:
        import fcntl  # noqa: F401 - that it can be imported is the answer
    except ImportError as error:
        raise UnsupportedPlatformError(
            "Windows cannot stream: fetched shards are locked, replaced and removed while they are "
            "open. Copy the dataset with `fusestore pull` and open it with fusestore.open_fused."
        ) from error


def lock_shared(file: BinaryIO) -> None:
    """Lock an open file together with others; waits while one has it alone.

    The lock lasts as long as any process has the file open: end it by `unlock`.
    """
    import fcntl

    _flock(file, fcntl.LOCK_SH)


@contextlib.contextmanager
def locked_alone(file: BinaryIO) -> Iterator[bool]:
    """Lock an open file alone, without waiting; yields whether it is locked.

    On a filesystem without locks it always is.
    """
    import fcntl

    held = _flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    try:
        yield held
    finally:
        if held:
            unlock(file)


def unlock(file: BinaryIO) -> None:
    """End the lock, in every process that has the file open.

    Closing the file is not enough: a process that another thread forks meanwhile has it open too,
    and would keep the lock until that process ends.
    """
    import fcntl

    _flock(file, fcntl.LOCK_UN)


def _flock(file: BinaryIO, mode: int) -> bool:
    import fcntl

    try:
        fcntl.flock(file, mode)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    return True
