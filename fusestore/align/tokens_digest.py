"""`tokens_digest`: one digest of all tokens of one side of an alignment."""

from __future__ import annotations

import hashlib

import numpy as np

from fusestore.align.report.totals import document_blocks
from fusestore.tokenizers.token_table import TokenReader, document_range


def tokens_digest(tokens: TokenReader) -> str:
    """As `AlignmentFingerprint` has it of either side: reads all tokens."""
    ids, ends = hashlib.sha256(), hashlib.sha256()
    for start, stop in document_blocks(tokens, tokens):
        block = document_range(tokens, start, stop)
        ids.update(np.ascontiguousarray(block.token_ids, "<i4").data)
        ends.update(np.ascontiguousarray(block.end_offsets, "<i4").data)
    return digest_of_hashes(tokens, ids, ends)


def digest_of_hashes(tokens: TokenReader, *hashes: hashlib._Hash) -> str:
    """The digest of tokens from the hashes of their ids and end offsets."""
    offsets = hashlib.sha256(np.ascontiguousarray(tokens.document_offsets, "<i8").data)
    return hashlib.sha256(b"".join(each.digest() for each in (offsets, *hashes))).hexdigest()
