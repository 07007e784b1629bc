"""Finds the files of an input: which are read, by which names, and which are not.

An input is a file, a folder, a pattern, or a URL of one of these. A path that exists is taken as it
is, also if it has brackets. Hidden files, backups of editors and what systems leave in folders are
not read, unless they are named. Linked folders are read like others, each folder once.
"""

from __future__ import annotations

import os
import re
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from fusestore.corpus.input_format import COMPRESSIONS, READABLE, InputFormat
from fusestore.corpus.saved_dataset import SavedDatasets, saved_datasets
from fusestore.errors import InvalidInputError, NotFoundError
from fusestore.storage.location import Location
from fusestore.storage.options import HTTP_SCHEMES
from fusestore.storage.retries import storage_errors
from fusestore.storage.shown import shown

_GLOB = re.compile(r"[*?\[]")
_LEFT_BY_SYSTEMS = {"__MACOSX", "Thumbs.db", "desktop.ini"}
_DATASET_CARD = "README.md"
_HIDDEN = "hidden"
_MOST_KINDS = 8


@dataclass(frozen=True)
class InputFile:
    """One file to read.

    Attributes:
        location: of the file.
        source: the name of its documents: its path below the input, without a suffix of
            compression, and `printable`.
        format: how it is read.
        split: that of its rows, if it belongs to a saved `DatasetDict`.
    """

    location: Location
    source: str
    format: InputFormat
    split: str | None = None


@dataclass(frozen=True)
class FoundFiles:
    """The files of one input.

    Attributes:
        files: sorted by source.
        skipped: how many files were not read, by suffix or by what they are.
    """

    files: list[InputFile]
    skipped: Counter[str] = field(default_factory=Counter)

    def describe_skipped(self, target: str) -> str:
        """One line on what the input holds and is not read; empty if there is nothing."""
        kinds = self.skipped.most_common()
        parts = [f"{count:,} {kind}" for kind, count in kinds[:_MOST_KINDS]]
        if others := sum(count for _, count in kinds[_MOST_KINDS:]):
            parts.append(f"{others:,} others")
        return f"Not read in {printable(target)}: {', '.join(parts)}." if parts else ""


def find_input_files(location: Location) -> FoundFiles:
    """The files of an input.

    Raises:
        NotFoundError: nothing matches.
        InvalidInputError: no file of it can be read.
    """
    if _is_http(location):
        # A listing or another question before the file would fail for a URL that is signed.
        return FoundFiles([_single(location, unquote(urlsplit(location.url).path))])
    root, pattern = _split_pattern(location)
    skipped: Counter[str] = Counter()
    names = listed = _list_files(root, pattern, skipped)
    if pattern:
        skipped.clear()
        expression = _compiled(pattern)
        names = [name for name in listed if expression.fullmatch(name)]
        if not names:
            raise NotFoundError(
                f"No file matches {printable(location.url)!r}. Check the pattern and the folder."
            )
    elif names == [""]:
        return FoundFiles([_single(location, location.name)])
    elif not names and not skipped:
        raise NotFoundError(
            f"Input {printable(location.url)!r} does not exist or is an empty folder. "
            "Give a file, a folder, a pattern or a URL."
        )
    files = list(_readable(root, names, saved_datasets(root, listed), skipped))
    if not files:
        examples = ", ".join(printable(name) for name in sorted(names)[:5]) or "hidden files only"
        raise InvalidInputError(
            f"{printable(location.url)!r} holds no file that can be read: found {examples}; "
            f"readable are {READABLE}."
        )
    return FoundFiles(sorted(files, key=lambda file: file.source), skipped)


def printable(name: str) -> str:
    """A name or URL without the secrets of a query, and with escapes for what is not UTF-8."""
    return shown(name).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _is_http(location: Location) -> bool:
    return location.url.startswith(HTTP_SCHEMES)


def _single(location: Location, path: str) -> InputFile:
    name = printable(PurePosixPath(path).name)
    how = InputFormat.of(name)
    if how is None:
        listing = " HTTP lists no folders: give each file." if _is_http(location) else ""
        raise InvalidInputError(
            f"{printable(location.url)} is of a kind that cannot be read; readable are "
            f"{READABLE}.{listing}"
        )
    return InputFile(location, how.name, how)


