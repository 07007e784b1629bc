"""Packing of documents into the windows of a fused dataset."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fusestore.fuse.choices import Packing
from fusestore.store.arrays import ArraySpec, array_metadata, encode_shard


def window_starts(
    document_offsets: npt.NDArray[np.int64], window_length: int, packing: Packing
) -> npt.NDArray[np.int64]:
    """The first position of each window, and the end of the last.

    Args:
        document_offsets: int64 [D + 1]: document i is positions `[value[i], value[i + 1])`.
        window_length: largest number of positions of a window.
        packing: see `Packing`. With `whole`, no document is longer than a window.

    Returns:
        int64 [W + 1], rising: window i is positions `[value[i], value[i + 1])`.
    """
    end = document_offsets[-1:]
    if packing == "stream":
        return np.concatenate([np.arange(0, end[0], window_length), end])
    if packing == "whole":
        # A document without tokens has no offset of its own.
        edges = np.unique(document_offsets)
        starts = [0]
        while starts[-1] < end[0]:
            fits = np.searchsorted(edges, starts[-1] + window_length, side="right")
            starts.append(int(edges[fits - 1]))
        return np.array(starts, np.int64)
    lengths = np.diff(document_offsets)
    counts = -(-lengths // window_length)
    first = np.repeat(np.cumsum(counts) - counts, counts)
    within = np.arange(int(counts.sum())) - first
    starts = np.repeat(document_offsets[:-1], counts) + within * window_length
    return np.concatenate([starts, end])


def window_files(starts: npt.NDArray[np.int64]) -> dict[str, bytes]:
    """The array `window_starts` as files, by path; see `Recipe.has_window_table`."""
    rows = (len(starts),)
    spec = ArraySpec("window_starts", rows, "int64", rows, None, "raw", dimension_names=("window",))
    return {
        "window_starts/zarr.json": array_metadata(spec),
        spec.file_name(0): encode_shard(spec, 0, starts),
    }
