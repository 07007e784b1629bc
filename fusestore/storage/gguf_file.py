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
