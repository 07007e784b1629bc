"""Totals of all rows for a capture's manifest: skipped documents, and sums of log p."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fusestore.cache.kept_rows import KeptRows
from fusestore.corpus.corpus import Corpus, supervision_of
from fusestore.tokenizers.token_table import TokenTable


def skipped_documents(
    tokens: TokenTable, label_logprob: npt.NDArray[np.float32], kept: KeptRows | None = None
) -> list[int]:
    """Documents without usable rows: a row that is kept has no log-probability of the next token.

    A document of one token predicts nothing and is never among them.
    """
    unknown = np.isnan(label_logprob)
    if kept is not None:
        unknown &= kept.mask(0, len(unknown))
    ends = tokens.document_offsets[1:] - 1
    unknown[ends[np.diff(tokens.document_offsets) > 0]] = False
    counts = np.concatenate([np.zeros(1, np.int64), np.cumsum(unknown)])
    per_document = counts[tokens.document_offsets[1:]] - counts[tokens.document_offsets[:-1]]
    return [int(index) for index in np.flatnonzero(per_document)]


def score_totals(
    corpus: Corpus,
    tokens: TokenTable,
    label_logprob: npt.NDArray[np.float32],
    skipped: list[int],
) -> dict[str, float]:
    """For each split: predicted tokens, the bytes they stand for, and −Σ log p in nats."""
    excluded = set(skipped)
    supervision = supervision_of(corpus)
    if supervision is not None:
        tokens = supervision.mark(tokens, np.arange(tokens.num_documents))
    totals: dict[str, float] = {}
    for split in corpus.manifest.splits:
        count, length, nats = 0, 0, 0.0
        for index in corpus.split_documents(split):
            start, stop = tokens.document_offsets[index], tokens.document_offsets[index + 1]
            if int(index) in excluded or stop - start < 2:
                continue
            logprobs = label_logprob[start : stop - 1]
            if tokens.counted_bytes is None:
                count += int(stop - start - 1)
                length += int(tokens.end_offsets[stop - 1] - tokens.end_offsets[start])
            else:
                num_bytes = tokens.counted_bytes[start + 1 : stop]
                is_counted = num_bytes >= 0
                count += int(is_counted.sum())
                length += int(num_bytes[is_counted].sum())
                logprobs = logprobs[is_counted]
            nats -= float(logprobs.sum(dtype=np.float64))
        totals |= {
            f"{split}.predicted_tokens": float(count),
            f"{split}.predicted_bytes": float(length),
            f"{split}.nats": nats,
        }
    return totals
