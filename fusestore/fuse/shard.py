"""Fusing one stretch of target positions: from cached rows to fused rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from fusestore.cache.rows import NOT_TRAINED_ON
from fusestore.fuse.combine import drop_below, hold_labels, mix, round_entries
from fusestore.fuse.fits.blend import blend
from fusestore.fuse.fits.manifest import Fitted
from fusestore.fuse.fusion import Fusion
from fusestore.fuse.inputs import SourceSpan, load_span
from fusestore.fuse.labels import Labels, mixed_labels
from fusestore.fuse.manifest import KIND_CODES, SourceTotals
from fusestore.fuse.observation import observe
from fusestore.fuse.project import SparseRows, empty_rows, project
from fusestore.fuse.scores import document_amounts
from fusestore.fuse.source_weights import (
    Stretch,
    document_scores,
    load_spans,
    position_weights,
    project_source,
    surround,
)
from fusestore.fuse.strategies import get_strategy
from fusestore.fuse.unaligned import one_hot_rows


@dataclass(frozen=True)
class FusedRows:
    """n positions of a fused dataset.

    Attributes:
        input_ids: int32 [n] target tokens.
        next_ids: int32 [n] next tokens, −100 where a document ends, −101 where the next token is
            not trained on.
        ids: int32 [n, k′] by falling log-probability; unused entries are 0.
        logprobs: float32 [n, k′]; unused entries are −inf.
        tail: float32 [n] log of the mass outside the entries; 0 where kind is 0.
        known: float32 [n], share of the mass behind the row that the sources know: less than 1
            where a source of kind `inside` holds, outside its entries, mass that may or may not
            agree with the bytes by which it is conditioned. 0 where kind is 0.
        kind: uint8 [n] see `KIND_NAMES`.
        source: int16 [n] index of the only source; −1 for none or a mixture.
        document: int32 [n] index in the corpus.
    """

    input_ids: npt.NDArray[np.int32]
    next_ids: npt.NDArray[np.int32]
    ids: npt.NDArray[np.int32]
    logprobs: npt.NDArray[np.float32]
    tail: npt.NDArray[np.float32]
    known: npt.NDArray[np.float32]
    kind: npt.NDArray[np.uint8]
    source: npt.NDArray[np.int16]
    document: npt.NDArray[np.int32]


def fuse_rows(fusion: Fusion, start: int, stop: int) -> tuple[FusedRows, list[SourceTotals]]:
    """Fuse target positions `[start, stop)` of the split.

    Returns:
        The rows, and per source the sums for statistics. A document counts in the stretch that
        holds its first position.
    """
    stretch = surround(fusion, start, stop, whole_windows=fusion.recipe.granularity == "window")
    spans = load_spans(fusion, stretch)
    amounts = [document_amounts(span.tokens, span.rows.label_logprob) for span in spans]
    scores = document_scores(fusion, stretch, spans, amounts)
    if fusion.fitted is None:
        weights = position_weights(fusion, stretch, spans, scores)[stretch.asked]
        labels = [
            span.labels_where(_used(stretch, weights[:, index])) for index, span in enumerate(spans)
        ]
        mixed, unmapped = _mix_sources(fusion, stretch, spans, labels, weights)
        drop_below(fusion.recipe.min_probability, *mixed)
    else:
        labels = [span.labels for span in spans]
        weights, mixed, unmapped = _blend_sources(fusion, fusion.fitted, stretch, spans)
    probability, found, known = mixed_labels(labels, weights, stretch.asked)
    if fusion.recipe.keep_label and fusion.fitted is None:
        hold_labels(found, stretch.next_ids[stretch.asked], probability, *mixed)
    rows = _fused_rows(stretch, spans, weights, mixed, known)
    rows = _apply_policy(fusion, stretch, rows)
    round_entries(fusion.recipe.logprob_step, rows.ids, rows.logprobs, rows.tail)

    starts = stretch.tokens.document_offsets[:-1]
    counted = (starts >= stretch.asked.start) & (starts < stretch.asked.stop)
    counted &= np.diff(stretch.tokens.document_offsets) > 0
    winners = get_strategy("mince")(scores, np.ones(len(spans)))
    totals = []
    for index, span in enumerate(spans):
        documents = counted & span.takes_part
        scored = documents & np.isfinite(scores[:, index])
        kinds = span.kind[stretch.asked]
        used = weights[:, index] > 0
        totals.append(
            SourceTotals(
                documents=int(documents.sum()),
                documents_won=int(winners[counted, index].sum()),
                documents_scored=int(scored.sum()),
                score_sum=float(scores[scored, index].sum()),
                nats=float(amounts[index].nats[documents].sum()),
                num_bytes=int(amounts[index].num_bytes[documents].sum()),
                num_tokens=int(amounts[index].num_tokens[documents].sum()),
                positions_span=int((kinds == KIND_CODES["span"]).sum()),
                positions_inside=int((kinds == KIND_CODES["inside"]).sum()),
                positions_mined=int((kinds == KIND_CODES["mined"]).sum()),
                positions_used=int(used.sum()),
                known_share=float(labels[index].known[stretch.asked][used].sum(dtype=np.float64)),
                unmapped_mass=unmapped[index],
            )
        )
    return rows, totals


def _mix_sources(
    fusion: Fusion,
    stretch: Stretch,
    spans: Sequence[SourceSpan],
    labels: Sequence[Labels],
    weights: npt.NDArray[np.float64],
) -> tuple[SparseRows, list[float]]:
    """The mixtures of the asked positions, and each source's unmapped mass.

    `weights`: float64 [n, sources] of these positions.
    """
    used = weights > 0
    contributors = used[:, 0].astype(np.int64)
    for index in range(1, len(spans)):
        contributors += used[:, index]
    top_k = fusion.recipe.top_k
    fused = empty_rows(len(weights), top_k)
    unmapped = [0.0] * len(spans)
    for index, span in enumerate(spans):
        positions = np.flatnonzero(used[:, index] & (contributors == 1))
        unmapped[index] += project_source(
            *(fusion, index, span, labels[index]),
            *(stretch.asked.start + positions, positions, fused),
        ).sum()

    mixed = np.flatnonzero(contributors > 1)
    if len(mixed):
        # Nothing is cut before mixing: an entry outside the first k′ of each source may be among
        # the first k′ of their sum.
        width = max(span.rows.ids.shape[1] for span in spans)
        projected = empty_rows(int(contributors[mixed].sum()), width)
        chosen = np.full((len(mixed), len(spans)), -1, np.int64)
        count = 0
        for index, span in enumerate(spans):
            positions = np.flatnonzero(used[mixed, index])
            places = count + np.arange(len(positions))
            chosen[positions, index] = places
            count += len(positions)
            unmapped[index] += project_source(
                *(fusion, index, span, labels[index]),
                *(stretch.asked.start + mixed[positions], places, projected),
            ).sum()
        for whole, values in zip(
            fused, mix(chosen, weights[mixed], *projected, top_k), strict=True
        ):
            whole[mixed] = values
    return fused, unmapped


def _used(stretch: Stretch, weights: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Whether a source has weight at each position of the stretch, by those of the asked."""
    used = np.zeros(stretch.tokens.num_tokens, np.bool_)
    used[stretch.asked] = weights > 0
    return used


