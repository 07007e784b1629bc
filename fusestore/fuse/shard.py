"""Fusing one stretch of target positions: everything between cached rows and fused rows.

A stretch may begin and end inside documents and windows. Scores belong to whole documents or
windows, so all documents that these touch are read, and the outcome does not depend on how
positions are divided into shards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from fusestore.cache.rows import NO_LABEL
from fusestore.errors import IncompatibleError, NonFiniteError
from fusestore.fuse.choices import Granularity
from fusestore.fuse.combine import mix
from fusestore.fuse.fusion import Fusion
from fusestore.fuse.inputs import SourceSpan, load_span
from fusestore.fuse.manifest import KIND_NAMES, SourceTotals
from fusestore.fuse.project import empty_rows, project, project_into
from fusestore.fuse.recipe import Recipe
from fusestore.fuse.scores import (
    Amounts,
    document_amounts,
    label_nats,
    range_amounts,
    ratio,
    unit_sums,
)
from fusestore.fuse.strategies import get_strategy, normalize_rows
from fusestore.fuse.unaligned import one_hot_rows
from fusestore.tokenizers.token_table import TokenTable

_Sparse = tuple[npt.NDArray[np.int32], npt.NDArray[np.float32], npt.NDArray[np.float32]]

KIND = {name: code for code, name in enumerate(KIND_NAMES)}


@dataclass(frozen=True)
class FusedRows:
    """n positions of a fused dataset.

    Attributes:
        input_ids: int32 [n] target tokens.
        next_ids: int32 [n] the token after each, −100 where a document ends.
        ids: int32 [n, k′] by falling log-probability; unused entries are 0.
        logprobs: float32 [n, k′]; unused entries are −inf.
        tail: float32 [n] log of the mass outside the entries; 0 where kind is 0.
        kind: uint8 [n] see `KIND_NAMES`.
        source: int16 [n] the one source of the distribution; −1 for none or a mixture.
        document: int32 [n] index in the corpus.
    """

    input_ids: npt.NDArray[np.int32]
    next_ids: npt.NDArray[np.int32]
    ids: npt.NDArray[np.int32]
    logprobs: npt.NDArray[np.float32]
    tail: npt.NDArray[np.float32]
    kind: npt.NDArray[np.uint8]
    source: npt.NDArray[np.int16]
    document: npt.NDArray[np.int32]


@dataclass(frozen=True)
class _Stretch:
    """The documents around positions `[start, stop)` of the split, n positions in all.

    Attributes:
        tokens: the target's tokens of these D documents.
        documents: int64 [D] their indices in the corpus.
        first_position: of the split, the first of the n.
        document: int64 [n] which of the D documents a position is in.
        next_ids: int32 [n] the token after each, −100 where a document ends.
        next_ends: int32 [n] the byte at which that token ends; its own end for a document's last.
        asked: the asked positions among the n.
    """

    tokens: TokenTable
    documents: npt.NDArray[np.int64]
    first_position: int
    document: npt.NDArray[np.int64]
    next_ids: npt.NDArray[np.int32]
    next_ends: npt.NDArray[np.int32]
    asked: slice


def fuse_rows(fusion: Fusion, start: int, stop: int) -> tuple[FusedRows, list[SourceTotals]]:
    """Fuse target positions `[start, stop)` of the split.

    Returns:
        The rows, and per source the sums for statistics. A document counts where its first
        position lies.
    """
    stretch = surround(fusion, start, stop, whole_windows=fusion.recipe.granularity == "window")
    spans = [load_span(source, stretch.documents, stretch.tokens) for source in fusion.sources]
    amounts = [document_amounts(span.tokens, span.rows.label_logprob) for span in spans]
    scores = document_scores(fusion, stretch, spans, amounts)
    weights = _position_weights(fusion, stretch, spans, scores)[stretch.asked]

    rows, unmapped = _mix_sources(fusion, stretch, spans, weights)
    rows = _fill_unaligned(fusion, stretch, rows)

    starts = stretch.tokens.document_offsets[:-1]
    counted = (starts >= stretch.asked.start) & (starts < stretch.asked.stop)
    counted &= np.diff(stretch.tokens.document_offsets) > 0
    winners = get_strategy("mince")(scores, np.ones(len(spans)))
    totals = []
    for index, span in enumerate(spans):
        part = counted & span.takes_part
        scored = part & np.isfinite(scores[:, index])
        kinds = span.kind[stretch.asked]
        totals.append(
            SourceTotals(
                documents=int(part.sum()),
                documents_won=int(winners[counted, index].sum()),
                documents_scored=int(scored.sum()),
                score_sum=float(scores[scored, index].sum()),
                nats=float(amounts[index].nats[part].sum()),
                num_bytes=int(amounts[index].num_bytes[part].sum()),
                num_tokens=int(amounts[index].num_tokens[part].sum()),
                positions_span=int((kinds == KIND["span"]).sum()),
                positions_mined=int((kinds == KIND["mined"]).sum()),
                positions_used=int((weights[:, index] > 0).sum()),
                unmapped_mass=unmapped[index],
            )
        )
    return rows, totals


def surround(fusion: Fusion, start: int, stop: int, *, whole_windows: bool) -> _Stretch:
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
    return _Stretch(
        around,
        fusion.documents[first:last],
        base,
        np.repeat(np.arange(len(lengths)), lengths),
        np.where(is_last, NO_LABEL, around.token_ids[following]).astype(np.int32),
        np.where(is_last, around.end_offsets, around.end_offsets[following]).astype(np.int32),
        slice(start - base, stop - base),
    )


def accepted(recipe: Recipe, span: SourceSpan) -> npt.NDArray[np.bool_]:
    """Positions where the source may supervise, bool [n]."""
    return np.isin(span.kind, [KIND[kind] for kind in recipe.kinds]) & (span.row >= 0)


def document_scores(
    fusion: Fusion, stretch: _Stretch, spans: Sequence[SourceSpan], amounts: Sequence[Amounts]
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


def _position_weights(
    fusion: Fusion,
    stretch: _Stretch,
    spans: Sequence[SourceSpan],
    document_scores: npt.NDArray[np.float64],
) -> npt.NDArray[np.float64]:
    """float64 [n, sources]: the strategy's weights, over the sources aligned at each position."""
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
        unit: int64 [n] the unit of each position.
        allowed: bool [n, sources] where each source may supervise.

    Returns:
        float64 [n, sources], each row summing to 1, or to 0 where nobody may supervise.
    """
    weights = get_strategy(strategy)(scores, fixed_weights)[unit]
    return normalize_rows(np.where(allowed, weights, 0.0))


def score_units(
    fusion: Fusion,
    stretch: _Stretch,
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
    stretch: _Stretch,
    spans: Sequence[SourceSpan],
    document_scores: npt.NDArray[np.float64],
    unit: npt.NDArray[np.int64],
) -> npt.NDArray[np.float64]:
    """float64 [units, sources]; a unit where nothing was predicted has its documents' score."""
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
            per_byte = fusion.recipe.score == "bits_per_byte"
            nats, count = spent.nats, spent.num_bytes if per_byte else spent.num_tokens
            scale = np.log(2.0) if per_byte else 1.0
        score = _unit_ratio(nats / scale, count, unit, num_units)
        part = span.takes_part[stretch.document]
        whole = np.where(part, document_scores[stretch.document, index], 0.0)
        fallback = _unit_ratio(whole, part.astype(np.float64), unit, num_units)
        measured = unit_sums(count, unit, num_units) > 0
        present = unit_sums(part.astype(np.float64), unit, num_units) > 0
        columns.append(np.where(present, np.where(measured, score, fallback), np.nan))
    return np.stack(columns, axis=1)


