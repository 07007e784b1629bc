"""Whether an array may be as large as a manifest says, by the files that there are.

The numbers of a manifest are somebody's word. Memory for them is taken only after this check.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np

from fusestore.store.arrays import ArraySpec
from fusestore.store.file_listing import FileListing
from fusestore.store.receipts import FileRecord

SMALL_BYTES = 64 * 2**20
"""An array of this size may come from a file of any size: pcodec takes next to nothing for a
constant."""

MOST_FROM_A_BYTE = 2_000
"""Bytes of a larger array for each stored byte, at most; usual rows have 2 to 10."""


def is_possible(num_bytes: int, stored_bytes: int) -> bool:
    """Whether so many bytes of values may come from so many bytes of files."""
    return num_bytes <= max(SMALL_BYTES, MOST_FROM_A_BYTE * stored_bytes)


def chunk_bytes(spec: ArraySpec) -> int:
    """Bytes of the values of one chunk."""
    return math.prod(spec.chunk_shape) * np.dtype(spec.dtype).itemsize


def file_bytes(spec: ArraySpec) -> int:
    """Bytes of the values of one whole file."""
    return chunk_bytes(spec) * (spec.rows_per_file // spec.rows_per_chunk) * spec.chunks_across


def file_problem(spec: ArraySpec, num_bytes: int) -> str | None:
    """Why a file of this many bytes cannot be one of the array; None if it can."""
    if spec.shard_shape is None:
        if spec.codec == "raw" and num_bytes != file_bytes(spec) + 4:
            return f"{num_bytes:,} bytes, {file_bytes(spec) + 4:,} were expected"
    elif num_bytes < spec.index_bytes:
        return f"{num_bytes:,} bytes, too few for the index of {spec.chunks_per_file:,} chunks"
    if not is_possible(file_bytes(spec), num_bytes):
        return f"{num_bytes:,} bytes, too few for {file_bytes(spec):,} bytes of values"
    return None


def listing_problem(specs: Iterable[ArraySpec], files: Mapping[str, FileRecord]) -> str | None:
    """Why listed files cannot be those of arrays; None if they can.

    Args:
        specs: the arrays.
        files: records of files by path; others may be among them.
    """
    listed = list(specs)
    num_files = sum(spec.num_files for spec in listed)
    if num_files > len(files):
        return f"its arrays are {num_files:,} files, and it lists {len(files):,}"
    for spec in listed:
        run = files.run_of(f"{spec.name}/c/") if isinstance(files, FileListing) else None
        shards: Iterable[int] = range(spec.num_files)
        if run is not None and run.path(0) == spec.file_name(0) and len(run) == spec.num_files:
            # A file is too small, or not as large as all: so the smallest or the largest is.
            shards = {int(run.sizes.argmin()), int(run.sizes.argmax())}
        for shard in shards:
            name = spec.file_name(shard)
            if name not in files:
                return f"it does not list {name!r}"
            problem = file_problem(spec, files[name].num_bytes)
            if problem is not None:
                return f"it lists {name} with {problem}"
    return None