def _blend_sources(
    fusion: Fusion, fitted: Fitted, stretch: Stretch, spans: Sequence[SourceSpan]
) -> tuple[npt.NDArray[np.float64], SparseRows, list[float]]:
    """The weights and rows of a learned strategy, and each source's unmapped mass."""
    observed = observe(fusion, stretch, spans)
    recipe = fusion.recipe
    result = blend(
        *(fitted, observed, fusion.vocab_size, recipe.top_k),
        min_probability=recipe.min_probability,
        keep_label=bool(recipe.keep_label),
    )
    unmapped = []
    for index in range(len(spans)):
        used = observed.rows[result.weights[:, index] > 0, index]
        unmapped.append(float(observed.unmapped[used].sum()))
    return result.weights, result.rows, unmapped


def _fused_rows(
    stretch: Stretch,
    spans: Sequence[SourceSpan],
    weights: npt.NDArray[np.float64],
    mixed: SparseRows,
    known: npt.NDArray[np.float32],
) -> FusedRows:
    """The fused rows of the asked positions; `kind` is 0 where no source has weight."""
    used = weights > 0
    contributors = np.zeros(len(weights), np.int64)
    for column in used.T:
        contributors += column
    alone = np.full(len(weights), -1, np.int16)
    for index in range(len(spans)):
        alone[used[:, index] & (contributors == 1)] = index

    # A mixture has the weakest kind among its sources, which is the largest code.
    kind = np.zeros(len(weights), np.uint8)
    for index, span in enumerate(spans):
        np.maximum(kind, span.kind[stretch.asked] * used[:, index], out=kind)
    ids, logprobs, tail = mixed
    return FusedRows(
        input_ids=stretch.tokens.token_ids[stretch.asked],
        next_ids=stretch.next_ids[stretch.asked],
        ids=ids,
        logprobs=logprobs,
        tail=tail,
        known=known,
        kind=kind,
        source=alone,
        document=stretch.documents[stretch.document[stretch.asked]].astype(np.int32),
    )


def _apply_policy(fusion: Fusion, stretch: Stretch, rows: FusedRows) -> FusedRows:
    """Apply the recipe's policy for unaligned positions where `kind` is 0."""
    policy = fusion.recipe.unaligned
    empty = np.flatnonzero(rows.kind == 0)
    if policy == "skip" or not len(empty):
        return rows
    top_k = fusion.recipe.top_k
    if fusion.target_cache is not None:
        span = load_span(fusion.target_cache, stretch.documents, stretch.tokens, fusion.supervision)
        target_rows = span.row[stretch.asked][empty]
        empty, target_rows = empty[target_rows >= 0], target_rows[target_rows >= 0]
        replacements = project(
            span.rows.ids[target_rows],
            span.rows.logprobs[target_rows],
            span.rows.tail[target_rows],
            fusion.target_cache.projection_map(fusion.vocab_size),
            top_k,
        )
        drop_below(fusion.recipe.min_probability, *replacements)
        if fusion.recipe.keep_label:
            places = stretch.asked.start + empty
            probability = np.exp(span.labels.logprob[places])
            found = span.labels.found[places]
            hold_labels(found, rows.next_ids[empty], probability, *replacements)
    else:
        tokens = rows.next_ids if policy == "label" else rows.input_ids
        empty = empty[(tokens[empty] >= 0) & (rows.next_ids[empty] != NOT_TRAINED_ON)]
        replacements = one_hot_rows(tokens[empty], top_k)
    kind, known = rows.kind.copy(), rows.known.copy()
    kind[empty], known[empty] = KIND_CODES[policy], 1.0
    ids, logprobs, tail = rows.ids.copy(), rows.logprobs.copy(), rows.tail.copy()
    ids[empty], logprobs[empty], tail[empty] = replacements
    return replace(rows, ids=ids, logprobs=logprobs, tail=tail, kind=kind, known=known)
