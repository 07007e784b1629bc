"""A fused dataset's arrays on disk: uncompressed Zarr v3, one chunk per file.

A chunk file is the raw little-endian values followed by 4 bytes of CRC-32C, so it can be memory
mapped as it lies and is read by any Zarr implementation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt

CRC_BYTES = 4


@dataclass(frozen=True)
class FusedArray:
    """One array of T rows; `entries` is its width, None for a single column."""

    name: str
    dtype: str
    fill_value: float
    entries: int | None = None

    def chunk_shape(self, chunk_rows: int) -> tuple[int, ...]:
        """Shape of every chunk; the last one is padded with the fill value."""
        return (chunk_rows,) if self.entries is None else (chunk_rows, self.entries)

    def chunk_path(self, shard: int) -> str:
        """The chunk's file inside the fused dataset's folder."""
        return f"{self.name}/c/{shard}" + ("" if self.entries is None else "/0")

    def chunk_bytes(self, chunk_rows: int) -> int:
        """Size of every chunk file."""
        values = chunk_rows * (self.entries or 1)
        return values * np.dtype(self.dtype).itemsize + CRC_BYTES

    def encode_chunk(self, values: npt.NDArray[Any], chunk_rows: int) -> bytes:
        """The file's bytes for up to `chunk_rows` rows of values."""
        chunk = np.full(self.chunk_shape(chunk_rows), self.fill_value, np.dtype(self.dtype))
        chunk[: len(values)] = values
        data = chunk.tobytes()
        checksum: int = google_crc32c.value(data)
        return data + checksum.to_bytes(CRC_BYTES, "little")


def fused_arrays(top_k: int) -> tuple[FusedArray, ...]:
    """All arrays of a fused dataset with `top_k` entries per position."""
    return (
        FusedArray("input_ids", "<i4", 0),
        FusedArray("next_ids", "<i4", -100),
        FusedArray("ids", "<i4", 0, top_k),
        FusedArray("logprobs", "<f4", -np.inf, top_k),
        FusedArray("tail", "<f4", 0.0),
        FusedArray("kind", "|u1", 0),
        FusedArray("source", "<i2", -1),
        FusedArray("document", "<i4", -1),
    )


def metadata_files(
    arrays: tuple[FusedArray, ...], num_rows: int, chunk_rows: int, attributes: Mapping[str, Any]
) -> dict[str, bytes]:
    """`zarr.json` of the group and of each array, by path, as zarr-python writes them."""
    import zarr
    from zarr.codecs import BytesCodec, Crc32cCodec
    from zarr.storage import MemoryStore

    files: dict[str, Any] = {}
    group = zarr.create_group(MemoryStore(files), attributes=dict(attributes))
    for array in arrays:
        tail = () if array.entries is None else (array.entries,)
        group.create_array(
            array.name,
            shape=(num_rows, *tail),
            chunks=array.chunk_shape(chunk_rows),
            dtype=np.dtype(array.dtype),
            fill_value=array.fill_value,
            filters=[],
            serializer=BytesCodec(endian="little"),
            compressors=[Crc32cCodec()],
        )
    return {path: buffer.to_bytes() for path, buffer in files.items()}
