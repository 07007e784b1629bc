"""What may be on a disk after a power cut: everything that was synced, and any part of the rest.

POSIX promises of a cut that the bytes of a file are those of its last sync, and the names in a
folder those of the folder's last sync. Of every later operation each may have reached the disk or
not, in any order, but a rename is whole or not at all.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tests.helpers.disk_operations import Operation

Files = dict[str, bytes]
"""Every file below a folder: bytes by path."""


@dataclass
class _File:
    """A file, whatever its names.

    Attributes:
        synced: its bytes at its last sync; None if it was never synced.
        written: its bytes as they are known.
        clean: whether nothing was written since the sync.
    """

    synced: bytes | None = None
    written: bytes = b""
    clean: bool = False


@dataclass
class _Folder:
    """A folder: its names as programs see them, and at its last sync."""

    names: dict[str, "_File | _Folder"] = field(default_factory=dict)
    synced: dict[str, "_File | _Folder"] = field(default_factory=dict)


_Change = tuple[_Folder, str, "_File | _Folder | None"]


class Disk:
    """A disk while a process works on it.

    Args:
        files: what lies on it before, safely.
    """

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self._root = _Folder()
        self._pending: list[list[_Change]] = []
        for path, data in files.items():
            folder = self._root
            *parents, name = path.split("/")
            for parent in parents:
                folder = self._made(folder, parent)
            folder.names[name] = folder.synced[name] = _File(data, data, clean=True)

    @staticmethod
    def _made(folder: _Folder, name: str) -> _Folder:
        inner = folder.names.setdefault(name, _Folder())
        folder.synced[name] = inner
        assert isinstance(inner, _Folder)
        return inner

    def do(self, operation: Operation) -> None:
        """What happens at an operation."""
        kind, path = operation.kind, operation.path
        if kind == "sync" and operation.data is None:
            self._sync_folder(self._folder(path))
            return
        folder, name = self._place(path)
        if kind == "mkdir":
            self._change([(folder, name, _Folder())])
        elif kind in ("remove", "rmdir"):
            self._change([(folder, name, None)])
        elif kind == "sync":
            file = self._file(folder, name)
            file.synced = file.written = operation.data or b""
            file.clean = True
        elif kind in ("create", "write"):
            self._file(folder, name).clean = False
        else:
            moved = folder.names.get(name)
            if not isinstance(moved, _Folder):
                moved = self._file(folder, name)
                if not moved.clean:
                    moved.written = operation.data or b""
            changes: list[_Change] = [(*self._place(operation.to), moved)]
            if kind == "rename":
                changes.append((folder, name, None))
            self._change(changes)

    def after_cut(self, chance: random.Random, kept: float) -> Files:
        """What is found after a cut.

        Args:
            chance: decides what has reached the disk.
            kept: the probability that an operation that was not synced did.
        """
        synced: dict[int, dict[str, _File | _Folder]] = {}

        def names(folder: _Folder) -> dict[str, _File | _Folder]:
            return synced.setdefault(id(folder), dict(folder.synced))

        for changes in self._pending:
            if chance.random() < kept:
                _apply(changes, names)
        found: Files = {}
        self._collect(self._root, "", names, chance, found)
        return found

    def _collect(self, folder, prefix, names, chance, found) -> None:
        for name, node in names(folder).items():
            if isinstance(node, _Folder):
                self._collect(node, f"{prefix}{name}/", names, chance, found)
            else:
                found[prefix + name] = node.synced if node.clean else _what_is_left(node, chance)

    def _folder(self, path: str) -> _Folder:
        folder = self._root
        for name in filter(None, path.split("/")):
            inner = folder.names[name]
            assert isinstance(inner, _Folder), path
            folder = inner
        return folder

    def _place(self, path: str) -> tuple[_Folder, str]:
        parent, _, name = path.rpartition("/")
        return self._folder(parent), name

    def _file(self, folder: _Folder, name: str) -> _File:
        file = folder.names.get(name)
        if file is None:
            # A library in another language has created it.
            file = _File()
            self._change([(folder, name, file)])
        assert isinstance(file, _File)
        return file

    def _change(self, changes: list[_Change]) -> None:
        _apply(changes, lambda folder: folder.names)
        self._pending.append(changes)

    def _sync_folder(self, folder: _Folder) -> None:
        folder.synced = dict(folder.names)
        left = [[change for change in op if change[0] is not folder] for op in self._pending]
        self._pending = [changes for changes in left if changes]


def _apply(changes, names) -> None:
    for folder, name, node in changes:
        if node is None:
            names(folder).pop(name, None)
        else:
            names(folder)[name] = node


def _what_is_left(file: _File, chance: random.Random) -> bytes:
    """Of bytes that were never synced: all, none, the first, or zeros in their place."""
    data = file.written
    return chance.choice([b"", data[: len(data) // 2], bytes(len(data)), data])


def cuts(
    before: Mapping[str, bytes], operations: Sequence[Operation], seed: int
) -> "list[tuple[int, Files]]":
    """States after a cut before each operation and after the last: number of operations, files.

    At each moment: nothing that was not synced is there, everything is, and a part of it.
    """
    disk = Disk(before)
    chance = random.Random(seed)  # noqa: S311 - no secret
    found = []
    for number in range(len(operations) + 1):
        if number:
            disk.do(operations[number - 1])
        states: list[Files] = []
        for kept in (0.0, 1.0, 0.5, chance.random()):
            state = disk.after_cut(chance, kept)
            if state not in states:
                states.append(state)
        found += [(number, state) for state in states]
    return found
