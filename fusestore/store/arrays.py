"""Writes Zarr v3 arrays, with metadata by zarr-python; `array_reader` reads them.

A chunk is encoded with `pcodec`, or is `raw`: its little-endian values. It ends in a CRC-32C. A
file is one chunk, or a shard (`sharding_indexed`, index at the end) of many. Every Zarr v3 reader
that has these codecs reads the result.
"""

from __future__ import annotations

import struct
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import google_crc32c
import numpy as np
import numpy.typing as npt
from numcodecs.pcodec import PCodec

from fusestore.errors import InvalidInputError, StorageError

PCODEC_LEVEL = 8
"""Level 12 is five times slower to encode and saves 0.3 %; decoding does not depend on it."""

ABSENT_CHUNK = 2**64 - 1
"""Offset and length that a shard index gives for a chunk that is not stored."""

_CRC32C_RESIDUE = 0x48674BC7
"""The CRC-32C of any bytes that end in their own CRC-32C, little-endian."""

Codec = Literal["pcodec", "raw"]


@dataclass(frozen=True)
class ArraySpec:
    """One array of a Zarr v3 group.

    Attributes:
        name: the array's folder inside the group.
        shape: [rows], or [rows, columns].
        dtype: NumPy name of a number type.
        chunk_shape: what is encoded together; divides `shard_shape`.
        shard_shape: what one file holds: rows of the shard, then the columns rounded up to whole
            chunks. None: one chunk of all columns per file.
        codec: see the module's docstring.
        attributes: written into the array's metadata.
        dimension_names: one per axis.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    chunk_shape: tuple[int, ...]
    shard_shape: tuple[int, ...] | None
    codec: Codec = "pcodec"
    attributes: Mapping[str, Any] = field(default_factory=dict)
    dimension_names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        outer = self.shard_shape or self.chunk_shape
        if not len(self.shape) == len(self.chunk_shape) == len(outer) in (1, 2):
            raise InvalidInputError(
                f"Array {self.name!r}: shape {self.shape}, chunks {self.chunk_shape} and shards "
                f"{self.shard_shape} must all have one axis, or two."
            )
        if min(self.chunk_shape) < 1 or any(
            size % chunk for size, chunk in zip(outer, self.chunk_shape, strict=True)
        ):
            raise InvalidInputError(
                f"Array {self.name!r}: chunks of {self.chunk_shape} do not divide {outer}."
            )
        if any(size > width for size, width in zip(self.shape[1:], outer[1:], strict=True)):
            raise InvalidInputError(
                f"Array {self.name!r}: only the first axis may be split into files, but a file of "
                f"{outer} does not hold whole rows of {self.shape}."
            )
        if self.codec == "raw" and self.chunks_across > 1:
            raise InvalidInputError(
                f"Array {self.name!r}: raw chunks hold whole rows, not {self.chunk_shape[1]} of "
                f"{self.shape[1]} columns."
            )

    @property
    def rows_per_file(self) -> int:
        """Rows in a whole file."""
        return (self.shard_shape or self.chunk_shape)[0]

    @property
    def num_files(self) -> int:
        """Files of the complete array."""
        return -(-self.shape[0] // self.rows_per_file)

    def file_name(self, shard: int) -> str:
        """The file of one shard, relative to the group."""
        return "/".join([self.name, "c", str(shard), *("0" * (len(self.shape) - 1))])

    def rows_of(self, shard: int) -> tuple[int, int]:
        """Rows `[start, stop)` that the file holds."""
        start = shard * self.rows_per_file
        return start, min(start + self.rows_per_file, self.shape[0])

    @property
    def rows_per_chunk(self) -> int:
        """Rows in a whole chunk."""
        return self.chunk_shape[0]

    @property
    def chunks_across(self) -> int:
        """Chunks side by side that together hold whole rows."""
        outer = self.shard_shape or self.chunk_shape
        return outer[-1] // self.chunk_shape[-1] if len(outer) == 2 else 1

    @property
    def chunks_per_file(self) -> int:
        """Chunks in a whole file."""
        return self.rows_per_file // self.rows_per_chunk * self.chunks_across

    @property
    def index_bytes(self) -> int:
        """Length of the index at the end of a shard: two uint64 per chunk, and a CRC-32C."""
        return 16 * self.chunks_per_file + 4


def array_metadata(spec: ArraySpec) -> bytes:
    """The array's `zarr.json`."""
    from zarr.codecs import BytesCodec, Crc32cCodec
    from zarr.codecs.numcodecs import PCodec as ZarrPCodec

    with warnings.catch_warnings():
        # zarr-python warns that numcodecs' codecs are not part of the Zarr v3 core.
        warnings.filterwarnings("ignore", message="Numcodecs codecs are not in the Zarr version 3")
        serializer = ZarrPCodec(level=PCODEC_LEVEL) if spec.codec == "pcodec" else BytesCodec()
        return _metadata_written_by_zarr(
            f"{spec.name}/zarr.json",
            lambda zarr, store: zarr.create_array(
                store,
                name=spec.name,
                shape=spec.shape,
                dtype=spec.dtype,
                chunks=spec.chunk_shape,
                shards=spec.shard_shape,
                filters=(),
                serializer=serializer,
                compressors=[Crc32cCodec()],
                fill_value=0,
                attributes=dict(spec.attributes),
                dimension_names=spec.dimension_names,
            ),
        )


