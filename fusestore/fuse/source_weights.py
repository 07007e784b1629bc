"""The weights of sources at each position of a stretch, from scores of documents or windows.

A stretch may begin and end inside documents and windows. Scores belong to whole documents or
windows, so all documents that these touch are read, and the weights do not depend on how positions
are divided into shards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fusestore.align.kinds import INSIDE
from fusestore.cache.rows import NO_LABEL, NOT_TRAINED_ON
from fusestore.errors import IncompatibleError, NonFiniteError
from fusestore.fuse.choices import Granularity
from fusestore.fuse.fusion import Fusion
from fusestore.fuse.inputs import SourceSpan, load_span
from fusestore.fuse.labels import Labels
from fusestore.fuse.manifest import KIND_CODES
from fusestore.fuse.project import Conditions, SparseRows, empty_rows, project_into
from fusestore.fuse.recipe import Recipe
from fusestore.fuse.scores import (
    Amounts,
    label_nats,
    range_amounts,
    ratio,
    unit_sums,
)
from fusestore.fuse.strategies import get_strategy, normalize_rows
from fusestore.tokenizers.token_table import TokenTable


@dataclass(frozen=True)
class Stretch:
    """The documents around positions `[start, stop)` of the split, n positions in all.

    Attributes:
        tokens: the target's tokens of these D documents.
        documents: int64 [D] their indices in the corpus.
        first_position: the first of the n positions, counted in the split.
        document: int64 [n], index of each position's document among the D.
        next_ids: int32 [n], next tokens, −100 where a document ends, −101 where the next token is
            not trained on.
        next_ends: int32 [n], end offset of the next token; of the token itself at a document's end.
        label_bytes: int32 [n], bytes of the next token; 0 where there is none to predict.
        asked: positions `[start, stop)` among the n.
    """

    tokens: TokenTable
    documents: npt.NDArray[np.int64]
    first_position: int
    document: npt.NDArray[np.int64]
    next_ids: npt.NDArray[np.int32]
    next_ends: npt.NDArray[np.int32]
    label_bytes: npt.NDArray[np.int32]
    asked: slice


def surround(fusion: Fusion, start: int, stop: int, *, whole_windows: bool) -> Stretch:
    """The documents that positions `[start, stop)`, or the windows they lie in, touch."""
    low, high = start, stop
    if whole_windows:
        starts = fusion.window_starts
        low = int(starts[np.searchsorted(starts, start, side="right") - 1])
        high = int(starts[np.searchsorted(starts, stop, side="left")])
    first = int(np.searchsorted(fusion.offsets, low, side="right")) - 1
    last = int(np.searchsorted(fusion.offsets, high, side="left"))
    base = int(fusion.offsets[first])
    around = fusion.read(first, last)
    lengths = np.diff(around.document_offsets)
    is_last = np.zeros(around.num_tokens, np.bool_)
    is_last[around.document_offsets[1:][lengths > 0] - 1] = True
    following = np.minimum(np.arange(around.num_tokens) + 1, around.num_tokens - 1)
    next_ids = np.where(is_last, NO_LABEL, around.token_ids[following])
    next_ends = np.where(is_last, around.end_offsets, around.end_offsets[following])
    label_bytes = next_ends - around.end_offsets
    if around.counted_bytes is not None:
        label_bytes = np.where(is_last, 0, np.maximum(around.counted_bytes[following], 0))
        next_ids[~is_last & ~around.is_counted[following]] = NOT_TRAINED_ON
    return Stretch(
        around,
        fusion.documents[first:last],
        base,
        np.repeat(np.arange(len(lengths)), lengths),
        next_ids.astype(np.int32),
        next_ends.astype(np.int32),
        label_bytes.astype(np.int32),
        slice(start - base, stop - base),
    )


def load_spans(fusion: Fusion, stretch: Stretch) -> list[SourceSpan]:
    """The rows of every source for the documents of a stretch; see `load_span` for errors."""
    return [
        load_span(source, stretch.documents, stretch.tokens, fusion.supervision)
        for source in fusion.sources
    ]


def accepted(recipe: Recipe, span: SourceSpan) -> npt.NDArray[np.bool_]:
    """Whether the source may supervise the position, bool [n]."""
    return np.isin(span.kind, [KIND_CODES[kind] for kind in recipe.kinds]) & (span.row >= 0)


def document_scores(
    fusion: Fusion, stretch: Stretch, spans: Sequence[SourceSpan], amounts: Sequence[Amounts]
) -> npt.NDArray[np.float64]:
    """Float64 [D, sources] by the recipe's score; NaN where a source takes no part."""
    columns = []
    for index, span in enumerate(spans):
        if fusion.recipe.score == "bits_per_byte":
            column = amounts[index].bits_per_byte()
        elif fusion.recipe.score == "token_ce":
            column = amounts[index].token_ce()
        else:
            nats, count = _label_terms(fusion, index, stretch, span)
            column = _unit_ratio(nats, count, stretch.document, len(stretch.documents))
        columns.append(np.where(span.takes_part, column, np.nan))
    return np.stack(columns, axis=1)


