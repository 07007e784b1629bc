"""The sample that settles the order of ids before the first shard: beginnings of documents.

The sample depends on the corpus alone, so every writer that begins a cache numbers the ids in the
same way. Its rows are not kept: batches of another shape may round in another way, and a shard's
rows must be the same for all writers.
"""

from __future__ import annotations

import numpy as np

from fusestore.cache.id_order import IdOrder, learn_order
from fusestore.cache.kept_rows import KeptRows
from fusestore.cache.rows import Rows
from fusestore.tokenizers.token_table import TokenTable

MAX_SAMPLE_ROWS = 8_192
"""Twice as many would make the ids 1 % smaller."""

ROWS_PER_DOCUMENT = 256
"""Many beginnings cover more topics than a few whole documents."""

SAMPLE_SHARE = 16
"""The sample has at most a sixteenth of the corpus's tokens, which bounds its cost."""


def sample_slices(tokens: TokenTable, kept: KeptRows | None = None) -> list[slice]:
    """The beginnings of evenly spread documents: at most `MAX_SAMPLE_ROWS` tokens, at least one.

    Args:
        tokens: of the corpus.
        kept: which tokens have a row; None for all. A beginning ends with the last row that it has.
    """
    kept = KeptRows.all(tokens.num_tokens) if kept is None else kept
    target = max(1, min(MAX_SAMPLE_ROWS, tokens.num_tokens // SAMPLE_SHARE))
    first = kept.rows_before(tokens.document_offsets)
    nonempty = int(np.count_nonzero(np.diff(first)))
    longest = min(target, max(ROWS_PER_DOCUMENT, -(-target // nonempty)))
    rows = np.minimum(np.diff(first), longest)
    last = kept.tokens_of(np.maximum(first[:-1] + rows - 1, 0))
    lengths = np.where(rows > 0, last + 1 - tokens.document_offsets[:-1], 0)
    lengths = np.minimum(lengths, target)
    total = int(lengths.sum())
    slices: list[slice] = []
    taken = passed = 0
    # A document is taken if the sample stays within its share of the documents so far.
    for start, length in zip(tokens.document_offsets.tolist(), lengths.tolist(), strict=False):
        passed += length
        if length and (taken + length) * total <= target * passed:
            slices.append(slice(start, start + length))
            taken += length
    return slices


def sample_tokens(tokens: TokenTable, kept: KeptRows | None = None) -> tuple[TokenTable, KeptRows]:
    """The tokens of `sample_slices`, each slice a document, and which of them have a row."""
    kept = KeptRows.all(tokens.num_tokens) if kept is None else kept
    slices = sample_slices(tokens, kept)
    lengths = [rows.stop - rows.start for rows in slices]
    table = TokenTable(
        np.concatenate([tokens.token_ids[rows] for rows in slices]),
        np.concatenate([tokens.end_offsets[rows] for rows in slices]),
        np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]),
    )
    return table, kept.take([(rows.start, rows.stop) for rows in slices])


def order_of_sample(
    vocab_size: int, tokens: TokenTable, rows: Rows, kept: KeptRows | None = None
) -> IdOrder:
    """The order of ids for a corpus, from the rows of its `sample_tokens`."""
    sample, sampled = sample_tokens(tokens, kept)
    return learn_order(
        vocab_size,
        tokens.token_ids,
        sample.token_ids[sampled.tokens(0, sampled.num_rows)],
        rows.ids,
        rows.logprobs > -np.inf,
    )
