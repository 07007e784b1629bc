"""The formats of input files: told by the suffix of a name, upper or lower case."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from fusestore.errors import InvalidInputError

TEXT = (".txt", ".md")
JSON = (".jsonl", ".ndjson", ".json")
DELIMITERS = {".csv": ",", ".tsv": "\t"}
PARQUET = (".parquet",)
ARROW = (".arrow", ".feather", ".ipc")

PACKED = (*TEXT, *JSON, *DELIMITERS)
"""Formats that are also read compressed; Parquet and Arrow compress their own pages."""

COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")

READABLE = ", ".join((*PACKED, *PARQUET, *ARROW))
READABLE = f"{READABLE}; the text formats also as {', '.join(COMPRESSIONS)}"
"""The accepted suffixes, for messages and help."""


@dataclass(frozen=True)
class InputFormat:
    """How a file is read.

    Attributes:
        suffix: of the format, lower case.
        compression: one of `COMPRESSIONS`, or empty.
        name: the file's name without the suffix of its compression.
    """

    suffix: str
    compression: str
    name: str

    @classmethod
    def of(cls, name: str) -> InputFormat | None:
        """The format of a file of this name; None if it cannot be read."""
        suffix = PurePosixPath(name).suffix
        if suffix.lower() in COMPRESSIONS:
            inner = name.removesuffix(suffix)
            plain = PurePosixPath(inner).suffix.lower()
            return cls(plain, suffix.lower(), inner) if plain in PACKED else None
        readable = suffix.lower() in (*PACKED, *PARQUET, *ARROW)
        return cls(suffix.lower(), "", name) if readable else None


@contextlib.contextmanager
def unpacked(path: Path, compression: str, source: str) -> Iterator[io.BufferedReader]:
    """A file's bytes, decompressed as they are read.

    Args:
        path: the file.
        compression: one of `COMPRESSIONS`, or empty.
        source: the file's name, for messages.

    Raises:
        InvalidInputError: the archive is damaged or cut off.
        OSError: the file cannot be read.
    """
    if not compression:
        with path.open("rb") as file:
            yield file
        return
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    openers: dict[str, Callable[..., Any]] = {
        ".gz": gzip.open,
        ".bz2": bz2.open,
        ".xz": lzma.open,
        ".zst": zstd.open,
    }
    damage = (EOFError, OSError, zlib.error, lzma.LZMAError, zstd.ZstdError)
    try:
        with openers[compression](path, "rb") as archive, io.BufferedReader(archive) as file:
            yield file
    except damage as error:
        # bz2 and gzip report damage as an OSError without the system's error number.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise InvalidInputError(
            f"{source} could not be unpacked as {compression}: it is damaged, cut off, or of "
            f"another kind ({error}). Copy or download it again."
        ) from error