def group_metadata(attributes: Mapping[str, Any]) -> bytes:
    """The group's `zarr.json`."""
    return _metadata_written_by_zarr(
        "zarr.json",
        lambda zarr, store: zarr.create_group(store, attributes=dict(attributes)),
    )


def _metadata_written_by_zarr(key: str, create: Callable[[Any, Any], object]) -> bytes:
    import zarr
    from zarr.core.buffer import default_buffer_prototype
    from zarr.core.sync import sync
    from zarr.storage import MemoryStore

    store = MemoryStore()
    create(zarr, store)
    buffer = sync(store.get(key, default_buffer_prototype()))
    if buffer is None:
        raise StorageError(f"zarr-python wrote no {key}.")
    return buffer.to_bytes()


def encode_shard(spec: ArraySpec, shard: int, values: npt.NDArray[Any]) -> bytes:
    """The bytes of one file.

    Args:
        spec: the array.
        shard: which file; the last one may be short.
        values: the file's rows, of the array's dtype.

    Raises:
        InvalidInputError: the values have another shape or dtype than the file.
    """
    start, stop = spec.rows_of(shard)
    if values.shape != (stop - start, *spec.shape[1:]) or values.dtype != np.dtype(spec.dtype):
        raise InvalidInputError(
            f"Shard {shard} of array {spec.name!r} takes {spec.dtype} "
            f"{(stop - start, *spec.shape[1:])}, not {values.dtype} {values.shape}."
        )
    encoded: list[bytes] = []
    index: list[tuple[int, int]] = []
    position = 0
    for region in _chunk_regions(spec):
        content = values[region]
        if content.size == 0:
            index.append((ABSENT_CHUNK, ABSENT_CHUNK))
            continue
        chunk = np.zeros(spec.chunk_shape, dtype=spec.dtype)
        chunk[tuple(slice(0, size) for size in content.shape)] = content
        data = _encode_chunk(spec, chunk)
        index.append((position, len(data)))
        position += len(data)
        encoded.append(data)
    if spec.shard_shape is not None:
        table = np.array(index, dtype="<u8").tobytes()
        encoded += [table, crc32c(table)]
    return b"".join(encoded)


def _encode_chunk(spec: ArraySpec, chunk: npt.NDArray[Any]) -> bytes:
    if spec.codec == "raw":
        data = chunk.astype(chunk.dtype.newbyteorder("<"), copy=False).tobytes()
    else:
        data = bytes(PCodec(level=PCODEC_LEVEL).encode(chunk.reshape(-1)))
    return data + crc32c(data)


def _chunk_regions(spec: ArraySpec) -> Iterator[tuple[slice, ...]]:
    """Every chunk of a file in index order, as slices of the file's rows and columns."""
    rows = spec.rows_per_chunk
    for chunk in range(spec.chunks_per_file):
        down, across = divmod(chunk, spec.chunks_across)
        region = slice(down * rows, (down + 1) * rows)
        if len(spec.shape) == 1:
            yield (region,)
        else:
            columns = spec.chunk_shape[1]
            yield region, slice(across * columns, (across + 1) * columns)


def crc32c(data: bytes | npt.NDArray[np.uint8]) -> bytes:
    """The checksum at the end of a chunk: four bytes, little-endian."""
    return struct.pack("<I", google_crc32c.value(data))


def ends_in_crc32c(data: bytes | npt.NDArray[np.uint8]) -> bool:
    """Whether the last four bytes are the checksum of the rest."""
    return len(data) >= 4 and google_crc32c.value(data) == _CRC32C_RESIDUE
