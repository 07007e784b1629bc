"""Errors of this machine's disks become ours: what was not written, where, why, and what to do."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

from fusestore.errors import AccessDeniedError, FusestoreError, StorageError

WRITING_FAILED = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
"""Error numbers that only writing has."""

_REMEDIES = {
    errno.ENOSPC: "Free space there",
    errno.EDQUOT: "Free space there, or have the quota raised",
    errno.EROFS: "Make it writable: its disk is mounted read-only",
    errno.EACCES: "Make it writable",
    errno.EPERM: "Make it writable",
    errno.EIO: "Check the disk, which failed",
}

_OF_RUST = re.compile(r"\(os error (\d+)\)")


def disk_errno(error: BaseException) -> int | None:
    """The error number of a failure of the operating system, also as Rust reports it."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    match = _OF_RUST.search(str(error))
    return int(match[1]) if match else None


def remedy(number: int | None) -> str:
    """What to do about an error number, and that the same command continues."""
    first = _REMEDIES.get(number or 0, "Free space or make the folder writable")
    return f"{first}, and run the same command again: it continues from what was kept."


def disk_error(error: BaseException, what: str) -> FusestoreError | None:
    """Our error for a failure of a disk; None for other errors.

    Args:
        error: of the operating system, or of a library that reports one of its errors as text.
        what: could not be written, for the message.
    """
    number = disk_errno(error)
    if isinstance(error, FusestoreError) or number not in _REMEDIES:
        return None
    return _ours(error, number, what)


@contextlib.contextmanager
def disk_errors(
    place: str | os.PathLike[str], what: str = "", *, only_disk: bool = False
) -> Iterator[None]:
    """Turn errors of writing local files, such as a full disk, into ours.

    Args:
        place: the file or folder that the body writes.
        what: is written there, for the message, which says that the same command continues.
        only_disk: whether other errors than those of a full, read-only or failing disk stay as
            they are, because the body does more than write there.

    Raises:
        AccessDeniedError, StorageError: the disk is full, read-only or broken.
    """
    try:
        yield
    except FusestoreError:
        raise
    except Exception as error:
        number = disk_errno(error)
        # Libraries in Rust have errors of their own for those of the disk.
        if number is None and not isinstance(error, OSError):
            raise
        if only_disk and (number not in _REMEDIES or _is_elsewhere(error, Path(place))):
            raise
        to = f"{what} could not be written to {place}" if what else f"{place} could not be written"
        raise _ours(error, number, to) from error


def _is_elsewhere(error: BaseException, place: Path) -> bool:
    named = getattr(error, "filename", None)
    return isinstance(named, str) and not Path(named).is_relative_to(place)


def _ours(error: BaseException, number: int | None, what: str) -> FusestoreError:
    kind = AccessDeniedError if number in (errno.EACCES, errno.EPERM) else StorageError
    return kind(f"{what}: {error}. {remedy(number)}")
