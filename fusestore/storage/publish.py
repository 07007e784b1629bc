"""Publishes bytes: a file is absent or whole at every moment, on every storage.

Local: temporary file in the same folder, fsync, rename (or link, for create-only), fsync of the
folder. Object storage: one PUT, which is atomic by itself; create-only is a conditional PUT
(`If-None-Match: *`).
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import os
import re
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO

import psutil

from fusestore.errors import AlreadyExistsError, NotFoundError, StorageError
from fusestore.storage import objects
from fusestore.storage.location import Location
from fusestore.storage.retries import storage_errors, with_retries

TEMPORARY_PREFIX = ".tmp-"
"""Prefix of unfinished files; readers ignore them and a later writer may remove them."""

ABANDONED_AFTER_S = 24 * 3600
"""A temporary file of another machine counts as abandoned at this age."""

_TEMPORARY_NAME = re.compile(
    r"\.tmp-(fusestore-\w+-)?(?P<machine>[0-9a-f]{12})-(?P<pid>\d+)-[0-9a-f]{8}"
)
_NO_HARD_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


def _machine() -> str:
    """Identifies the set of process ids that this process is in: its machine and its container."""
    try:
        namespace = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        namespace = ""
    return hashlib.sha256(f"{socket.gethostname()} {namespace}".encode()).hexdigest()[:12]


MACHINE = _machine()
"""Identifies this machine in temporary files and heartbeats."""


@with_retries
def publish(location: Location, data: bytes) -> None:
    """Write the whole file durably, replacing any file of that name.

    Raises:
        AccessDeniedError, NotFoundError (no such bucket), StorageError: nothing was changed.
    """
    if location.is_local:
        _publish_local(location.path, (data,), create_only=False)
    elif location.is_object:
        objects.write(location.url, location.storage_options, data)
    else:
        location.filesystem.pipe_file(location.url, data)


def publish_beside(location: Location, data: bytes) -> None:
    """`publish` a file outside of a store; what killed processes left beside it is removed.

    Raises:
        AccessDeniedError, NotFoundError, StorageError: as `publish`.
    """
    if location.is_local:
        remove_abandoned_in(location.path.parent)
    publish(location, data)


def publish_chunks(location: Location, chunks: Iterable[bytes]) -> None:
    """Write a whole local file durably from chunks of bytes, replacing any file of that name.

    If the iterator raises, an existing file stays as it was: the iterator may check what it yields.

    Raises:
        InvalidInputError: the location is remote.
        AccessDeniedError, StorageError: nothing was changed.
    """
    with storage_errors(location):
        _publish_local(location.path, chunks, create_only=False)


def publish_new(location: Location, data: bytes) -> None:
    """Write the whole file durably; a file of that name with the same bytes counts as success.

    So a repeated write recognizes its own earlier success when the first answer was lost.

    Raises:
        AlreadyExistsError: a file of that name holds other bytes; it was left as it is.
        AccessDeniedError, NotFoundError (no such bucket), StorageError: nothing was changed.
    """
    try:
        _publish_new(location, data)
    except FileExistsError as error:
        _accept_same(location, data, error)
    except StorageError as error:
        # Some servers report a conflict in another way than S3; or the last answer was lost.
        if not location.exists():
            raise
        _accept_same(location, data, error)


@with_retries
def _publish_new(location: Location, data: bytes) -> None:
    if location.is_local:
        _publish_local(location.path, (data,), create_only=True)
    elif location.is_object:
        objects.write(location.url, location.storage_options, data, create=True)
    else:
        location.filesystem.pipe_file(location.url, data, mode="create")


def _accept_same(location: Location, data: bytes, error: Exception) -> None:
    if location.read_bytes() != data:
        raise AlreadyExistsError(
            f"{location} exists already with other content; it was not changed."
        ) from error


def retract(location: Location) -> None:
    """Remove a document durably, before the files that it stands for are changed or removed.

    Otherwise a power cut could bring it back without them. Does nothing if it is absent.

    Raises:
        AccessDeniedError, StorageError: the storage failed.
    """
    location.delete()
    if location.is_local:
        with contextlib.suppress(NotFoundError), storage_errors(location):
            sync_folder(location.parent.path)


def sync_folders(location: Location) -> None:
    """Make the names of all files below a folder durable, and those of the folders above it.

    Every publication does that for its own file. But a process that was killed before it did so
    left names that only look durable: this comes before a document that says that all is there.

    Args:
        location: an artifact's folder, two levels below its store; its files are durable.
    """
    if not location.is_local:
        return
    with storage_errors(location):
        for path, _, _ in os.walk(location.path):
            # Of a writer that ends meanwhile: leases and locks.
            with contextlib.suppress(FileNotFoundError):
                sync_folder(Path(path))
        for folder in location.path.parents[:2]:
            # Who may not read a folder has not made the one in it.
            with contextlib.suppress(PermissionError):
                sync_folder(folder)


def _publish_local(path: Path, chunks: Iterable[bytes], *, create_only: bool) -> None:
    temporary = temporary_beside(path)
    try:
        with _create(temporary) as file:
            file.writelines(chunks)
            file.flush()
            os.fsync(file.fileno())
        if create_only:
            _link_new(temporary, path)
        else:
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def temporary_beside(path: Path, prefix: str = TEMPORARY_PREFIX) -> Path:
    """A new name for an unfinished file or folder, which says which process makes it."""
    return path.with_name(f"{prefix}{MACHINE}-{os.getpid()}-{os.urandom(4).hex()}")


def _create(path: Path) -> BinaryIO:
    make_folder(path.parent)
    try:
        return path.open("xb")
    except FileNotFoundError:
        # Another writer has removed the folder in between, because it was empty.
        make_folder(path.parent)
        return path.open("xb")


def _link_new(temporary: Path, path: Path) -> None:
    try:
        os.link(temporary, path)
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        # Not atomic, but the best that a filesystem without hard links allows.
        if path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from error
        temporary.replace(path)


def make_folder(folder: Path) -> None:
    """Create the folder and those above it, each entry durable.

    Another thread that finds the folder finds it durable: it may write a receipt at once.
    """
    with _making_folders:
        missing = [folder, *folder.parents]
        missing = missing[: next(i for i, path in enumerate(missing) if path.exists())]
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError as error:
            # The caller would take FileExistsError for an existing file of a create-only write.
            number, text = errno.ENOTDIR, os.strerror(errno.ENOTDIR)
            raise NotADirectoryError(number, text, str(folder)) from error
        for path in missing:
            sync_folder(path.parent)


_making_folders = threading.Lock()


def _forget_lock() -> None:
    """In a fork the thread that held the lock does not exist."""
    global _making_folders
    _making_folders = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_lock)


def sync_folder(folder: Path) -> None:
    """Make the folder's entries durable; on Windows they are, and folders cannot be opened."""
    if sys.platform == "win32":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def temporary_owner(name: str) -> tuple[str, int] | None:
    """The machine and process that wrote a temporary file, by its name; None for other files."""
    match = _TEMPORARY_NAME.fullmatch(name)
    return None if match is None else (match["machine"], int(match["pid"]))


