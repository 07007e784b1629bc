"""The arrays of a stored alignment."""

from __future__ import annotations

from typing import Any

from fusestore.align.kinds import ALIGNMENT_KINDS
from fusestore.store.arrays import ArraySpec


def alignment_arrays(
    rows: int, num_documents: int, rows_per_shard: int
) -> tuple[ArraySpec, ArraySpec, ArraySpec]:
    """`source_pos`, `kind` and `document_offsets` of an alignment of so many target tokens."""
    # A chunk is stored whole, so that of a small alignment is small too.
    chunk = max(1, min(rows_per_shard, rows))

    def per_token(name: str, dtype: str, attributes: dict[str, Any]) -> ArraySpec:
        return ArraySpec(name, (rows,), dtype, (chunk,), None, "raw", attributes, ("token",))

    documents = num_documents + 1
    return (
        per_token(
            "source_pos",
            "int32",
            {
                "content": "position in its document of the source token that may supervise",
                "none": -1,
            },
        ),
        per_token(
            "kind",
            "uint8",
            {"content": "how the token was aligned", "names": list(ALIGNMENT_KINDS)},
        ),
        ArraySpec(
            "document_offsets",
            (documents,),
            "int64",
            (documents,),
            None,
            "raw",
            {"content": "document i is rows [value[i], value[i + 1])"},
            ("document",),
        ),
    )
