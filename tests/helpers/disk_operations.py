"""What a process does to the files below a folder: recorded, and ended at any operation.

`watched` replaces the functions of Python that create, rename, link, remove and sync files, for
all threads. What libraries write from other languages shows itself when the file is synced or
renamed.
"""

# ruff: noqa: PTH100, PTH113, PTH115, PTH118, PTH202 - pathlib calls what is replaced here

import builtins
import contextlib
import io
import itertools
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from unittest import mock

Kind = Literal["create", "write", "rename", "link", "remove", "mkdir", "rmdir", "sync"]

_NO_SUCH_PROCESS = 2**22
"""No process of Linux has this id or a higher one."""


class Killed(BaseException):
    """The process is dead: nobody catches this, and nothing that it tries afterwards succeeds."""


@dataclass(frozen=True)
class Operation:
    """One change of a disk, or a sync.

    Attributes:
        kind: what was done. `write` is the opening of an existing file to write to it.
        path: the file or folder, relative to the watched folder.
        to: of a rename or a link, the new path.
        data: the file's bytes when it was synced, renamed or linked; None for folders.
    """

    kind: Kind
    path: str
    to: str = ""
    data: bytes | None = None


class Watch:
    """The operations below a folder.

    Attributes:
        operations: what was done, in order.
        count: operations that were begun, also those that failed.
    """

    def __init__(self, root: Path, kill_at: int | None, cut: float) -> None:
        self.root = os.path.realpath(root)
        self.operations: list[Operation] = []
        self.count = 0
        self.dead = False
        self._kill_at = kill_at
        self._cut = cut
        self._lock = threading.RLock()

    def relative(self, path: Any, folder: int | None = None) -> str | None:
        """The path below the watched folder; None for paths elsewhere."""
        if isinstance(path, int):
            path = os.readlink(f"/proc/self/fd/{path}")
        path = os.fsdecode(path)
        if folder is not None:
            path = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), path)
        path = os.path.abspath(path)
        if path == self.root:
            return ""
        return path.removeprefix(f"{self.root}/") if path.startswith(f"{self.root}/") else None

    @contextlib.contextmanager
    def doing(self, path: str, *, syncs: bool = False) -> Iterator[None]:
        """Do one operation after another, whichever thread does it; none once the process is dead.

        Args:
            path: what the operation is done to.
            syncs: whether it is the sync of a file, before which a part of the bytes is written.
        """
        with self._lock:
            self.count += 1
            if self._kill_at is not None and self.count == self._kill_at:
                self.dead = True
                file = os.path.join(self.root, path)
                if syncs and os.path.isfile(file):
                    os.truncate(file, int(self._cut * os.path.getsize(file)))
            if self.dead:
                raise Killed
            yield

    def add(self, kind: Kind, path: str, to: str = "", data: bytes | None = None) -> None:
        """Record an operation that was done."""
        self.operations.append(Operation(kind, path, to, data))

    def content(self, path: str) -> bytes | None:
        """The bytes of a file; None for a folder."""
        file = os.path.join(self.root, path)
        if not os.path.isfile(file):
            return None
        with _open(file, "rb") as opened:
            return bytes(opened.read())


_open = io.open

_numbers = itertools.count()


@contextlib.contextmanager
def watched(root: Path, *, kill_at: int | None = None, cut: float = 0.5) -> Iterator[Watch]:
    """Record what this process does below a folder.

    Files carry the id of a process that does not exist, as if this one were dead afterwards.

    Args:
        root: the folder, which exists.
        kill_at: the operation, counted from 1, that is not done any more: it raises `Killed`, and
            so does every later one.
        cut: the share of the bytes that a file has if the process is killed before its sync.
    """
    watch = Watch(root, kill_at, cut)
    with contextlib.ExitStack() as patches:
        for module, name, replacement in _replacements(watch):
            patches.enter_context(mock.patch.object(module, name, replacement))
        pid = _NO_SUCH_PROCESS + next(_numbers)
        patches.enter_context(mock.patch.object(os, "getpid", pid.__index__))
        yield watch


def _replacements(watch: Watch) -> Iterator[tuple[Any, str, Callable[..., Any]]]:
    for name in ("rename", "replace", "link"):
        kind: Kind = "link" if name == "link" else "rename"
        yield os, name, _two_paths(watch, kind, getattr(os, name))
    for name in ("unlink", "remove"):
        yield os, name, _one_path(watch, "remove", getattr(os, name))
    yield os, "mkdir", _one_path(watch, "mkdir", os.mkdir)
    yield os, "rmdir", _one_path(watch, "rmdir", os.rmdir)
    yield os, "fsync", _sync(watch, os.fsync)
    yield os, "open", _opening(watch, os.open, _flags_write)
    for module in (io, builtins):
        yield module, "open", _opening(watch, module.open, _mode_writes)


def _two_paths(watch: Watch, kind: Kind, do: Callable[..., Any]) -> Callable[..., Any]:
    def replacement(source: Any, target: Any, **folders: Any) -> Any:
        path = watch.relative(source, folders.get("src_dir_fd"))
        to = watch.relative(target, folders.get("dst_dir_fd"))
        if path is None or to is None:
            assert path is to is None, f"{source} to {target} crosses the border of {watch.root}"
            return do(source, target, **folders)
        with watch.doing(path):
            data = watch.content(path)
            result = do(source, target, **folders)
            watch.add(kind, path, to, data)
            return result

    return replacement


def _one_path(watch: Watch, kind: Kind, do: Callable[..., Any]) -> Callable[..., Any]:
    def replacement(target: Any, *rest: Any, dir_fd: int | None = None) -> Any:
        path = watch.relative(target, dir_fd)
        if path is None:
            return do(target, *rest, dir_fd=dir_fd)
        with watch.doing(path):
            result = do(target, *rest, dir_fd=dir_fd)
            watch.add(kind, path)
            return result

    return replacement


def _sync(watch: Watch, do: Callable[[int], None]) -> Callable[[int], None]:
    def replacement(handle: int) -> None:
        path = watch.relative(handle)
        if path is None:
            do(handle)
            return
        with watch.doing(path, syncs=True):
            do(handle)
            watch.add("sync", path, data=watch.content(path))

    return replacement


def _opening(
    watch: Watch, do: Callable[..., Any], writes: Callable[..., bool]
) -> Callable[..., Any]:
    def replacement(file: Any, *args: Any, **options: Any) -> Any:
        if isinstance(file, int) or not writes(*args, **options):
            return do(file, *args, **options)
        path = watch.relative(file, options.get("dir_fd"))
        if path is None:
            return do(file, *args, **options)
        with watch.doing(path):
            existed = os.path.lexists(os.path.join(watch.root, path))
            opened = do(file, *args, **options)
            watch.add("write" if existed else "create", path)
            return opened

    return replacement


def _flags_write(flags: int, *_: Any, **__: Any) -> bool:
    return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)) and not _is_nameless(flags)


def _is_nameless(flags: int) -> bool:
    nameless = getattr(os, "O_TMPFILE", 0)
    return bool(nameless) and flags & nameless == nameless


def _mode_writes(mode: str = "r", *_: Any, opener: Any = None, **__: Any) -> bool:
    # With an opener the file is opened by `os.open`.
    return opener is None and any(letter in mode for letter in "wax+")