def is_abandoned(name: str, modified: float | None, now: Callable[[], float | None]) -> bool:
    """Whether a file is a temporary file that nobody will finish; see `remove_abandoned`.

    Args:
        name: of the file.
        modified: when it was written, in seconds since 1970; None if that is unknown.
        now: the time by the clock that dates files there, see `storage_clock`; called if needed.
    """
    owner = temporary_owner(name)
    if owner is None:
        return False
    if owner[0] == MACHINE and not is_running(owner[1]):
        return True
    time_there = None if modified is None else now()
    if modified is None or time_there is None:
        return False
    return time_there - modified > ABANDONED_AFTER_S


def storage_clock(folder: Location) -> Callable[[], float | None]:
    """The time by the clock that dates files of a folder, in seconds since 1970.

    The server of a network filesystem may have another clock than this machine: a file written now
    tells. None if none can be written. The time is asked for once, when it is first needed.
    """

    @functools.cache
    def now() -> float | None:
        if not folder.is_local:
            return time.time()
        try:
            with tempfile.TemporaryFile(prefix=TEMPORARY_PREFIX, dir=folder.path) as file:
                return os.fstat(file.fileno()).st_mtime
        except OSError:
            return None

    return now


def remove_abandoned(folder: Location) -> None:
    """Remove temporary files that dead processes left below the folder.

    A file counts as abandoned if its process on this machine has ended, or if it is older than
    `ABANDONED_AFTER_S` by the clock of its storage. Object storage keeps no half-written objects.
    """
    if folder.is_local:
        with storage_errors(folder):
            _remove_abandoned(folder.path, folder.path.rglob(f"{TEMPORARY_PREFIX}*"))


def remove_abandoned_in(folder: Path) -> None:
    """Remove temporary files and folders that dead processes left directly in a folder.

    What cannot be removed stays: others may have left it.
    """
    _remove_abandoned(folder, folder.glob(f"{TEMPORARY_PREFIX}*"), OSError)


def _remove_abandoned(
    folder: Path, found: Iterable[Path], ignored: type[OSError] = FileNotFoundError
) -> None:
    now = storage_clock(Location(folder.as_posix()))
    for path in found:
        # Another writer may finish or remove it at the same time.
        with contextlib.suppress(ignored):
            if is_abandoned(path.name, path.lstat().st_mtime, now):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink()


def is_running(pid: int) -> bool:
    """Whether this machine has a process of this id that has not ended."""
    try:
        # One that was killed stays a zombie until its parent asks for its end.
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True
