"""Totals of an alignment: coverage, unmatched tokens, and agreement between the methods.

Computed from the stored rows, a few documents at a time, so that interruptions of the writer do not
change it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fusestore.align.kinds import ALIGNMENT_KINDS, ALIGNMENT_METHODS, NONE
from fusestore.align.manifest import MethodSample
from fusestore.align.tokens.pairing import align_table
from fusestore.tokenizers.token_table import TokenReader, TokenTable, document_range
from fusestore.tokenizers.vocabulary import Vocabulary

TOKENS_PER_BLOCK = 2**18
"""Tokens of either side in a block of documents, which is read at a time."""

SAMPLE_TOKENS = 2**16
"""Target tokens in the sample on which the methods are compared."""

SAMPLE_DOCUMENT_TOKENS = 2**13
"""The sample has no longer documents, because `mined` is quadratic in the worst case."""


@dataclass(frozen=True)
class AlignmentTotals:
    """Counts over all documents.

    Attributes:
        kinds: int64, target tokens by alignment kind.
        unmatched_target: int64 [V_target], occurrences of each id without a source row.
        total_target: int64 [V_target], occurrences of each id.
        unmatched_source: int64 [V_source], occurrences with a row that supervises no position.
        total_source: int64 [V_source], occurrences of each id.
    """

    kinds: npt.NDArray[np.int64]
    unmatched_target: npt.NDArray[np.int64]
    total_target: npt.NDArray[np.int64]
    unmatched_source: npt.NDArray[np.int64]
    total_source: npt.NDArray[np.int64]

    @classmethod
    def zero(cls, num_source_ids: int, num_target_ids: int) -> AlignmentTotals:
        """Totals of no documents."""
        sizes = (len(ALIGNMENT_KINDS), *(2 * [num_target_ids]), *(2 * [num_source_ids]))
        return cls(*(np.zeros(size, np.int64) for size in sizes))

    def add(
        self,
        source: TokenTable,
        target: TokenTable,
        position: npt.NDArray[np.int32],
        kind: npt.NDArray[np.uint8],
    ) -> None:
        """Count whole documents: their tokens on both sides, and their alignment."""
        self.kinds[:] += np.bincount(kind, minlength=len(self.kinds))
        _count(self.total_target, target.token_ids)
        _count(self.unmatched_target, target.token_ids[kind == NONE])
        starts = np.repeat(source.document_offsets[:-1], np.diff(target.document_offsets))
        used = np.zeros(source.num_tokens, np.bool_)
        used[(starts + position)[position >= 0]] = True
        _count(self.total_source, source.token_ids)
        _count(self.unmatched_source, source.token_ids[~used])


def _count(counts: npt.NDArray[np.int64], ids: npt.NDArray[np.int32]) -> None:
    counts += np.bincount(ids, minlength=len(counts))


def document_blocks(
    source: TokenReader, target: TokenReader, tokens_per_block: int = TOKENS_PER_BLOCK
) -> Iterator[tuple[int, int]]:
    """Documents `[start, stop)` of each block: up to `tokens_per_block`, or one long document."""
    start = 0
    num_documents = len(target.document_offsets) - 1
    while start < num_documents:
        stop = num_documents
        for side in (source, target):
            offsets = side.document_offsets
            limit = offsets[start] + tokens_per_block
            stop = min(stop, int(np.searchsorted(offsets, limit, side="right")) - 1)
        stop = max(stop, start + 1)
        yield start, stop
        start = stop


def compare_methods(
    source: TokenReader, target: TokenReader, source_vocab: Vocabulary, target_vocab: Vocabulary
) -> MethodSample:
    """Align the same documents, drawn evenly from the corpus, by every method.

    The sample holds at least one document, if any is short enough.
    """
    lengths = [np.diff(side.document_offsets) for side in (source, target)]
    fitting = np.flatnonzero(np.maximum(*lengths) <= SAMPLE_DOCUMENT_TOKENS)
    mean = lengths[1][fitting].mean() if len(fitting) else 1.0
    count = min(len(fitting), int(SAMPLE_TOKENS / max(mean, 1.0)) + 1)
    drawn = fitting[np.arange(count) * len(fitting) // max(count, 1)]
    num_tokens = 0
    aligned = np.zeros(len(ALIGNMENT_METHODS), np.int64)
    same = np.zeros((len(ALIGNMENT_METHODS), len(ALIGNMENT_METHODS)), np.int64)
    for document in drawn:
        left, right = (document_range(side, document, document + 1) for side in (source, target))
        answers = np.stack(
            [
                align_table(left, right, source_vocab, target_vocab, method)[0]
                for method in ALIGNMENT_METHODS
            ]
        )
        num_tokens += right.num_tokens
        aligned += (answers >= 0).sum(axis=1)
        same += (answers[:, None] == answers[None]).sum(axis=2)
    return MethodSample(
        num_documents=count,
        num_tokens=num_tokens,
        aligned=dict(zip(ALIGNMENT_METHODS, aligned.tolist(), strict=True)),
        same={
            method: dict(zip(ALIGNMENT_METHODS, row, strict=True))
            for method, row in zip(ALIGNMENT_METHODS, same.tolist(), strict=True)
        },
    )
