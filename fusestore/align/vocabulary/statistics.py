"""Counts of source and target tokens that begin together, for statistical vocabulary maps.

FuseChat (arXiv 2402.16107, section 3.3, "MS") counts the pairs of tokens in the alignments of a
corpus, and chooses targets by the counts where edit distance would guess. This module pairs tokens
that begin at the same byte. A row of an aligned source predicts what follows the text that both
models have read. So a source token's mass belongs to the target token that begins where it begins:
the same text (1-1), the first of several target tokens (1-n), or a longer target token that begins
with it (n-1, n-n).

The counts are a table of the pairs that occur, not a matrix of all pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
import numpy.typing as npt

from fusestore.errors import IncompatibleError
from fusestore.tokenizers.token_table import TokenReader, document_range

_TOKENS_PER_BLOCK = 2**20
"""Source tokens after which new pairs are added to the table; memory holds these and the table."""


@dataclass(frozen=True)
class PairCounts:
    """Pairs of tokens that begin together, in order of source id, then target id.

    Attributes:
        source_ids: int32 [n].
        target_ids: int32 [n].
        counts: int64 [n], at least 1.
    """

    source_ids: npt.NDArray[np.int32]
    target_ids: npt.NDArray[np.int32]
    counts: npt.NDArray[np.int64]


def count_pairs(source: TokenReader, target: TokenReader) -> PairCounts:
    """Count the pairs of tokens that begin at the same byte; tokens without text are left out.

    Args:
        source: D documents in the source's tokens.
        target: the same D documents in the target's tokens.

    Raises:
        IncompatibleError: different numbers of documents.
    """
    source_size, target_size = (len(side.document_offsets) - 1 for side in (source, target))
    if source_size != target_size:
        raise IncompatibleError(
            f"The source has {source_size:,} documents and the target {target_size:,}; statistics "
            "need two tokenizations of one corpus."
        )
    keys = np.empty(0, np.int64)
    counts = np.empty(0, np.int64)
    for start, stop in _blocks(source.document_offsets):
        left, right = document_range(source, start, stop), document_range(target, start, stop)
        pairs = _pairs(
            left.token_ids,
            left.end_offsets,
            left.document_offsets,
            right.token_ids,
            right.end_offsets,
            right.document_offsets,
        )
        new_keys, new_counts = np.unique(pairs, return_counts=True)
        keys, index = np.unique(np.concatenate([keys, new_keys]), return_inverse=True)
        merged = np.zeros(len(keys), np.int64)
        np.add.at(merged, index, np.concatenate([counts, new_counts]))
        counts = merged
    return PairCounts((keys >> 32).astype(np.int32), (keys & 0xFFFFFFFF).astype(np.int32), counts)


def _blocks(document_offsets: npt.NDArray[np.int64]) -> list[tuple[int, int]]:
    """Documents [start, stop) of blocks of about `_TOKENS_PER_BLOCK` tokens."""
    num_documents = len(document_offsets) - 1
    if num_documents == 0:
        return []
    block = document_offsets[:-1] // _TOKENS_PER_BLOCK
    starts = [0, *(np.flatnonzero(np.diff(block)) + 1).tolist()]
    return list(zip(starts, [*starts[1:], num_documents], strict=True))


@numba.njit(cache=True, nogil=True)
def _pairs(
    source_ids: npt.NDArray[np.int32],
    source_ends: npt.NDArray[np.int32],
    source_offsets: npt.NDArray[np.int64],
    target_ids: npt.NDArray[np.int32],
    target_ends: npt.NDArray[np.int32],
    target_offsets: npt.NDArray[np.int64],
) -> npt.NDArray[np.int64]:
    """Source id · 2³² + target id of every pair, int64."""
    result = np.empty(len(source_ids), np.int64)
    count = 0
    for document in range(len(source_offsets) - 1):
        target, target_stop = target_offsets[document], target_offsets[document + 1]
        source_begin = target_begin = 0
        for source in range(source_offsets[document], source_offsets[document + 1]):
            begin, source_begin = source_begin, source_ends[source]
            if source_begin == begin:
                continue
            # Move to the first target token with text that begins at `begin` or later.
            while target < target_stop and (
                target_begin < begin or target_ends[target] == target_begin
            ):
                target_begin = target_ends[target]
                target += 1
            if target < target_stop and target_begin == begin:
                result[count] = np.int64(source_ids[source]) << 32 | np.int64(target_ids[target])
                count += 1
    return result[:count]