def _unit_ratio(
    amount: npt.NDArray[np.float64],
    count: npt.NDArray[np.float64],
    unit: npt.NDArray[np.int64],
    num_units: int,
) -> npt.NDArray[np.float64]:
    return ratio(
        unit_sums(amount, unit, num_units),
        unit_sums(count, unit, num_units),
    )


def _label_terms(
    fusion: Fusion, index: int, stretch: _Stretch, span: SourceSpan
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Per position `(−log p(next token), 1)` where the source may supervise it, else `(0, 0)`."""
    scored = accepted(fusion.recipe, span) & (stretch.next_ids != NO_LABEL)
    rows = span.row[scored]
    projected = empty_rows(len(rows), span.rows.ids.shape[1])
    _project(fusion, index, span, rows, np.arange(len(rows)), projected)
    nats = np.zeros(len(scored))
    nats[scored] = label_nats(*projected, stretch.next_ids[scored], fusion.vocab_size)
    return nats, scored.astype(np.float64)


def _project(
    fusion: Fusion,
    index: int,
    span: SourceSpan,
    rows: npt.NDArray[np.int64],
    places: npt.NDArray[np.int64],
    out: _Sparse,
) -> float:
    """`project_into` of these rows of a source; its errors name the source.

    Returns:
        The mass that landed on no target token.
    """
    cached = span.rows
    try:
        lost = project_into(
            cached.ids, cached.logprobs, cached.tail, fusion.maps[index], rows, places, *out
        )
    except (IncompatibleError, NonFiniteError) as error:
        raise type(error)(f"Source {fusion.sources[index].name!r}: {error}") from error
    return float(lost.sum())


def _mix_sources(
    fusion: Fusion,
    stretch: _Stretch,
    spans: Sequence[SourceSpan],
    weights: npt.NDArray[np.float64],
) -> tuple[FusedRows, list[float]]:
    """The asked positions fused, `kind` 0 where no source has weight; unmapped mass per source.

    `weights`: float64 [n, sources] of the asked positions.
    """
    used = weights > 0
    contributors = used[:, 0].astype(np.int64)
    for index in range(1, len(spans)):
        contributors += used[:, index]
    top_k = fusion.recipe.top_k
    fused = empty_rows(len(weights), top_k)
    unmapped = [0.0] * len(spans)
    alone = np.full(len(weights), -1, np.int16)
    for index, span in enumerate(spans):
        positions = np.flatnonzero(used[:, index] & (contributors == 1))
        alone[positions] = index
        unmapped[index] += _project(
            fusion, index, span, span.row[stretch.asked][positions], positions, fused
        )

    mixed = np.flatnonzero(contributors > 1)
    if len(mixed):
        # Nothing is cut before mixing: an entry below the first k′ of each source may be above it
        # in their sum.
        width = max(span.rows.ids.shape[1] for span in spans)
        projected = empty_rows(int(contributors[mixed].sum()), width)
        chosen = np.full((len(mixed), len(spans)), -1, np.int64)
        count = 0
        for index, span in enumerate(spans):
            part = np.flatnonzero(used[mixed, index])
            places = count + np.arange(len(part))
            chosen[part, index] = places
            count += len(part)
            own = span.row[stretch.asked][mixed[part]]
            unmapped[index] += _project(fusion, index, span, own, places, projected)
        for whole, values in zip(
            fused, mix(chosen, weights[mixed], *projected, top_k), strict=True
        ):
            whole[mixed] = values
    ids, logprobs, tail = fused

    # A mixture is as good as its worst part, and MINED is the larger code.
    kind = np.zeros(len(weights), np.uint8)
    for index, span in enumerate(spans):
        np.maximum(kind, span.kind[stretch.asked] * used[:, index], out=kind)
    rows = FusedRows(
        input_ids=stretch.tokens.token_ids[stretch.asked],
        next_ids=stretch.next_ids[stretch.asked],
        ids=ids,
        logprobs=logprobs,
        tail=tail,
        kind=kind,
        source=alone,
        document=stretch.documents[stretch.document[stretch.asked]].astype(np.int32),
    )
    return rows, unmapped


def _fill_unaligned(fusion: Fusion, stretch: _Stretch, rows: FusedRows) -> FusedRows:
    """Apply the recipe's policy where `kind` is 0."""
    policy = fusion.recipe.unaligned
    empty = np.flatnonzero(rows.kind == 0)
    if policy == "skip" or not len(empty):
        return rows
    top_k = fusion.recipe.top_k
    if fusion.target_cache is not None:
        span = load_span(fusion.target_cache, stretch.documents, stretch.tokens)
        own = span.row[stretch.asked][empty]
        empty, own = empty[own >= 0], own[own >= 0]
        filled = project(
            span.rows.ids[own],
            span.rows.logprobs[own],
            span.rows.tail[own],
            fusion.target_cache.projection_map(fusion.vocab_size),
            top_k,
        )
    else:
        tokens = rows.next_ids if policy == "label" else rows.input_ids
        empty = empty[tokens[empty] >= 0]
        filled = one_hot_rows(tokens[empty], top_k)
    kind = rows.kind.copy()
    kind[empty] = KIND[policy]
    ids, logprobs, tail = rows.ids.copy(), rows.logprobs.copy(), rows.tail.copy()
    ids[empty], logprobs[empty], tail[empty] = filled
    return replace(rows, ids=ids, logprobs=logprobs, tail=tail, kind=kind)