def _readable(
    root: Location, names: Iterable[str], saved: SavedDatasets, skipped: Counter[str]
) -> Iterator[InputFile]:
    """The files that can be read; the others are counted."""
    for name in names:
        how = InputFormat.of(printable(name))
        if name == _DATASET_CARD and root.url.startswith("hf://"):
            skipped["dataset card"] += 1
        elif name in saved.cached:
            skipped["cached by datasets"] += 1
        elif name in saved.descriptions:
            continue
        elif how is None:
            skipped[_kind(name)] += 1
        else:
            yield InputFile(root / name, how.name, how, saved.splits.get(name))


def _kind(name: str) -> str:
    suffixes = [suffix.lower() for suffix in PurePosixPath(printable(name)).suffixes]
    if not suffixes:
        return "without suffix"
    return "".join(suffixes[-2:]) if suffixes[-1] in COMPRESSIONS else suffixes[-1]


def _is_hidden(name: str) -> bool:
    return (
        name.startswith((".", "~$"))
        or name.endswith("~")
        or (name.startswith("#") and name.endswith("#"))
        or name in _LEFT_BY_SYSTEMS
    )


def _list_files(root: Location, pattern: str, skipped: Counter[str]) -> list[str]:
    """Files below a folder, as deep as the pattern goes; only the empty name for a file.

    Hidden files are listed if the pattern names some. What is left out is counted.
    """
    parts = pattern.split("/")
    with_hidden = any(_is_hidden(part) for part in parts)
    if root.is_local and root.path.is_dir():
        depth = len(parts) if pattern and "**" not in pattern else None
        with storage_errors(root):
            return _walk(root.path, depth, skipped, with_hidden=with_hidden)
    names = []
    for name in root.list_recursive():
        # Object storages may hold an object for a folder.
        if name.endswith("/"):
            continue
        if with_hidden or not any(_is_hidden(part) for part in name.split("/")):
            names.append(name)
        else:
            skipped[_HIDDEN] += 1
    return names


def _walk(root: Path, depth: int | None, skipped: Counter[str], *, with_hidden: bool) -> list[str]:
    """Files below a local folder and its links, down to `depth` folders.

    Each folder is read once, by its own path if it is below `root`, so links may form circles.
    """
    names: list[str] = []
    folders, links, seen = deque([root]), deque[Path](), set[str]()
    while folders or links:
        folder = (folders or links).popleft()
        real = os.path.realpath(folder)
        if real in seen:
            skipped["linked twice"] += 1
            continue
        seen.add(real)
        is_deepest = depth is not None and len(folder.relative_to(root).parts) + 1 >= depth
        for path in sorted(folder.iterdir()):
            if _is_hidden(path.name) and not with_hidden:
                skipped[_HIDDEN] += 1
            elif path.is_dir():
                if not is_deepest:
                    (links if path.is_symlink() else folders).append(path)
            elif path.is_file():
                names.append(path.relative_to(root).as_posix())
            else:
                skipped["linked to nothing" if path.is_symlink() else "special"] += 1
    return names


def _split_pattern(location: Location) -> tuple[Location, str]:
    """The folder above the first wildcard, and the pattern below it; no pattern if all exists."""
    parts = location.url.split("/")
    for index, part in enumerate(parts):
        if not _GLOB.search(part):
            continue
        if not Location("/".join(parts[: index + 1]), location.storage_options).exists():
            root = "/".join(parts[:index]) or "/"
            return Location(root, location.storage_options), "/".join(parts[index:])
    return location, ""


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(_pattern_expression(pattern), re.DOTALL)
    except re.error as error:
        raise InvalidInputError(f"{pattern!r} is no pattern: {error}.") from error


def _pattern_expression(pattern: str) -> str:
    """A glob as a regular expression: `*` stays within a folder, `**/` crosses folders."""
    expression = ""
    position = 0
    while position < len(pattern):
        character = pattern[position]
        closing = pattern.find("]", position + 2) if character == "[" else -1
        if pattern.startswith("**/", position):
            expression += "(?:.*/)?"
            position += 3
            continue
        if pattern.startswith("**", position):
            expression += ".*"
            position += 2
            continue
        if closing > 0:
            content = pattern[position + 1 : closing].replace("\\", "\\\\")
            content = "^" + content[1:] if content.startswith("!") else content
            expression += f"[{content}]"
            position = closing + 1
            continue
        expression += {"*": "[^/]*", "?": "[^/]"}.get(character, re.escape(character))
        position += 1
    return expression
