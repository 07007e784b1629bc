"""Distributions over the rows of a cache: the mass of the tail, and how spread a row is."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fusestore.cache.reader import Cache
from fusestore.cache.rows import Rows
from fusestore.report.page.content import Histogram, SourceReport, SplitScore

SAMPLED_ROWS = 20_000
"""Rows that are read of a cache, about."""

_TAIL_BINS = 20


def source_report(name: str, model: str, cache: Cache) -> SourceReport:
    """The report of a cache, from its manifest and a sample of its rows.

    Raises:
        CorruptionError: the cache is damaged.
    """
    scores = cache.manifest.scores
    rows = sampled_rows(cache)
    known = len(rows) > 0 and not np.isnan(rows.tail).any()
    return SourceReport(
        cache=name,
        model=model,
        top_k=cache.k,
        num_rows=cache.fingerprint.num_rows,
        scores=tuple(
            SplitScore(
                split=split,
                bits_per_byte=scores[f"{split}.nats"] / np.log(2) / num_bytes,
                num_bytes=int(num_bytes),
            )
            for key, num_bytes in scores.items()
            if key.endswith(".predicted_bytes") and num_bytes > 0
            for split in [key.removesuffix(".predicted_bytes")]
        ),
        sampled_rows=len(rows),
        tail=tail_histogram(rows) if known else None,
        effective_k=effective_k_histogram(rows) if known else None,
    )


def sampled_rows(cache: Cache, count: int = SAMPLED_ROWS) -> Rows:
    """About `count` rows of documents that are spread evenly over the cache, without absent rows.

    A document of which the sample needs a part gives its first rows.
    """
    documents = [
        number
        for number, length in enumerate(np.diff(cache.document_offsets))
        if length and number not in cache.skipped
    ]
    lengths = np.diff(cache.document_offsets)
    mean = float(lengths[documents].mean()) if documents else 1.0
    wanted = min(len(documents), max(1, int(count / mean)))
    parts, left = [], count
    for index in range(wanted):
        start = int(cache.document_offsets[documents[index * len(documents) // wanted]])
        length = int(lengths[documents[index * len(documents) // wanted]])
        parts.append(cache[start : start + min(length, left)])
        left -= len(parts[-1])
        if left <= 0:
            break
    if not parts:
        return cache[0:0]
    ids, logprobs, tail, label = (
        np.concatenate([getattr(part, name) for part in parts])
        for name in ("ids", "logprobs", "tail", "label_logprob")
    )
    # Only rows that the cache does not hold have no entry at all.
    held = np.isfinite(logprobs).any(axis=1)
    return Rows(ids[held], logprobs[held], tail[held], label[held])


def effective_k(rows: Rows) -> npt.NDArray[np.float64]:
    """exp(entropy) of each row, float64 [n]; the tail counts as one entry, so it is a lower bound.

    See Jelinek et al., 1977: the perplexity of a distribution.
    """
    logs = np.concatenate([rows.logprobs, rows.tail[:, None]], axis=1).astype(np.float64)
    mass = np.exp(logs)
    terms = np.where(mass > 0, -mass * np.where(mass > 0, logs, 0.0), 0.0)
    result: npt.NDArray[np.float64] = np.exp(np.maximum(terms.sum(axis=1), 0.0))
    return result


def tail_histogram(rows: Rows) -> Histogram:
    """The mass of the tails, in bins of equal width from 0 to 1."""
    mass = np.exp(rows.tail.astype(np.float64))
    return _histogram(np.clip(mass, 0.0, 1.0), np.linspace(0.0, 1.0, _TAIL_BINS + 1))


def effective_k_histogram(rows: Rows) -> Histogram:
    """The effective k, in bins that double from 1 to k + 1 or more."""
    powers = int(np.ceil(np.log2(rows.logprobs.shape[1] + 1)))
    edges = 2.0 ** np.arange(0, max(1, powers) + 0.5, 0.5)
    return _histogram(np.clip(effective_k(rows), 1.0, edges[-1]), edges)


def _histogram(values: npt.NDArray[np.float64], edges: npt.NDArray[np.float64]) -> Histogram:
    counts, _ = np.histogram(values, edges)
    return Histogram(
        edges=tuple(edges.tolist()),
        shares=tuple((counts / max(1, len(values))).tolist()),
        mean=float(values.mean()),
        median=float(np.median(values)),
    )
