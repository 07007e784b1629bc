"""File locks between the processes of one machine (`flock`); a lock ends with its process."""

from __future__ import annotations

import contextlib
import errno
import fcntl
from collections.abc import Iterator
from typing import BinaryIO

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


def lock_file(file: BinaryIO, mode: int = fcntl.LOCK_EX) -> bool:
    """Lock an open file, for as long as any process has it open: end the lock by `unlock_file`.

    Args:
        file: the file.
        mode: `fcntl.LOCK_EX` or `fcntl.LOCK_SH`; with `fcntl.LOCK_NB` it does not wait.

    Returns:
        Whether the file is locked now; on a filesystem without locks, always True.
    """
    try:
        fcntl.flock(file, mode)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return True


def unlock_file(file: BinaryIO) -> None:
    """End the lock, in every process that has the file open.

    Closing the file is not enough: a process that another thread forks meanwhile has it open too,
    and would keep the lock until that process ends.
    """
    lock_file(file, fcntl.LOCK_UN)


@contextlib.contextmanager
def locked(file: BinaryIO, mode: int = fcntl.LOCK_EX) -> Iterator[bool]:
    """`lock_file`, and `unlock_file` at the end; yields whether the file is locked."""
    held = lock_file(file, mode)
    try:
        yield held
    finally:
        if held:
            unlock_file(file)
