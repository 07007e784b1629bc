"""Reads text from files: `.txt` (one document per file), JSON lines, Parquet and CSV.

Inputs are files, glob patterns, folders, or URLs of any of these. Documents are in the order of the
inputs, then of the sorted file names, then of the rows of a table. The source of a document is its
path relative to the input's folder or pattern, never an absolute path, so that a corpus does not
reveal where it was made.
"""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import polars as pl

from fusestore.corpus.splits import HeldOut, assign_split
from fusestore.errors import FusestoreError, InvalidInputError, NotFoundError, StorageError
from fusestore.storage.location import Location

SUFFIXES = (".txt", ".jsonl", ".ndjson", ".parquet", ".csv")
"""The supported kinds of file."""

_POLARS_PROTOCOLS = ("hf", "http", "https")
"""Protocols of tables that Polars fetches itself, by their own conventions."""

_GLOB = re.compile(r"[*?\[]")

DOCUMENT_SCHEMA = pl.Schema({"source": pl.String(), "text": pl.String(), "split": pl.String()})


@dataclass(frozen=True)
class _InputFile:
    """One file to read, and the source name of its documents."""

    location: Location
    source: str


def read_documents(
    inputs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    text_column: str = "text",
    split_column: str | None = None,
    held_out: Sequence[HeldOut] = (),
    storage_options: Mapping[str, object] | None = None,
) -> pl.DataFrame:
    """Read every document of the inputs.

    Args:
        inputs: one or several files, glob patterns, folders or URLs.
        text_column: column (or JSON key) that holds the text, in tables.
        split_column: column that names the split, in tables. `held_out` decides for `.txt` files,
            and for tables if this is None.
        held_out: rules by source name; the first rule that matches a document decides, `train` is
            the default.
        storage_options: for the filesystem of remote inputs.

    Returns:
        `source`, `text`, `split`, one row per document. The source of a row of a table is the
        file's name, `#` and the row's number from 0.

    Raises:
        NotFoundError: an input that matches no file.
        InvalidInputError: no text column, a null or non-text value in it, bytes that are not
            UTF-8, a file of another kind, two files of one name, or no document at all.
    """
    inputs = [inputs] if isinstance(inputs, str | os.PathLike) else list(inputs)
    sources: list[str] = []
    texts: list[str] = []
    splits: list[str] = []
    seen: set[str] = set()
    for item in inputs:
        for file in _expand(os.fspath(item), storage_options):
            if file.source in seen:
                raise InvalidInputError(
                    f"Two input files go by the name {file.source!r}; give the folder above both, "
                    "or a pattern that begins with that folder, so that their names differ."
                )
            seen.add(file.source)
            for source, text, split in _read_file(file, text_column, split_column):
                sources.append(source)
                texts.append(text)
                splits.append(split if split is not None else assign_split(source, held_out))
    if not sources:
        names = ", ".join(str(item) for item in inputs) or "no input at all"
        raise InvalidInputError(f"The corpus is empty: {names} held no document.")
    return pl.DataFrame({"source": sources, "text": texts, "split": splits}, schema=DOCUMENT_SCHEMA)


def _expand(target: str, storage_options: Mapping[str, object] | None) -> Iterator[_InputFile]:
    """The files of an input, sorted."""
    location = Location.parse(target, storage_options)
    protocol = location.url.split("://", 1)[0] if not location.is_local else ""
    if protocol in _POLARS_PROTOCOLS and location.url.endswith((".parquet", ".csv")):
        yield _InputFile(location, location.name)
        return
    # An existing file with a bracket in its name is no pattern.
    if _GLOB.search(location.url) and not (location.is_local and location.path.exists()):
        root, pattern = _split_pattern(location)
        expression = re.compile(_pattern_expression(pattern))
        names = [name for name in root.list_recursive() if expression.fullmatch(name)]
        if not names:
            raise NotFoundError(f"No file matches {target!r}. Check the pattern and the folder.")
    else:
        if location.is_local and location.path.is_file():
            yield _checked(location, location.name)
            return
        names = location.list_recursive() if location.exists() else []
        if not location.is_local and names in ([""], [location.url.split("://", 1)[1]]):
            yield _checked(location, location.name)
            return
        if not names:
            raise NotFoundError(
                f"Input {target!r} does not exist or is an empty folder. "
                "Give a file, a folder, a pattern or a URL."
            )
        root = location
    readable = [name for name in names if name.endswith(SUFFIXES)]
    if not readable:
        raise InvalidInputError(
            f"{target!r} holds no file that can be read: found {', '.join(sorted(names)[:5])}; "
            f"readable are {', '.join(SUFFIXES)}."
        )
    for name in sorted(readable):
        yield _InputFile(root / name, name)


