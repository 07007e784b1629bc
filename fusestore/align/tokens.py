"""Token alignment: for each target position the source position whose row may supervise it.

Pure functions of token ids and end offsets; documents never meet. Four methods:

    span    equal end offsets (`spans.py`)
    exact   equal start and end offsets: both tokens cover the same bytes ("EM" in the paper)
    mined   FuseLLM's dynamic time warping over the whole document (`dtw.py`)
    hybrid  span where offsets meet; in the gaps between shared offsets, the warping of the gap

A pair of `mined` or of a gap is kept when it is one-to-one on both sides. With a vocabulary map it
is kept by the public code's rule instead: the target token is joined to one source token, and the
map sends that source token to it. The `mined` map makes this the code's "soft" rule and the `exact`
map its "hard" rule. A warped pair whose end offsets meet is marked as a span.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fusestore.align.dtw import text_costs, warp, warp_gaps
from fusestore.align.edit_distance import Texts, text_of
from fusestore.align.kinds import ALIGNMENT_METHODS, MINED, NONE, SPAN, AlignmentMethod
from fusestore.align.spans import span_pairs
from fusestore.align.vocabulary import VocabularyMap
from fusestore.corpus.tokens import TokenTable
from fusestore.corpus.vocabulary import Vocabulary
from fusestore.errors import IncompatibleError, InvalidInputError


def align_tokens(
    source_ids: npt.NDArray[np.int32],
    source_ends: npt.NDArray[np.int32],
    target_ids: npt.NDArray[np.int32],
    target_ends: npt.NDArray[np.int32],
    source_vocab: Vocabulary,
    target_vocab: Vocabulary,
    method: AlignmentMethod = "hybrid",
    vocabulary_map: VocabularyMap | None = None,
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8]]:
    """Align one document; see `align_table`.

    Args:
        source_ids: int32 [n], and `source_ends` int32 [n]: its source tokens.
        source_ends: see above.
        target_ids: int32 [m], and `target_ends` int32 [m]: its target tokens.
        target_ends: see above.
        source_vocab: what the source ids stand for.
        target_vocab: what the target ids stand for.
        method: see the module.
        vocabulary_map: see the module.

    Returns:
        source position int32 [m], −1 for none, and kind uint8 [m] (`kinds.py`).
    """
    return align_table(
        _one_document(source_ids, source_ends),
        _one_document(target_ids, target_ends),
        source_vocab,
        target_vocab,
        method,
        vocabulary_map,
    )


def align_table(
    source: TokenTable,
    target: TokenTable,
    source_vocab: Vocabulary,
    target_vocab: Vocabulary,
    method: AlignmentMethod = "hybrid",
    vocabulary_map: VocabularyMap | None = None,
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8]]:
    """Align every document of two tokenizations of one corpus.

    Args:
        source: D documents.
        target: the same D documents.
        source_vocab: what the source ids stand for.
        target_vocab: what the target ids stand for.
        method: see the module.
        vocabulary_map: see the module; of no effect for `span` and `exact`.

    Returns:
        source position within the document int32 [T_target], −1 for none, and kind uint8
        [T_target]. Within a document the positions never decrease.

    Raises:
        IncompatibleError: different numbers of documents, or ids outside a vocabulary, or a map of
            another pair of tokenizers.
        InvalidInputError: unknown method, or end offsets that decrease or are negative.
    """
    check_tables(source, target, source_vocab, target_vocab, method, vocabulary_map)
    span = span_pairs(
        source.end_offsets,
        source.document_offsets,
        target.end_offsets,
        target.document_offsets,
        method == "exact",
    )
    if method in ("span", "exact"):
        return span, np.where(span >= 0, SPAN, NONE).astype(np.uint8)
    partner, mutual = _warped(source, target, source_vocab, target_vocab, span, method)
    keep = mutual if vocabulary_map is None else _mapped(source, target, partner, vocabulary_map)
    if method == "hybrid":
        position = np.where(span >= 0, span, np.where(keep, partner, -1))
    else:
        # What ends at 0 takes no part in the warping.
        position = np.where(target.end_offsets == 0, span, np.where(keep, partner, -1))
    kind = np.where(position < 0, NONE, np.where(position == span, SPAN, MINED))
    return position.astype(np.int32), kind.astype(np.uint8)


def check_tables(
    source: TokenTable,
    target: TokenTable,
    source_vocab: Vocabulary,
    target_vocab: Vocabulary,
    method: AlignmentMethod,
    vocabulary_map: VocabularyMap | None,
) -> None:
    """Raise what `align_table` raises, without aligning anything."""
    if method not in ALIGNMENT_METHODS:
        raise InvalidInputError(
            f"Alignment method {method!r} is unknown; use one of {', '.join(ALIGNMENT_METHODS)}."
        )
    if source.num_documents != target.num_documents:
        raise IncompatibleError(
            f"The source has {source.num_documents:,} documents and the target "
            f"{target.num_documents:,}; an alignment needs two tokenizations of one corpus."
        )
    _check(source, source_vocab, "source")
    _check(target, target_vocab, "target")
    if vocabulary_map is None:
        return
    found = (vocabulary_map.source_digest, vocabulary_map.target_digest)
    expected = (source_vocab.tokenizer_digest, target_vocab.tokenizer_digest)
    if found != expected:
        raise IncompatibleError(
            f"The vocabulary map is from tokenizer {found[0][:16]} to {found[1][:16]}, but the "
            f"tokens are of {expected[0][:16]} and {expected[1][:16]}; map these two instead."
        )


def _one_document(ids: npt.NDArray[np.int32], ends: npt.NDArray[np.int32]) -> TokenTable:
    return TokenTable(
        np.asarray(ids, np.int32), np.asarray(ends, np.int32), np.array([0, len(ids)], np.int64)
    )


def _check(table: TokenTable, vocabulary: Vocabulary, side: str) -> None:
    ids, ends, offsets = table.token_ids, table.end_offsets, table.document_offsets
    if len(ids) == 0:
        return
    if ids.min() < 0 or ids.max() >= len(vocabulary):
        raise IncompatibleError(
            f"The {side} tokens have ids from {ids.min()} to {ids.max()}, but the {side} "
            f"vocabulary has {len(vocabulary):,} ids: tokens and tokenizer do not belong together."
        )
    falls = np.diff(ends) < 0
    starts = offsets[1:-1]
    falls[starts[(starts > 0) & (starts < len(ends))] - 1] = False
    if ends.min() < 0 or falls.any():
        raise InvalidInputError(
            f"End offsets of the {side} tokens are negative or decrease within a document."
        )


def _warped(
    source: TokenTable,
    target: TokenTable,
    source_vocab: Vocabulary,
    target_vocab: Vocabulary,
    span: npt.NDArray[np.int32],
    method: AlignmentMethod,
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
    """Partner int32 [T_target] and mutual bool [T_target] of the warping (`dtw.py`)."""
    source_texts, source_index = _distinct_texts(source.token_ids, source_vocab)
    target_texts, target_index = _distinct_texts(target.token_ids, target_vocab)
    partner = np.full(target.num_tokens, -1, np.int32)
    mutual = np.zeros(target.num_tokens, np.bool_)
    for document in range(target.num_documents):
        source_slice, target_slice = _body(source, document), _body(target, document)
        sources, targets = source_index[source_slice], target_index[target_slice]
        if len(sources) == 0 or len(targets) == 0:
            continue
        skipped = source_slice.start - int(source.document_offsets[document])
        found, is_mutual = partner[target_slice], mutual[target_slice]
        if method == "hybrid":
            warp_gaps(
                span[target_slice] - skipped,
                sources,
                targets,
                source_texts.characters,
                source_texts.offsets,
                target_texts.characters,
                target_texts.offsets,
                found,
                is_mutual,
            )
        else:
            rows, source_row = np.unique(sources, return_inverse=True)
            columns, target_column = np.unique(targets, return_inverse=True)
            costs = text_costs(
                source_texts.characters,
                source_texts.offsets,
                rows,
                target_texts.characters,
                target_texts.offsets,
                columns,
            )
            warp(costs, source_row, target_column, found, is_mutual)
        found[found >= 0] += skipped
    return partner, mutual


def _body(table: TokenTable, document: int) -> slice:
    """The document's tokens without those that end at 0 (BOS, an added space).

    They stand for nothing in the text, and as text would spoil the pairing of its first tokens.
    """
    start, stop = (int(offset) for offset in table.document_offsets[document : document + 2])
    start += int(np.searchsorted(table.end_offsets[start:stop], 0, side="right"))
    return slice(start, stop)


def _distinct_texts(
    ids: npt.NDArray[np.int32], vocabulary: Vocabulary
) -> tuple[Texts, npt.NDArray[np.int64]]:
    """Texts of the ids that occur, and the index of each token's text, int64 [T].

    Spaces are left out: where a tokenizer puts the space says nothing about which tokens belong
    together, and the public code drops each tokenizer's mark for it too.
    """
    distinct, index = np.unique(ids, return_inverse=True)
    texts = [text_of(vocabulary.token_bytes[i].replace(b" ", b"")) for i in distinct]
    return Texts.of(texts), index.astype(np.int64)


def _mapped(
    source: TokenTable,
    target: TokenTable,
    partner: npt.NDArray[np.int32],
    vocabulary_map: VocabularyMap,
) -> npt.NDArray[np.bool_]:
    """Whether the map sends each target token's partner to it."""
    lengths = np.diff(target.document_offsets)
    starts = np.repeat(source.document_offsets[:-1], lengths)
    keep = partner >= 0
    partner_ids = source.token_ids[starts[keep] + partner[keep]]
    keep[keep] = vocabulary_map.target_id[partner_ids] == target.token_ids[keep]
    return keep
