"""Replaces a local file or folder: a reader sees the old or the new content, never a mixture.

The content is written under a temporary name beside it, made durable, and renamed. Files that
belong to a store are written by `fusestore.storage.publish` instead.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from fusestore.errors import StorageError
from fusestore.storage.disk_errors import disk_errors
from fusestore.storage.publish import (
    TEMPORARY_PREFIX,
    make_folder,
    remove_abandoned_in,
    sync_folder,
    temporary_beside,
)


@contextlib.contextmanager
def replaced_file(path: Path) -> Iterator[Path]:
    """Replace a file by what the body writes to the yielded path.

    If the body raises, the file stays as it was.

    Raises:
        AccessDeniedError, StorageError: the disk is full, read-only or broken.
    """
    # A folder: safetensors writes under a name of its own beside the one that it is given. Without
    # the file's name: TensorBoard looks for files by a pattern in folders, too.
    folder = _temporary(path)
    with disk_errors(path):
        _clear(folder)
        folder.mkdir()
        temporary = folder / "content"
        try:
            yield temporary
            _sync_file(temporary)
            temporary.replace(path)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        sync_folder(path.parent)


@contextlib.contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """Replace a flat folder by the yielded empty folder, once the body has written its files.

    A rename cannot replace a folder that holds files, so the old folder is moved aside first. Read
    the folder through `whole_folder`, which finds the old one after a crash between the renames.

    Raises:
        AccessDeniedError, StorageError: the disk is full, read-only or broken.
    """
    temporary, older = _temporary(folder), _older(folder)
    with disk_errors(folder):
        _clear(temporary)
        make_folder(folder.parent)
        temporary.mkdir()
        yield temporary
        for path in temporary.iterdir():
            _sync_file(path)
        sync_folder(temporary)
        if folder.exists():
            _clear(older)
            folder.rename(older)
        temporary.rename(folder)
        sync_folder(folder.parent)
        shutil.rmtree(older, ignore_errors=True)


@contextlib.contextmanager
def created_folder(folder: Path) -> Iterator[Path]:
    """Create a folder of what the body writes to the yielded empty folder.

    If another process creates it meanwhile, its folder is kept: both have the same content. What
    killed processes left beside it is removed.

    Raises:
        AccessDeniedError, StorageError: the disk is full, read-only or broken.
    """
    temporary = temporary_beside(folder)
    with disk_errors(folder):
        remove_abandoned_in(folder.parent)
        make_folder(folder.parent)
        temporary.mkdir()
        try:
            yield temporary
            # The folder's name says that it is whole: its files must not be lost after that.
            for path in temporary.rglob("*"):
                sync_folder(path) if path.is_dir() else _sync_file(path)
            sync_folder(temporary)
            try:
                temporary.rename(folder)
            except OSError:
                if not folder.is_dir():
                    raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        sync_folder(folder.parent)


@contextlib.contextmanager
def scratch_folder(purpose: str, parent: Path | None = None) -> Iterator[Path]:
    """An empty folder for as long as the body runs; what killed processes left is removed.

    Args:
        purpose: one word for its name.
        parent: the folder that it is made in; by default that of temporary files, see TMPDIR.

    Raises:
        AccessDeniedError, StorageError: its disk is full, read-only or broken.
    """
    try:
        place = Path(tempfile.gettempdir()) if parent is None else parent
    except FileNotFoundError as error:
        raise StorageError(
            f"There is no folder for temporary files: {error}. Free space there, or set TMPDIR to "
            "a folder that is writable, and run the same command again."
        ) from error
    folder = temporary_beside(place / purpose, prefix=f"{TEMPORARY_PREFIX}fusestore-{purpose}-")
    with disk_errors(place, "Temporary files", only_disk=True):
        remove_abandoned_in(place)
        folder.mkdir(mode=0o700, parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def whole_folder(folder: Path) -> Path | None:
    """The newest whole version of a folder of `replaced_folder`; None if there is none."""
    return next((path for path in (folder, _older(folder)) if path.is_dir()), None)


def remove_replaced(path: Path) -> None:
    """Remove a file or folder, and what interrupted replacements left beside it."""
    for version in (path, _older(path), _temporary(path)):
        if version.is_dir():
            shutil.rmtree(version, ignore_errors=True)
        else:
            version.unlink(missing_ok=True)


def _clear(path: Path) -> None:
    """Remove what an earlier process left, or a link in its place."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    shutil.rmtree(path, ignore_errors=True)


def _temporary(path: Path) -> Path:
    # Without the name itself: a search for files by a pattern must not find this one.
    name = hashlib.sha256(path.name.encode()).hexdigest()[:16]
    return path.with_name(f"{TEMPORARY_PREFIX}{name}")


def _older(path: Path) -> Path:
    return path.with_name(f"{TEMPORARY_PREFIX}older-{path.name}")


def _sync_file(path: Path) -> None:
    # Windows syncs only what may be written.
    with path.open("r+b") as file:
        os.fsync(file.fileno())
