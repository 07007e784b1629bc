"""Read-only memory maps over the chunk files of an uncompressed Zarr v3 array.

Each chunk file is the raw little-endian values of one chunk and 4 bytes of CRC32C. A chunk's
checksum is checked once per process, when the chunk is first read; a missing file is an error,
never fill values. Uses neither zarr nor remote storage, so it is safe in DataLoader workers.

Reading a map beyond the end of its file kills the process (SIGBUS). So whoever reads for long asks
now and then whether the files still have their size: see `check_sizes`.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt

from fusestore.errors import CorruptionError, NotFoundError
from fusestore.storage.foreign_names import without_links_out
from fusestore.store.foreign_json import parse_foreign_json

_CHECKSUM_BYTES = 4

_MAX_OPEN_MAPS = 128
"""Per array and process: every map holds a file descriptor. The oldest is closed first."""

_DTYPES = {
    name: np.dtype(code)
    for name, code in {
        "int16": "<i2",
        "int32": "<i4",
        "int64": "<i8",
        "uint8": "u1",
        "float32": "<f4",
    }.items()
}


def chunk_slices(bounds: Iterable[tuple[int, int]], rows_per_chunk: int) -> list[tuple[int, slice]]:
    """The chunks of rows `[start, stop)` of each pair, in order, each with a slice of its rows."""
    slices = []
    for start, stop in bounds:
        while start < stop:
            chunk, low = divmod(start, rows_per_chunk)
            high = min(low + stop - start, rows_per_chunk)
            slices.append((chunk, slice(low, high)))
            start += high - low
    return slices


class MappedArray:
    """Rows of a 1-d or 2-d array, chunked along the first axis only.

    Holds no open file until rows are read and can be pickled. After a fork or spawn each process
    opens and checks its own files.

    Attributes:
        shape: [rows] or [rows, columns].
        dtype: little-endian.
        rows_per_chunk: rows in a file; the last file is padded.
    """

    def __init__(self, folder: Path, largest: int | None = None) -> None:
        """Read the array's `zarr.json`.

        Args:
            folder: of the array.
            largest: of its values; None: any. Checked with the checksum of a chunk.

        Raises:
            NotFoundError: no such array.
            CorruptionError: the metadata describes an array that cannot be mapped.
            InvalidInputError: it is a symbolic link out of the dataset.
        """
        self.folder = folder
        self._largest = largest
        without_links_out(folder.parent, folder / "zarr.json")
        self.shape, self.dtype, self.rows_per_chunk = _read_metadata(folder / "zarr.json")
        self._maps: dict[int, npt.NDArray[Any]] = {}
        self._files: dict[int, mmap.mmap] = {}
        self._checked: set[int] = set()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": {}, "_files": {}, "_checked": set()}

    def __len__(self) -> int:
        return self.shape[0]

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        """A fresh, writable copy of rows `[start, stop)`, which must lie inside the array.

        Raises:
            CorruptionError: a chunk is missing, truncated, or does not match its checksum.
        """
        rows = np.empty((stop - start, *self.shape[1:]), self.dtype)
        self.gather(chunk_slices([(start, stop)], self.rows_per_chunk), rows)
        return rows

    def gather(self, slices: Sequence[tuple[int, slice]], out: npt.NDArray[Any]) -> None:
        """Concatenate slices of chunks into `out`.

        Args:
            slices: of `chunk_slices`, n rows in all.
            out: [n] or [n, columns], of the array's dtype.

        Raises:
            CorruptionError: a chunk is missing, truncated, or does not match its checksum.
        """
        maps = self._maps
        try:
            views = [maps[chunk][rows] for chunk, rows in slices]
        except KeyError:
            views = [self._map(chunk)[rows] for chunk, rows in slices]
        if views:
            np.concatenate(views, out=out)

    def check_sizes(self) -> None:
        """Check that no file has been cut since it was mapped.

        Takes a microsecond for each open map, a tenth of what reading a window takes, so it is not
        done at each.

        Raises:
            CorruptionError: one has been.
        """
        for chunk, file in self._files.items():
            size = file.size()
            if size < len(file):
                raise CorruptionError(
                    f"{self._path(chunk)} was cut to {size:,} of its {len(file):,} bytes while it "
                    f"was read. {_REPAIR}"
                )

    def _map(self, chunk: int) -> npt.NDArray[Any]:
        values = self._maps.get(chunk)
        if values is None:
            if len(self._maps) == _MAX_OPEN_MAPS:
                oldest = next(iter(self._maps))
                del self._maps[oldest], self._files[oldest]
            values = self._maps[chunk] = self._open(chunk)
        return values

    def _open(self, chunk: int) -> npt.NDArray[Any]:
        path = self._path(chunk)
        shape = (self.rows_per_chunk, *self.shape[1:])
        num_bytes = int(np.prod(shape)) * self.dtype.itemsize
        without_links_out(self.folder.parent, path)
        try:
            with path.open("rb") as opened:
                size = os.fstat(opened.fileno()).st_size
                if size != num_bytes + _CHECKSUM_BYTES:
                    raise CorruptionError(
                        f"{path} is {size:,} bytes; expected {num_bytes + _CHECKSUM_BYTES:,}. "
                        f"{_REPAIR}"
                    )
                file = mmap.mmap(opened.fileno(), size, access=mmap.ACCESS_READ)
        except FileNotFoundError as error:
            raise CorruptionError(f"{path} is missing. {_REPAIR}") from error
        raw = np.frombuffer(file, np.uint8)
        if chunk not in self._checked:
            stored = int.from_bytes(raw[num_bytes:].tobytes(), "little")
            computed = google_crc32c.value(raw[:num_bytes])
            if stored != computed:
                raise CorruptionError(
                    f"{path} does not match its checksum: CRC32C {computed:08x}, "
                    f"stored {stored:08x}. {_REPAIR}"
                )
            values = raw[:num_bytes].view(self.dtype)
            if self._largest is not None and values.max() > self._largest:
                raise CorruptionError(
                    f"{path} holds {values.max()}; the largest is {self._largest}. {_REPAIR}"
                )
            self._checked.add(chunk)
        self._files[chunk] = file
        # A plain ndarray is several times cheaper to slice than an np.memmap.
        return raw[:num_bytes].view(self.dtype).reshape(shape)

    def _path(self, chunk: int) -> Path:
        return self.folder / "c" / "/".join([str(chunk), *("0" for _ in self.shape[1:])])


_REPAIR = "Delete the fused dataset and fuse it again, or copy it again from a sound store."


MAX_METADATA_BYTES = 2**20
"""A `zarr.json` has less than two thousand bytes."""


def _size(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no size")
    return value


def _read_metadata(path: Path) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Shape, dtype and rows per chunk of the array that `zarr.json` describes."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_METADATA_BYTES + 1)
        metadata = parse_foreign_json(data, str(path), MAX_METADATA_BYTES)
        shape = tuple(map(_size, metadata["shape"]))
        chunk_shape = tuple(map(_size, metadata["chunk_grid"]["configuration"]["chunk_shape"]))
        codecs = [codec["name"] for codec in metadata["codecs"]]
        encoding = metadata["chunk_key_encoding"]
        separator = encoding.get("configuration", {}).get("separator", "/")
        mappable = (
            codecs == ["bytes", "crc32c"]
            and metadata["data_type"] in _DTYPES
            and encoding["name"] == "default"
            and separator == "/"
            and len(shape) in (1, 2)
            and chunk_shape[1:] == shape[1:]
            and len(chunk_shape) == len(shape)
            and min(chunk_shape) >= 1
        )
    except FileNotFoundError as error:
        raise NotFoundError(f"{path} does not exist: no such array. {_REPAIR}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptionError(
            f"{path} is not an array's metadata ({error!r}). {_REPAIR}"
        ) from error
    except OSError as error:
        raise CorruptionError(f"{path} cannot be read ({error}). {_REPAIR}") from error
    if not mappable:
        raise CorruptionError(
            f"{path} describes an array that cannot be memory-mapped: codecs {codecs}, "
            f"{metadata['data_type']} {list(shape)} in chunks {list(chunk_shape)}. Expected "
            "uncompressed chunks with a crc32c, split along the first axis only. Fuse it again."
        )
    return shape, _DTYPES[metadata["data_type"]], chunk_shape[0]
