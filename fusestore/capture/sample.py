"""What is run before the first shard: a few documents' beginnings, which settle the order of ids.

The sample depends on the corpus alone, so whoever begins a cache, with whichever shard, numbers the
ids in the same way. Its rows are not kept: a batch of another shape may round otherwise, and a
shard's rows are to be the same whoever computes them.
"""

from __future__ import annotations

import numpy as np

from fusestore.cache.id_order import IdOrder, learn_order
from fusestore.cache.rows import Rows
from fusestore.tokenizers.token_table import TokenTable

MAX_SAMPLE_ROWS = 8_192
"""Twice as many would make the ids 1 % smaller."""

ROWS_PER_DOCUMENT = 256
"""Many beginnings see more topics than a few whole documents."""

SAMPLE_SHARE = 16
"""A small corpus gives a sixteenth of its tokens, so that sampling it costs no more than that."""


def sample_stretches(tokens: TokenTable) -> list[slice]:
    """The beginnings of evenly spread documents: at most `MAX_SAMPLE_ROWS` rows, at least one."""
    wanted = max(1, min(MAX_SAMPLE_ROWS, tokens.num_tokens // SAMPLE_SHARE))
    lengths = np.diff(tokens.document_offsets)
    filled = int(np.count_nonzero(lengths))
    longest = min(wanted, max(ROWS_PER_DOCUMENT, -(-wanted // filled)))
    lengths = np.minimum(lengths, longest)
    total = int(lengths.sum())
    stretches: list[slice] = []
    taken = passed = 0
    # A document is taken when it does not bring the sample ahead of its share of what has passed.
    for start, length in zip(tokens.document_offsets.tolist(), lengths.tolist(), strict=False):
        passed += length
        if length and (taken + length) * total <= wanted * passed:
            stretches.append(slice(start, start + length))
            taken += length
    return stretches


def sample_tokens(tokens: TokenTable) -> TokenTable:
    """The tokens of `sample_stretches`, each stretch a document."""
    stretches = sample_stretches(tokens)
    lengths = [stretch.stop - stretch.start for stretch in stretches]
    return TokenTable(
        np.concatenate([tokens.token_ids[stretch] for stretch in stretches]),
        np.concatenate([tokens.end_offsets[stretch] for stretch in stretches]),
        np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]),
    )


def order_of_sample(vocab_size: int, tokens: TokenTable, rows: Rows) -> IdOrder:
    """The order of ids for a corpus, from the rows of its `sample_tokens`."""
    return learn_order(
        vocab_size,
        tokens.token_ids,
        sample_tokens(tokens).token_ids,
        rows.ids,
        rows.logprobs > -np.inf,
    )
