"""Scores: how well a source predicts a stretch of text; smaller is better.

A score is a ratio of two sums over the stretch, nats to bytes, to the source's own tokens or to
aligned positions. So the score of any unit (document, window or token) follows from amounts per
position. Where the source gives a target token an exact probability (`labels.py`), that counts.
Elsewhere, between two of its token ends, its nats are spread evenly over the bytes.

Bytes that a source does not predict are not counted: without a BOS token, those of each document's
first token.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fusestore.errors import NonFiniteError
from fusestore.fuse.project import Float32Array, Float64Array, Int32Array
from fusestore.tokenizers.token_table import TokenTable

MAX_NATS = 1e6
"""Nats of a token with probability 0: with +inf all documents that hold one would score alike."""

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Amounts:
    """Nats, bytes and tokens of a source in each of m stretches of text.

    Attributes:
        nats: float64 [m], −Σ log-probability of the predicted tokens.
        num_bytes: float64 [m], bytes of text that these tokens stand for.
        num_tokens: float64 [m], number of the source's own tokens; a token that lies partly in the
            stretch counts by the share of its bytes.
    """

    nats: Float64Array
    num_bytes: Float64Array
    num_tokens: Float64Array

    def bits_per_byte(self) -> Float64Array:
        """Σ nats / ln 2 / bytes, float64 [m]; +inf where nothing was predicted."""
        return ratio(self.nats / np.log(2.0), self.num_bytes)

    def token_ce(self) -> Float64Array:
        """Mean nats per own token, float64 [m]; +inf where nothing was predicted.

        The paper's score (section 3.3); not comparable across tokenizers.
        """
        return ratio(self.nats, self.num_tokens)


def unit_sums(amount: Float64Array, unit: IntArray, num_units: int) -> Float64Array:
    """Float64 [num_units]: sums of `amount` [m] over the stretches of each unit, `unit` [m]."""
    return np.bincount(unit, weights=amount, minlength=num_units).astype(np.float64)


def ratio(amount: Float64Array, count: Float64Array) -> Float64Array:
    """`amount / count`, +inf where the count is 0."""
    result = np.full(len(count), np.inf)
    np.divide(amount, count, out=result, where=count > 0)
    return result


def document_amounts(tokens: TokenTable, label_logprob: Float32Array) -> Amounts:
    """Amounts of a source for each of D whole documents.

    Args:
        tokens: the source's tokens of the documents.
        label_logprob: float32 [T] log p(token i+1); a document's last row is ignored.

    Raises:
        NonFiniteError: a predicted token's log-probability is NaN.
    """
    predicted = _token_nats(tokens, label_logprob)
    first, stop = tokens.document_offsets[:-1], tokens.document_offsets[1:]
    document = np.repeat(np.arange(len(first)), stop - first)
    if tokens.counted_bytes is not None:
        return Amounts(
            unit_sums(predicted, document, len(first)),
            unit_sums(np.maximum(tokens.counted_bytes, 0).astype(float), document, len(first)),
            unit_sums(tokens.is_counted.astype(float), document, len(first)),
        )
    has_tokens = stop > first
    last_end = np.zeros(len(first))
    first_end = np.zeros(len(first))
    last_end[has_tokens] = tokens.end_offsets[stop[has_tokens] - 1]
    first_end[has_tokens] = tokens.end_offsets[first[has_tokens]]
    return Amounts(
        unit_sums(predicted, document, len(first)),
        last_end - first_end,
        np.maximum(stop - first - 1, 0).astype(np.float64),
    )


def range_amounts(
    tokens: TokenTable,
    label_logprob: Float32Array,
    document: IntArray,
    start: Int32Array,
    stop: Int32Array,
) -> Amounts:
    """Amounts of a source for m byte ranges `(start, stop]` of its documents.

    Args:
        tokens: the source's tokens of D documents.
        label_logprob: float32 [T] log p(token i+1).
        document: int64 [m], index of each range's document among the D.
        start: int32 [m], byte offset in the document after which the range begins.
        stop: int32 [m], byte offset at which it ends.

    Returns:
        Amounts of the bytes in each range that the source predicts.

    Raises:
        NonFiniteError: a predicted token's log-probability is NaN.
    """
    nats = _token_nats(tokens, label_logprob)
    lengths = np.diff(tokens.document_offsets)
    token_document = np.repeat(np.arange(tokens.num_documents), lengths)
    has_tokens = lengths > 0
    first_end = np.zeros(tokens.num_documents, np.int64)
    last_end = np.zeros(tokens.num_documents, np.int64)
    first_end[has_tokens] = tokens.end_offsets[tokens.document_offsets[:-1][has_tokens]]
    last_end[has_tokens] = tokens.end_offsets[tokens.document_offsets[1:][has_tokens] - 1]

    # One axis for all documents: each begins a stride after the document before.
    stride = int(max(last_end.max(initial=0), stop.max(initial=0))) + 1
    knots = token_document * stride + tokens.end_offsets
    is_first = np.zeros(tokens.num_tokens, np.bool_)
    is_first[tokens.document_offsets[:-1][has_tokens]] = True
    # Tokens that end at the same byte share one knot, that of the last.
    keep = np.append(np.diff(knots) > 0, True)[: len(knots)]

    low = np.clip(start.astype(np.int64), first_end[document], last_end[document])
    high = np.clip(stop.astype(np.int64), first_end[document], last_end[document])

    def spent(per_token: Float64Array) -> Float64Array:
        if not len(knots):
            return np.zeros(len(document))
        cumulative = np.cumsum(per_token)
        at_first = np.zeros(tokens.num_documents)
        at_first[has_tokens] = cumulative[is_first] - per_token[is_first]

        def until(offset: IntArray) -> Float64Array:
            value = np.interp(document * stride + offset, knots[keep], cumulative[keep])
            # Nats at the end offset of a document's first token count for the range that begins
            # at that offset.
            return np.where(offset <= first_end[document], at_first[document], value)

        return until(high) - until(low)

    return Amounts(
        spent(nats),
        (high - low).astype(np.float64),
        spent(tokens.is_counted.astype(np.float64)),
    )


def label_nats(
    ids: Int32Array,
    logprobs: Float32Array,
    tail: Float32Array,
    labels: Int32Array,
    vocab_size: int,
) -> Float64Array:
    """−log p(label) under n projected rows, float64 [n]: the terms of `aligned_ce`.

    A label outside the kept entries has an even share of the tail: `tail / (vocab_size − kept)`.

    Args:
        ids: int32 [n, k] target token ids; an entry with log-probability −inf is unused.
        logprobs: float32 [n, k].
        tail: float32 [n].
        labels: int32 [n] the next target token.
        vocab_size: tokens of the target.
    """
    present = np.isfinite(logprobs)
    hit = present & (ids == labels[:, None])
    kept_logprob = np.where(hit, logprobs, -np.inf).max(axis=1, initial=-np.inf)
    others = (vocab_size - present.sum(axis=1)).astype(np.float64)
    share = np.where(others > 0, tail - np.log(np.maximum(others, 1.0)), -np.inf)
    logprob = np.where(hit.any(axis=1), kept_logprob.astype(np.float64), share)
    capped: Float64Array = np.minimum(-logprob, MAX_NATS)
    return capped


def _token_nats(tokens: TokenTable, label_logprob: Float32Array) -> Float64Array:
    """−log p(token i), float64 [T]; 0 for tokens whose prediction does not count."""
    nats = np.zeros(tokens.num_tokens)
    nats[1:] = -label_logprob[:-1].astype(np.float64)
    nats[~tokens.is_counted] = 0.0
    bad = np.flatnonzero(np.isnan(nats))
    if len(bad):
        document = int(np.searchsorted(tokens.document_offsets, bad[0], side="right")) - 1
        raise NonFiniteError(
            f"The log-probability of token {bad[0] - tokens.document_offsets[document]} of "
            f"document {document} (of those read) is NaN, but its cache does not list the document "
            "as skipped; run `fusestore verify`."
        )
    capped: Float64Array = np.minimum(nats, MAX_NATS)
    return capped
