"""GGUF files, each read once.

gguf's reader makes several views of every token of a vocabulary, and transformers opens a file up
to four times to load one model. For a vocabulary of 262,144 tokens that takes longer than
everything else in a conversion.
"""

from __future__ import annotations

import contextlib
import functools
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fusestore.errors import InvalidInputError, MissingDependencyError


def open_gguf(path: Path) -> Any:  # noqa: ANN401 - gguf is untyped
    """A reader (`gguf.GGUFReader`) of a GGUF file.

    Raises:
        InvalidInputError: the file is damaged.
        MissingDependencyError: the package `gguf` is not installed.
    """
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise MissingDependencyError(
            f"Reading {path.name} needs the package gguf: pip install 'fusestore[gguf]'."
        ) from error
    import numpy as np

    class Reader(GGUFReader):
        def _get(self, *args: Any, **options: Any) -> Any:  # noqa: ANN401
            if isinstance(self.data, np.memmap):
                # A view of a memmap takes several times as long as one of an array over it.
                self.data: Any = np.asarray(self.data)
            return super()._get(*args, **options)

    try:
        return Reader(path)
    except (OSError, ValueError, LookupError, OverflowError, MemoryError, struct.error) as error:
        raise InvalidInputError(
            f"{path} could not be read as a GGUF file ({error}). It has "
            f"{path.stat().st_size:,} bytes and may be cut off: download it again."
        ) from error


_HEAD_BYTES = 2**20
"""Bytes in which `gguf_texts` looks; a vocabulary alone may be larger."""

_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY = 8, 9


def gguf_texts(path: Path, prefix: str) -> dict[str, str]:
    """The texts of the metadata whose keys begin so, as far as they are at the head of the file.

    A reader takes seconds for a large vocabulary, which follows the texts that say what a model is.
    Empty for a file that cannot be read.
    """
    found: dict[str, str] = {}
    try:
        with path.open("rb") as file:
            data = file.read(_HEAD_BYTES)
        magic, _, _, num_keys = struct.unpack_from("<4sIQQ", data)
        at = 24
        for _ in range(num_keys if magic == b"GGUF" else 0):
            key, at = _string(data, at)
            (kind,) = struct.unpack_from("<I", data, at)
            start, at = at + 4, _end(data, kind, at + 4)
            if kind == _STRING and key.startswith(prefix):
                found[key] = _string(data, start)[0]
    except (OSError, struct.error, LookupError):
        # The head ends here, or it is of another form.
        pass
    return found


def _string(data: bytes, at: int) -> tuple[str, int]:
    (length,) = struct.unpack_from("<Q", data, at)
    end = at + 8 + length
    if end > len(data):
        raise LookupError(end)
    return data[at + 8 : end].decode("utf-8", errors="replace"), end


def _end(data: bytes, kind: int, at: int) -> int:
    if kind == _STRING:
        return _string(data, at)[1]
    if kind != _ARRAY:
        return at + _SIZES[kind]
    inner, count = struct.unpack_from("<IQ", data, at)
    at += 12
    if inner in _SIZES:
        return int(at + _SIZES[inner] * count)
    for _ in range(count):
        at = _end(data, inner, at)
    return at


def gguf_field(reader: Any, name: str) -> Any:  # noqa: ANN401
    """A value of the metadata; None if the file does not have it."""
    field = reader.get_field(name)
    return None if field is None else field.contents()


@contextlib.contextmanager
def read_once(reader: Any, path: Path) -> Iterator[None]:  # noqa: ANN401
    """While the body runs, whoever opens this GGUF file receives the open reader.

    transformers takes no open reader, and computes the names of all tensors for every module.
    """
    import gguf as module

    gguf: Any = module
    opened, names = gguf.GGUFReader, gguf.get_tensor_name_map

    def open_file(file: str | os.PathLike[str], *options: Any) -> Any:  # noqa: ANN401
        return reader if Path(file) == path else opened(file, *options)

    gguf.GGUFReader, gguf.get_tensor_name_map = open_file, functools.cache(names)
    try:
        yield
    finally:
        gguf.GGUFReader, gguf.get_tensor_name_map = opened, names
