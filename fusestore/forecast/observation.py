"""Observing a fusion: what every source says at each position of the split, part by part.

Projection and scores are the very functions that materializing uses; what is added here is
looking up the next token.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fusestore.cache.rows import NO_LABEL
from fusestore.errors import IncompatibleError, NonFiniteError
from fusestore.forecast.divergence import MAX_NATS, SparseRows
from fusestore.fuse.choices import Granularity
from fusestore.fuse.fusion import Fusion
from fusestore.fuse.inputs import SourceSpan, load_span
from fusestore.fuse.project import project_and_measure
from fusestore.fuse.scores import Amounts, document_amounts, label_nats
from fusestore.fuse.shard import (
    accepted,
    document_scores,
    score_units,
    surround,
)

PART_ROWS = 16_384

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Part:
    """n positions of the split and everything the S sources say about them.

    Attributes:
        fusion: the fusion.
        predicted: bool [n] where a next token follows.
        labels: int32 [n] that token, −100 for none.
        label_bytes: int64 [n] how many bytes it stands for; 0 for none.
        kinds: uint8 [n, S] how each source is aligned.
        allowed: bool [n, S] where each may supervise.
        rows: int64 [n, S] which of the projected rows each brings, −1 where it may not.
        projected: all sources' projected rows, at the widest cache's width.
        unmapped: float64 [R] mass of those rows that the vocabulary maps send nowhere.
        label_logprob: float64 [n, S] of the next token; 0 where there is none or it may not.
        label_found: bool [n, S] where that is known, not the even share of a tail.
        scores: by granularity: float64 [units, S], and int64 [n] the unit of each position.
        counted: bool [D] the documents that begin here.
        document_scores: float64 [D, S].
        amounts: what each source spent on the D documents.
        takes_part: bool [D, S].
    """

    fusion: Fusion
    predicted: BoolArray
    labels: npt.NDArray[np.int32]
    label_bytes: npt.NDArray[np.int64]
    kinds: npt.NDArray[np.uint8]
    allowed: BoolArray
    rows: npt.NDArray[np.int64]
    projected: SparseRows
    unmapped: FloatArray
    label_logprob: FloatArray
    label_found: BoolArray
    scores: Mapping[Granularity, tuple[FloatArray, npt.NDArray[np.int64]]]
    counted: BoolArray
    document_scores: FloatArray
    amounts: Sequence[Amounts]
    takes_part: BoolArray

    @property
    def num_positions(self) -> int:
        """Positions of the part, n."""
        return len(self.labels)

    @property
    def common(self) -> BoolArray:
        """Predicted positions that every source may supervise, bool [n]."""
        result: BoolArray = self.predicted & self.allowed.all(axis=1)
        return result

    def projected_rows(self, rows: npt.NDArray[np.int64]) -> SparseRows:
        """These of the projected rows."""
        ids, logprobs, tail = self.projected
        return ids[rows], logprobs[rows], tail[rows]


def read_parts(fusion: Fusion, granularities: Sequence[Granularity]) -> Iterator[Part]:
    """The split in parts of `PART_ROWS` positions, scored by these granularities.

    Whole documents, and windows if they are a granularity, are read around each part.
    """
    num_tokens = fusion.num_tokens
    for start in range(0, num_tokens, PART_ROWS):
        yield _read_part(fusion, start, min(start + PART_ROWS, num_tokens), granularities)


def _read_part(fusion: Fusion, start: int, stop: int, granularities: Sequence[Granularity]) -> Part:
    stretch = surround(fusion, start, stop, whole_windows="window" in granularities)
    spans = [load_span(source, stretch.documents, stretch.tokens) for source in fusion.sources]
    amounts = [document_amounts(span.tokens, span.rows.label_logprob) for span in spans]
    per_document = document_scores(fusion, stretch, spans, amounts)
    asked = stretch.asked
    scores = {}
    for granularity in dict.fromkeys(granularities):
        of_units, unit = score_units(fusion, stretch, spans, per_document, granularity)
        scores[granularity] = (of_units, unit[asked])

    labels = stretch.next_ids[asked]
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
        cached = span.row[asked][positions]
        *projection, lost = _project(fusion, index, span, cached, width)
        projections.append((*projection, lost))
        rows[positions, index] = count + np.arange(len(positions))
        count += len(positions)
        followed = predicted[positions]
        at = positions[followed]
        label_logprob[at, index], label_found[at, index] = _look_up(
            fusion,
            index,
            span,
            cached[followed],
            [part[followed] for part in projection],
            labels[at],
        )

    ids, logprobs, tail, unmapped = (
        np.concatenate(columns) for columns in zip(*projections, strict=True)
    )
    starts = stretch.tokens.document_offsets[:-1]
    return Part(
        fusion=fusion,
        predicted=predicted,
        labels=labels,
        label_bytes=(stretch.next_ends - stretch.tokens.end_offsets)[asked].astype(np.int64),
        kinds=np.stack([span.kind[asked] for span in spans], axis=1),
        allowed=allowed,
        rows=rows,
        projected=(ids, logprobs, tail),
        unmapped=unmapped,
        label_logprob=label_logprob,
        label_found=label_found,
        scores=scores,
        counted=(starts >= asked.start)
        & (starts < asked.stop)
        & (np.diff(stretch.tokens.document_offsets) > 0),
        document_scores=per_document,
        amounts=amounts,
        takes_part=np.stack([span.takes_part for span in spans], axis=1),
    )


def _project(
    fusion: Fusion, index: int, span: SourceSpan, rows: npt.NDArray[np.int64], width: int
) -> tuple[npt.NDArray[Any], ...]:
    """`project_and_measure` of these rows of a source; its errors name the source."""
    cached = span.rows
    try:
        return project_and_measure(
            cached.ids[rows], cached.logprobs[rows], cached.tail[rows], fusion.maps[index], width
        )
    except (IncompatibleError, NonFiniteError) as error:
        raise type(error)(f"Source {fusion.sources[index].name!r}: {error}") from error


def _look_up(
    fusion: Fusion,
    index: int,
    span: SourceSpan,
    rows: npt.NDArray[np.int64],
    projection: Sequence[npt.NDArray[Any]],
    labels: npt.NDArray[np.int32],
) -> tuple[FloatArray, BoolArray]:
    """Log-probability of each label [n] by a source before any cut, and where it is known.

    `rows` are the source's own rows [n], `projection` the same over the target's tokens. The
    cache knows the probability of the source's own next token exactly. With the target's own
    tokenizer that is the label; with another it stands for the label where the map says so.
    """
    ids, logprobs, tail = projection
    source = fusion.sources[index]
    own = np.maximum(span.rows.label_logprob[rows].astype(np.float64), -MAX_NATS)
    if source.target_id is None and source.alignment is None:
        return own, np.ones(len(rows), np.bool_)
    kept = is_kept(ids, logprobs, labels)
    logprob = -label_nats(ids, logprobs, tail, labels, fusion.vocab_size)
    # Without a label a document ends there, and the row after is another document's.
    following = np.minimum(rows + 1, max(0, span.tokens.num_tokens - 1))
    meant = fusion.maps[index][span.tokens.token_ids[following]] == labels
    meant &= ~np.isnan(own) & ~kept
    logprob[meant] = np.minimum(own, tail)[meant]
    return np.maximum(logprob, -MAX_NATS), kept | meant


def is_kept(
    ids: npt.NDArray[np.int32], logprobs: npt.NDArray[np.float32], labels: npt.NDArray[np.int32]
) -> BoolArray:
    """Whether each label [n] is among the entries [n, k], bool [n]."""
    result: BoolArray = (np.isfinite(logprobs) & (ids == labels[:, None])).any(axis=1)
    return result