def position_weights(
    fusion: Fusion,
    stretch: Stretch,
    spans: Sequence[SourceSpan],
    document_scores: npt.NDArray[np.float64],
) -> npt.NDArray[np.float64]:
    """The strategy's weights over the sources that may supervise, float64 [n, sources]."""
    recipe = fusion.recipe
    scores, unit = score_units(fusion, stretch, spans, document_scores, recipe.granularity)
    allowed = np.stack([accepted(recipe, span) for span in spans], axis=1)
    fixed = np.array([source.weight for source in recipe.sources])
    return weigh(recipe.strategy, fixed, scores, unit, allowed)


def weigh(
    strategy: str,
    fixed_weights: npt.NDArray[np.float64],
    scores: npt.NDArray[np.float64],
    unit: npt.NDArray[np.int64],
    allowed: npt.NDArray[np.bool_],
) -> npt.NDArray[np.float64]:
    """A strategy's weights at n positions, over the sources that may supervise each.

    Args:
        strategy: its name.
        fixed_weights: float64 [sources].
        scores: float64 [units, sources].
        unit: int64 [n], the unit of each position.
        allowed: bool [n, sources], whether the source may supervise.

    Returns:
        float64 [n, sources]; each row sums to 1, or to 0 where no source may supervise.
    """
    weights = get_strategy(strategy)(scores, fixed_weights)[unit]
    return normalize_rows(np.where(allowed, weights, 0.0))


