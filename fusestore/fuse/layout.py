"""A fused dataset's arrays on disk, in both forms.

The local form is uncompressed Zarr v3, one chunk per file: a file is the raw little-endian values
followed by 4 bytes of CRC-32C (the `raw` form of `fusestore.store.arrays`). So it can be
memory-mapped, and any Zarr implementation reads it. The last file is padded with zeros to the size
of the others. The shared form has the same arrays, compressed, in shards of about as many
positions.
"""

from __future__ import annotations

from dataclasses import replace

from fusestore.store.arrays import ArraySpec

_COLUMNS = {
    "input_ids": "int32",
    "next_ids": "int32",
    "tail": "float32",
    "known": "float32",
    "kind": "uint8",
    "source": "int16",
    "document": "int32",
}

_ENTRIES = {"ids": "int32", "logprobs": "float32"}

_ROWS_PER_SHARED_CHUNK = 2_048

_COLUMNS_PER_SHARED_CHUNK = 32
"""So that the last entries, which few rows have, cost next to nothing."""


def fused_arrays(num_rows: int, top_k: int, rows_per_shard: int) -> tuple[ArraySpec, ...]:
    """All arrays of a fused dataset of T = `num_rows` positions with `top_k` entries each."""
    rows = min(rows_per_shard, num_rows)
    return (
        *(
            ArraySpec(name, (num_rows,), dtype, (rows,), None, "raw", dimension_names=("position",))
            for name, dtype in _COLUMNS.items()
        ),
        *(
            ArraySpec(
                name,
                (num_rows, top_k),
                dtype,
                (rows, top_k),
                None,
                "raw",
                dimension_names=("position", "entry"),
            )
            for name, dtype in _ENTRIES.items()
        ),
    )


def shared_rows(num_rows: int, rows_per_shard: int) -> int:
    """Positions in a shard of the shared form: whole chunks."""
    return -(-min(rows_per_shard, num_rows) // _ROWS_PER_SHARED_CHUNK) * _ROWS_PER_SHARED_CHUNK


def shared_arrays(num_rows: int, top_k: int, rows_per_shard: int) -> tuple[ArraySpec, ...]:
    """The arrays of the shared form; arguments as for `fused_arrays`."""
    rows = shared_rows(num_rows, rows_per_shard)
    columns = min(_COLUMNS_PER_SHARED_CHUNK, top_k)
    width = -(-top_k // columns) * columns

    def shared(array: ArraySpec) -> ArraySpec:
        wide = len(array.shape) == 2
        return replace(
            array,
            # pcodec has no 8-bit numbers.
            dtype="uint16" if array.dtype == "uint8" else array.dtype,
            chunk_shape=(_ROWS_PER_SHARED_CHUNK, columns) if wide else (_ROWS_PER_SHARED_CHUNK,),
            shard_shape=(rows, width) if wide else (rows,),
            codec="pcodec",
        )

    return tuple(shared(array) for array in fused_arrays(num_rows, top_k, rows_per_shard))
