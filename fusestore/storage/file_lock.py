"""Locks between the processes of one machine; a lock ends with its process."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from fusestore.errors import InvalidInputError
from fusestore.storage.disk_errors import disk_errors

NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
"""Error numbers of filesystems without locks."""

_POLL_S = 0.01

_ATTEMPTS = 100
"""Another process may remove the folder of a lock each time after it was made."""


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock that a file stands for; waits until it is free.

    On a filesystem without locks nothing is held, so a lock may only save work.

    Args:
        path: a file for the lock alone; it is created, and stays.

    Raises:
        InvalidInputError: the file is a symbolic link.
        AccessDeniedError, StorageError: it cannot be made.
    """
    lock = FileLock(path, poll_interval=_POLL_S, fallback_to_soft=False)
    with disk_errors(path):
        _acquire(lock, path)
    try:
        yield
    finally:
        lock.release()


def is_free(path: Path, *, remove: bool = False) -> bool:
    """Whether nobody holds the lock that a file stands for; does not wait.

    Of a file that cannot be locked, as on a filesystem without locks, that is not known: False.

    Args:
        path: the file, which exists.
        remove: whether to remove it, while this process holds it. A process that opened it before
            finds, once it has the lock, that the file has lost its name, and makes a new one.
    """
    lock = FileLock(path, blocking=False, fallback_to_soft=False)
    try:
        with lock:
            if remove:
                path.unlink(missing_ok=True)
    except (Timeout, OSError):
        return False
    return True


def _acquire(lock: BaseFileLock, path: Path) -> None:
    for left in reversed(range(_ATTEMPTS)):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
            break
        except FileNotFoundError:
            if not left:
                raise
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise InvalidInputError(
                    f"{path} is a symbolic link, and locks follow none. Remove it; nobody else "
                    "should be able to write to its folder."
                ) from error
            if error.errno not in NO_LOCKS:
                raise
            break
