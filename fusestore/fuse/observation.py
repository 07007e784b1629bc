"""Every source's projected rows, scores and label probabilities, in chunks of the split.

Projection and scores are the functions that materializing uses. This module adds the probability
of the next token.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fusestore.cache.rows import NO_LABEL
from fusestore.fuse.choices import Granularity
from fusestore.fuse.fusion import Fusion
from fusestore.fuse.inputs import SourceSpan
from fusestore.fuse.project import SparseRows, empty_rows
from fusestore.fuse.scores import Amounts, document_amounts, label_nats
from fusestore.fuse.source_weights import (
    Stretch,
    accepted,
    document_scores,
    load_spans,
    project_source,
    score_units,
    surround,
)

CHUNK_ROWS = 16_384

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Observed:
    """n positions with the projected rows of the S sources.

    Attributes:
        document: int64 [n], index of the document in the corpus.
        labels: int32 [n], the next token, −100 for none, and where it is not trained on.
        allowed: bool [n, S], whether the source may supervise.
        rows: int64 [n, S], index of the source's projected row, −1 where it may not supervise.
        projected: R projected rows of all sources, at the widest cache's width.
        unmapped: float64 [R], mass of a row that the vocabulary map sends nowhere.
        known: float32 [n, S], share of the row's mass that the source knows.
        label_logprob: float64 [n, S] of the next token; 0 without one, or without supervision.
        label_found: bool [n, S], whether it is exact. Of `mined` pairs, whose rows have not read
            the same text, it is that of the projected row, and outside its entries an even share
            of the tail.
    """

    document: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int32]
    allowed: BoolArray
    rows: npt.NDArray[np.int64]
    projected: SparseRows
    unmapped: FloatArray
    known: npt.NDArray[np.float32]
    label_logprob: FloatArray
    label_found: BoolArray

    @property
    def num_positions(self) -> int:
        """Number of positions, n."""
        return len(self.labels)

    @property
    def predicted(self) -> BoolArray:
        """Whether a next token follows, bool [n]."""
        result: BoolArray = self.labels != NO_LABEL
        return result

    @property
    def common(self) -> BoolArray:
        """Predicted positions that every source may supervise, bool [n]."""
        result: BoolArray = self.predicted & self.allowed.all(axis=1)
        return result

    def projected_rows(self, rows: npt.NDArray[np.int64]) -> SparseRows:
        """The projected rows at these indices."""
        ids, logprobs, tail = self.projected
        return ids[rows], logprobs[rows], tail[rows]


@dataclass(frozen=True)
class Chunk(Observed):
    """n positions of the split with the rows and scores of the S sources.

    Attributes:
        fusion: the fusion.
        label_bytes: int64 [n], number of the next token's bytes; 0 for none.
        kinds: uint8 [n, S], alignment kind of each source.
        scores: by granularity: float64 [units, S], and int64 [n] the unit of each position.
        counted: bool [D], whether the document begins in this chunk.
        document_scores: float64 [D, S].
        amounts: nats, bytes and tokens of each source on the D documents.
        takes_part: bool [D, S].
    """

    fusion: Fusion
    label_bytes: npt.NDArray[np.int64]
    kinds: npt.NDArray[np.uint8]
    scores: Mapping[Granularity, tuple[FloatArray, npt.NDArray[np.int64]]]
    counted: BoolArray
    document_scores: FloatArray
    amounts: Sequence[Amounts]
    takes_part: BoolArray


def chunk_starts(num_tokens: int, most: int | None = None) -> list[int]:
    """Where chunks of a split begin; with `most`, of chunks spread evenly, that many positions."""
    starts = range(0, num_tokens, CHUNK_ROWS)
    count = len(starts) if most is None else max(1, most // CHUNK_ROWS)
    if count >= len(starts):
        return list(starts)
    return [starts[index * len(starts) // count] for index in range(count)]


def read_chunks(
    fusion: Fusion, granularities: Sequence[Granularity], most: int | None = None
) -> Iterator[Chunk]:
    """The split in chunks of `CHUNK_ROWS` positions, scored by these granularities.

    Whole documents, and windows if they are a granularity, are read around each chunk. With `most`,
    only about that many positions are read.
    """
    num_tokens = fusion.num_tokens
    for start in chunk_starts(num_tokens, most):
        yield _read_chunk(fusion, start, min(start + CHUNK_ROWS, num_tokens), granularities)


def _read_chunk(
    fusion: Fusion, start: int, stop: int, granularities: Sequence[Granularity]
) -> Chunk:
    stretch = surround(fusion, start, stop, whole_windows="window" in granularities)
    spans = load_spans(fusion, stretch)
    amounts = [document_amounts(span.tokens, span.rows.label_logprob) for span in spans]
    per_document = document_scores(fusion, stretch, spans, amounts)
    asked = stretch.asked
    scores = {}
    for granularity in dict.fromkeys(granularities):
        unit_scores, unit = score_units(fusion, stretch, spans, per_document, granularity)
        scores[granularity] = (unit_scores, unit[asked])
    starts = stretch.tokens.document_offsets[:-1]
    return Chunk(
        **vars(observe(fusion, stretch, spans)),
        fusion=fusion,
        label_bytes=stretch.label_bytes[asked].astype(np.int64),
        kinds=np.stack([span.kind[asked] for span in spans], axis=1),
        scores=scores,
        counted=(starts >= asked.start)
        & (starts < asked.stop)
        & (np.diff(stretch.tokens.document_offsets) > 0),
        document_scores=per_document,
        amounts=amounts,
        takes_part=np.stack([span.takes_part for span in spans], axis=1),
    )


def observe(fusion: Fusion, stretch: Stretch, spans: Sequence[SourceSpan]) -> Observed:
    """Project every row that may supervise the asked positions of a stretch.

    Raises:
        As for `project_source`.
    """
    asked = stretch.asked
    labels = np.maximum(stretch.next_ids[asked], np.int32(NO_LABEL))
    predicted = labels != NO_LABEL
    allowed = np.stack([accepted(fusion.recipe, span)[asked] for span in spans], axis=1)
    rows = np.full(allowed.shape, -1, np.int64)
    label_logprob = np.zeros(allowed.shape)
    label_found = np.zeros(allowed.shape, np.bool_)
    width = max(span.rows.ids.shape[1] for span in spans)
    projections = []
    count = 0
    for index, span in enumerate(spans):
        positions = np.flatnonzero(allowed[:, index])
        projection = empty_rows(len(positions), width)
        lost = project_source(
            *(fusion, index, span, span.labels),
            *(asked.start + positions, np.arange(len(positions)), projection),
        )
        projections.append((*projection, lost))
        rows[positions, index] = count + np.arange(len(positions))
        count += len(positions)
        label_found[positions, index] = span.labels.found[asked][positions]
        label_logprob[positions, index] = span.labels.logprob[asked][positions]
        guessed = predicted[positions] & ~label_found[positions, index]
        ids, logprobs, tail = (column[guessed] for column in projection)
        label_logprob[positions[guessed], index] = -label_nats(
            ids, logprobs, tail, labels[positions[guessed]], fusion.vocab_size
        )
    ids, logprobs, tail, unmapped = (
        np.concatenate(columns) for columns in zip(*projections, strict=True)
    )
    return Observed(
        document=stretch.documents[stretch.document[asked]],
        labels=labels,
        allowed=allowed,
        rows=rows,
        projected=(ids, logprobs, tail),
        unmapped=unmapped,
        known=np.stack([span.labels.known[asked] for span in spans], axis=1),
        label_logprob=label_logprob,
        label_found=label_found,
    )


def is_kept(
    ids: npt.NDArray[np.int32], logprobs: npt.NDArray[np.float32], labels: npt.NDArray[np.int32]
) -> BoolArray:
    """Whether each label [n] is among the entries [n, k], bool [n]."""
    result: BoolArray = (np.isfinite(logprobs) & (ids == labels[:, None])).any(axis=1)
    return result
