"""Publishing bytes: a file is either absent or whole, at every moment, on every storage.

Local: temporary file in the same folder, fsync, rename (or link, for create-only), fsync of the
folder. Object storage: one PUT, which is atomic by itself; create-only is a conditional PUT
(`If-None-Match: *`).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import socket
import time
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from fusestore.errors import AlreadyExistsError, StorageError
from fusestore.storage import objects
from fusestore.storage.location import Location
from fusestore.storage.retries import patient, storage_errors

TEMPORARY_PREFIX = ".tmp-"
"""Files of this prefix are unfinished; readers ignore them and a later writer may remove them."""

ABANDONED_AFTER_S = 24 * 3600
"""A temporary file of another machine is taken for abandoned when it is this old."""

_TEMPORARY_NAME = re.compile(r"\.tmp-(?P<machine>[0-9a-f]{12})-(?P<pid>\d+)-[0-9a-f]{8}")
_NO_HARD_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


def _machine() -> str:
    """What tells apart the machines, and the containers on one, whose process ids mean others."""
    try:
        namespace = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        namespace = ""
    return hashlib.sha256(f"{socket.gethostname()} {namespace}".encode()).hexdigest()[:12]


MACHINE = _machine()
"""Stands for this machine in files that do not outlast the writing."""


@patient
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


def publish_pieces(location: Location, pieces: Iterable[bytes]) -> None:
    """Write a whole local file durably from its pieces, replacing any file of that name.

    When the iterator raises, what is there stays as it was: it may check what it yields.

    Raises:
        InvalidInputError: the location is remote.
        AccessDeniedError, StorageError: nothing was changed.
    """
    with storage_errors(location):
        _publish_local(location.path, pieces, create_only=False)


def publish_new(location: Location, data: bytes) -> None:
    """Write the whole file durably; a file of that name with the same bytes counts as success.

    The comparison makes a write recognise its own earlier success, whose answer was lost.

    Raises:
        AlreadyExistsError: a file of that name holds other bytes; it was left as it is.
        AccessDeniedError, NotFoundError (no such bucket), StorageError: nothing was changed.
    """
    try:
        _publish_new(location, data)
    except FileExistsError as error:
        _accept_same(location, data, error)
    except StorageError as error:
        # Some servers tell of a conflict otherwise than S3 does; or the last answer was lost.
        if not location.exists():
            raise
        _accept_same(location, data, error)


@patient
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
            f"{location.url} exists already with other content; it was left as it is."
        ) from error


def _publish_local(path: Path, pieces: Iterable[bytes], *, create_only: bool) -> None:
    temporary = path.parent / f"{TEMPORARY_PREFIX}{MACHINE}-{os.getpid()}-{os.urandom(4).hex()}"
    try:
        with _create(temporary) as file:
            file.writelines(pieces)
            file.flush()
            os.fsync(file.fileno())
        if create_only:
            _link_new(temporary, path)
        else:
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def _create(path: Path) -> BinaryIO:
    _make_folder(path.parent)
    try:
        return path.open("xb")
    except FileNotFoundError:
        # Another writer has tidied up the folder, which was empty, in between.
        _make_folder(path.parent)
        return path.open("xb")


def _link_new(temporary: Path, path: Path) -> None:
    try:
        os.link(temporary, path)
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        # The second best where the filesystem has no hard links: a moment passes in between.
        if path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from error
        temporary.replace(path)


def _make_folder(folder: Path) -> None:
    """Create the folder and those above it, each entry durable."""
    missing = [folder, *folder.parents]
    missing = missing[: next(i for i, path in enumerate(missing) if path.exists())]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        # Not to be taken for the file that a create-only write finds.
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder)) from error
    for path in missing:
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the folder's entries durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_abandoned(folder: Location) -> None:
    """Remove temporary files below the folder that dead runs left.

    Those of a process of this machine that no longer runs, and those of any machine that are
    older than `ABANDONED_AFTER_S`. Object storage keeps no half-written objects.
    """
    if not folder.is_local:
        return
    with storage_errors(folder):
        for path in folder.path.rglob(f"{TEMPORARY_PREFIX}*"):
            match = _TEMPORARY_NAME.fullmatch(path.name)
            if match is None:
                continue
            # Another writer may finish or tidy up at the same time.
            with contextlib.suppress(FileNotFoundError):
                dead = match["machine"] == MACHINE and not is_running(int(match["pid"]))
                if dead or time.time() - path.stat().st_mtime > ABANDONED_AFTER_S:
                    path.unlink()


def is_running(pid: int) -> bool:
    """Whether this machine has a process of this id."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