def _checked(location: Location, source: str) -> _InputFile:
    if not source.endswith(SUFFIXES):
        raise InvalidInputError(
            f"{location} is of a kind that cannot be read; readable are {', '.join(SUFFIXES)}."
        )
    return _InputFile(location, source)


def _split_pattern(location: Location) -> tuple[Location, str]:
    """The folder before the first part with a wildcard, and the pattern below it."""
    parts = location.url.split("/")
    first = next(index for index, part in enumerate(parts) if _GLOB.search(part))
    root = "/".join(parts[:first]) or "/"
    return Location(root, location.storage_options), "/".join(parts[first:])


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


def _read_file(
    file: _InputFile, text_column: str, split_column: str | None
) -> Iterator[tuple[str, str, str | None]]:
    """Source, text and split (None: by rule) of each document of a file."""
    suffix = PurePosixPath(file.source).suffix
    if suffix == ".txt":
        yield file.source, _decode(file, file.location.read_bytes()), None
        return
    if suffix in (".jsonl", ".ndjson"):
        table = _read_json_lines(file, text_column, split_column)
    else:
        table = _read_table(file, suffix)
    columns = [text_column] if split_column is None else [text_column, split_column]
    for column in columns:
        if column not in table.columns:
            raise InvalidInputError(
                f"{file.source} has no column {column!r}; its columns are "
                f"{', '.join(table.columns)}. Name another one as text or split column."
            )
    text_type = table.schema[text_column]
    if text_type not in (pl.String, pl.Categorical, pl.Enum, pl.Null):
        raise InvalidInputError(
            f"Column {text_column!r} of {file.source} holds {text_type}, not text."
        )
    for row, values in enumerate(table.select(pl.col(columns).cast(pl.String)).iter_rows()):
        for column, value in zip(columns, values, strict=True):
            if value is None:
                raise InvalidInputError(
                    f"Row {row} of {file.source} has no value in column {column!r}. "
                    "Remove or fill such rows."
                )
        yield f"{file.source}#{row}", values[0], values[1] if split_column else None


def _read_table(file: _InputFile, suffix: str) -> pl.DataFrame:
    protocol = file.location.url.split("://", 1)[0]
    try:
        if protocol in _POLARS_PROTOCOLS:
            scan = pl.scan_parquet if suffix == ".parquet" else pl.scan_csv
            return scan(file.location.url).collect()
        data = file.location.read_bytes()
        if suffix == ".parquet":
            return pl.read_parquet(io.BytesIO(data))
        _decode(file, data)
        return pl.read_csv(io.BytesIO(data), infer_schema=False) if data else pl.DataFrame()
    except FusestoreError:
        raise
    except OSError as error:
        raise StorageError(f"{file.location} could not be fetched: {error}") from error
    except pl.exceptions.PolarsError as error:
        raise InvalidInputError(f"{file.source} could not be read as {suffix}: {error}") from error


def _read_json_lines(file: _InputFile, text_column: str, split_column: str | None) -> pl.DataFrame:
    """The text and split columns; all keys of the first line if it lacks one of them."""
    names = [column for column in (text_column, split_column) if column is not None]
    content = _decode(file, file.location.read_bytes()).removeprefix("\ufeff")
    columns: dict[str, list[str | None]] = {}
    # Not splitlines, because U+2028 and similar characters may be inside a JSON string.
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise InvalidInputError(
                f"Line {number} of {file.source} is not JSON: {error}"
            ) from error
        if not isinstance(record, dict):
            raise InvalidInputError(
                f"Line {number} of {file.source} is not a JSON object but {line[:40]!r}."
            )
        if not columns:
            if any(column not in record for column in names):
                return pl.DataFrame({key: [] for key in record})
            columns = {column: [] for column in names}
        for column in names:
            value = record.get(column)
            if value is not None and not isinstance(value, str):
                raise InvalidInputError(
                    f"Line {number} of {file.source} has {value!r} in {column!r}, not text."
                )
            if value is not None:
                _check_encodable(file, number, value)
            columns[column].append(value)
    return pl.DataFrame(
        {column: columns.get(column, []) for column in names},
        schema=dict.fromkeys(names, pl.String()),
    )


def _check_encodable(file: _InputFile, number: int, text: str) -> None:
    """Refuse half a surrogate pair, which JSON can escape but UTF-8 cannot hold."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidInputError(
            f"Line {number} of {file.source} holds the lone surrogate "
            f"U+{ord(text[error.start]):04X} at character {error.start}; remove it."
        ) from error


def _decode(file: _InputFile, data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise InvalidInputError(
            f"{file.source} is not UTF-8: byte {data[error.start]:#04x} at position "
            f"{error.start:,}. Convert the file to UTF-8 first."
        ) from error
