"""A fused dataset's arrays on disk: uncompressed Zarr v3, one chunk per file.

A chunk file is the raw little-endian values followed by 4 bytes of CRC-32C (the `raw` form of
`fusestore.storage.arrays`), so it can be memory-mapped as it lies and is read by any Zarr
implementation. The last file is padded with zeros to the size of the others.
"""

from __future__ import annotations

from fusestore.storage.arrays import ArraySpec

_COLUMNS = {
    "input_ids": "int32",
    "next_ids": "int32",
    "tail": "float32",
    "kind": "uint8",
    "source": "int16",
    "document": "int32",
}

_ENTRIES = {"ids": "int32", "logprobs": "float32"}


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
