"""Remembers slow results between processes, if they follow from files alone.

One small JSON file below the user's cache folder holds two tables: the SHA-256 of large files, by
path, size and time of change; and facts, by a key that names everything they follow from. The file
is only a cache: a damaged one counts as empty, and a read-only folder only costs time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from fusestore.errors import InvalidInputError
from fusestore.storage.file_lock import locked
from fusestore.storage.location import Location
from fusestore.storage.packages import user_cache_folder
from fusestore.storage.publish import publish_beside

MAX_ENTRIES = 512
"""Entries of each table; the oldest are dropped first."""

_MAX_BYTES = 4 * 2**20
"""A larger file counts as damaged: this module never writes one."""

_WORTH_REMEMBERING = 2**20
"""Bytes below which reading a file is as fast as looking it up."""

_SETTLED_NS = 2 * 10**9
"""A file changed this recently may change again within one tick of the filesystem's clock."""

_FILES, _FACTS = "files", "facts"
_NAME = "remembered.json"


def file_digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal; remembered by path, size and times of change.

    Raises:
        OSError: the file cannot be read.
    """
    stamp = _stamp(path)
    key = str(path.absolute())
    entry = _read()[_FILES].get(key)
    if isinstance(entry, list) and entry[:-1] == stamp and _is_digest(entry[-1]):
        return str(entry[-1])
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    size, modified, _ = stamp
    settled = time.time_ns() - modified > _SETTLED_NS
    if size >= _WORTH_REMEMBERING and settled and _stamp(path) == stamp:
        _remember(_FILES, key, [*stamp, digest])
    return digest


def folder_digest(paths: Iterable[Path]) -> str:
    """SHA-256 over the names and the bytes of files, in the order of their names."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(path.name.encode() + b"\0" + bytes.fromhex(file_digest(path)))
    return digest.hexdigest()


def remembered(
    key: str, make: Callable[[], dict[str, Any]], *, valid: Callable[[dict[str, Any]], bool]
) -> dict[str, Any]:
    """The fact that a key stands for; computed and remembered if it is not remembered yet.

    Args:
        key: names everything that the fact follows from: versions, digests of files.
        make: computes the fact, which JSON can hold.
        valid: whether a remembered value is such a fact.
    """
    entry = _read()[_FACTS].get(key)
    if isinstance(entry, dict) and valid(entry):
        return entry
    fact = make()
    _remember(_FACTS, key, fact)
    return fact


def _stamp(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _is_digest(value: object) -> bool:
    return isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")


def _read() -> dict[str, dict[str, Any]]:
    content: Any = None
    with contextlib.suppress(OSError, ValueError, RecursionError):
        with (user_cache_folder() / _NAME).open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        content = json.loads(data) if len(data) <= _MAX_BYTES else None
    content = content if isinstance(content, dict) else {}
    tables = {name: content.get(name) for name in (_FILES, _FACTS)}
    return {name: table if isinstance(table, dict) else {} for name, table in tables.items()}


def _remember(table: str, key: str, value: object) -> None:
    """Add an entry, and keep the entries that other processes have added meanwhile."""
    with contextlib.suppress(OSError, InvalidInputError):
        folder = user_cache_folder()
        with locked(folder / f"{_NAME}.lock"):
            _add(folder, table, key, value)


def _add(folder: Path, table: str, key: str, value: object) -> None:
    content = _read()
    content[table].pop(key, None)
    entries = [*content[table].items(), (key, value)]
    content[table] = dict(entries[-MAX_ENTRIES:])
    publish_beside(Location.parse(folder / _NAME), json.dumps(content).encode())