def score_units(
    fusion: Fusion,
    stretch: Stretch,
    spans: Sequence[SourceSpan],
    document_scores: npt.NDArray[np.float64],
    granularity: Granularity,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """`(scores float64 [units, sources], unit int64 [n])` of the units of a granularity."""
    if granularity == "document":
        return document_scores, stretch.document
    unit = np.arange(stretch.tokens.num_tokens)
    if granularity == "window":
        window = np.searchsorted(fusion.window_starts, stretch.first_position + unit, side="right")
        unit = window - window[:1]
    return _unit_scores(fusion, stretch, spans, document_scores, unit), unit


def _unit_scores(
    fusion: Fusion,
    stretch: Stretch,
    spans: Sequence[SourceSpan],
    document_scores: npt.NDArray[np.float64],
    unit: npt.NDArray[np.int64],
) -> npt.NDArray[np.float64]:
    """float64 [units, sources]; a unit without predicted tokens gets its documents' score."""
    num_units = int(unit.max(initial=-1)) + 1
    ends = stretch.tokens.end_offsets
    columns = []
    for index, span in enumerate(spans):
        if fusion.recipe.score == "aligned_ce":
            nats, count = _label_terms(fusion, index, stretch, span)
            scale = 1.0
        else:
            spent = range_amounts(
                span.tokens, span.rows.label_logprob, stretch.document, ends, stretch.next_ends
            )
            nats, count, scale = spent.nats, spent.num_tokens, 1.0
            if fusion.recipe.score == "bits_per_byte":
                # Spread evenly over a token's bytes only where its share is not known.
                found = span.labels.found
                # Of a partial source, bytes without a row have no nats and would count as certain.
                rest = (0.0, 0.0) if span.source.is_partial else (spent.nats, spent.num_bytes)
                nats = np.where(found, -span.labels.logprob, rest[0])
                count = np.where(found, stretch.label_bytes.astype(float), rest[1])
                scale = float(np.log(2.0))
            if stretch.tokens.counted_bytes is not None:
                counts = stretch.next_ids >= 0
                nats, count = np.where(counts, nats, 0.0), np.where(counts, count, 0.0)
        score = _unit_ratio(nats / scale, count, unit, num_units)
        takes_part = span.takes_part[stretch.document]
        if span.source.is_partial:
            takes_part = takes_part & (span.row >= 0)
        whole = np.where(takes_part, document_scores[stretch.document, index], 0.0)
        fallback = _unit_ratio(whole, takes_part.astype(np.float64), unit, num_units)
        measured = unit_sums(count, unit, num_units) > 0
        present = unit_sums(takes_part.astype(np.float64), unit, num_units) > 0
        columns.append(np.where(present, np.where(measured, score, fallback), np.nan))
    return np.stack(columns, axis=1)


def _unit_ratio(
    amount: npt.NDArray[np.float64],
    count: npt.NDArray[np.float64],
    unit: npt.NDArray[np.int64],
    num_units: int,
) -> npt.NDArray[np.float64]:
    return ratio(unit_sums(amount, unit, num_units), unit_sums(count, unit, num_units))


def _label_terms(
    fusion: Fusion, index: int, stretch: Stretch, span: SourceSpan
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Per position `(−log p(next token), 1)` where the source may supervise it, else `(0, 0)`."""
    scored = accepted(fusion.recipe, span) & (stretch.next_ids >= 0)
    nats = np.where(scored & span.labels.found, -span.labels.logprob, 0.0)
    # Of `mined` pairs, which have not read the same bytes, only the projected row is known.
    guessed = np.flatnonzero(scored & ~span.labels.found)
    projected = empty_rows(len(guessed), span.rows.ids.shape[1])
    project_source(fusion, index, span, span.labels, guessed, np.arange(len(guessed)), projected)
    nats[guessed] = label_nats(*projected, stretch.next_ids[guessed], fusion.vocab_size)
    return nats, scored.astype(np.float64)


def project_source(
    fusion: Fusion,
    index: int,
    span: SourceSpan,
    labels: Labels,
    positions: npt.NDArray[np.int64],
    places: npt.NDArray[np.int64],
    out: SparseRows,
) -> npt.NDArray[np.float64]:
    """`project_into` for the rows of a source at m of its target positions.

    Args:
        fusion: the fusion.
        index: of the source.
        span: the source's rows of n target positions.
        labels: the source's labels there.
        positions: int64 [m], indices among the n.
        places: int64 [m], indices of their rows in the output.
        out: the output.

    Raises:
        As for `project_into`; the message names the source.
        IncompatibleError: a row of kind `inside` does not fit the source's tokens.
    """
    source, cached = fusion.sources[index], span.rows
    conditions = None
    if source.spelling is not None and source.first_tokens is not None:
        since, following = labels.since[positions], labels.following[positions]
        if np.any((span.kind[positions] == INSIDE) & (since == 0)):
            raise IncompatibleError(
                f"The alignment of source {source.name!r} pairs target tokens with the inside of "
                "source tokens that do not spell those bytes: it was made for another cache or "
                "another target. Align again with `fusestore align`."
            )
        conditions = Conditions(since, following, source.spelling, source.first_tokens)
    try:
        return project_into(
            *(cached.ids, cached.logprobs, cached.tail, fusion.maps[index]),
            span.row[positions],
            places,
            *out,
            conditions,
            fusion.vocab_size,
        )
    except (IncompatibleError, NonFiniteError) as error:
        raise type(error)(f"Source {source.name!r}: {error}") from error
