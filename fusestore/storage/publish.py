"""Publishing bytes: a file is either absent or whole, at every moment, on every storage.

Local: temporary file in the same folder, fsync, rename (or link, for create-only), fsync of the
folder. Object storage: one PUT, which is atomic by itself; create-only is a conditional PUT
(`If-None-Match: *`).
"""

from __future__ import annotations

import os
from pathlib import Path

from fusestore.errors import AlreadyExistsError
from fusestore.storage.urls import Location, storage_errors

TEMPORARY_PREFIX = ".tmp-"
"""Files of this prefix are unfinished; readers ignore them and a later writer may remove them."""


def publish(location: Location, data: bytes) -> None:
    """Write the whole file durably, replacing any file of that name.

    Raises:
        AccessDeniedError, StorageError: nothing was changed.
    """
    with storage_errors(location):
        if location.is_local:
            _publish_local(location.path, data, create_only=False)
        else:
            location.filesystem.pipe_file(location.url, data)


def publish_new(location: Location, data: bytes) -> None:
    """Write the whole file durably; a file of that name with the same bytes counts as success.

    The comparison makes a retried write recognise its own earlier success.

    Raises:
        AlreadyExistsError: a file of that name holds other bytes; it was left as it is.
    """
    try:
        with storage_errors(location):
            if location.is_local:
                _publish_local(location.path, data, create_only=True)
            else:
                location.filesystem.pipe_file(location.url, data, mode="create")
    except FileExistsError as error:
        if location.read_bytes() == data:
            return
        raise AlreadyExistsError(
            f"{location.url} exists already with other content; it was left as it is."
        ) from error
    except OSError:
        # A retried conditional PUT can fail although its first try arrived.
        if location.exists() and location.read_bytes() == data:
            return
        raise


def _publish_local(path: Path, data: bytes, *, create_only: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f"{TEMPORARY_PREFIX}{path.name}-{os.getpid()}-{os.urandom(4).hex()}"
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if create_only:
            os.link(temporary, path)
            temporary.unlink()
        else:
            temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the folder's entries durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
