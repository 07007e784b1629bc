"""Token alignment: for each target position, the source position of the row that may supervise it.

Pure functions of token ids and end offsets; pairs never cross documents. Methods:

    span    equal end offsets (`spans.py`)
    exact   equal start and end offsets: both tokens cover the same bytes ("EM" in the paper)
    mined   FuseLLM's dynamic time warping over the whole document (`dtw.py`)
    anchored  mined, through every pair of tokens that cover the same bytes
    hybrid  span where end offsets are equal; in the gaps between, the warping of the gap

`span` and `hybrid` also list `inside` where they find no other pair: the target token ends inside
a source token, and the row before that token, conditioned on the bytes since, has read the same.

A warped pair is kept when it is one-to-one on both sides. With a vocabulary map it is kept by the
public code's rule instead: the target token is joined to one source token, and the map sends that
source token to it. The `mined` map makes this the code's "soft" rule and the `exact` map its "hard"
rule. A warped pair with equal end offsets gets the kind `span`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fusestore.align.edit_distance import text_of
from fusestore.align.kinds import (
    ALIGNMENT_METHODS,
    INSIDE,
    INSIDE_METHODS,
    MINED,
    NONE,
    SPAN,
    AlignmentMethod,
)
from fusestore.align.tokens.dtw import ANCHORED, FULL, GAPS, Tokens, warp_documents
from fusestore.align.tokens.spans import inside_rows, span_pairs
from fusestore.align.tokens.token_distance import code_texts
from fusestore.align.vocabulary.vocabulary_map import VocabularyMap
from fusestore.errors import IncompatibleError, InvalidInputError
from fusestore.tokenizers.token_table import TokenReader, TokenTable
from fusestore.tokenizers.vocabulary import Vocabulary

_PATHS = {"hybrid": GAPS, "anchored": ANCHORED, "mined": FULL}


def align_tokens(
    source_ids: npt.NDArray[np.int32],
    source_ends: npt.NDArray[np.int32],
    target_ids: npt.NDArray[np.int32],
    target_ends: npt.NDArray[np.int32],
    source_vocab: Vocabulary,
    target_vocab: Vocabulary,
    method: AlignmentMethod = "span",
    vocabulary_map: VocabularyMap | None = None,
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8]]:
    """Align one document; see `align_table`.

    Args:
        source_ids: int32 [n], and `source_ends` int32 [n]: its source tokens.
        source_ends: see above.
        target_ids: int32 [m], and `target_ends` int32 [m]: its target tokens.
        target_ends: see above.
        source_vocab: vocabulary of the source ids.
        target_vocab: vocabulary of the target ids.
        method: see the module's docstring.
        vocabulary_map: see the module's docstring.

    Returns:
        source position int32 [m], −1 for none, and kind uint8 [m] (`kinds.py`).
    """
    return align_table(
        _document(source_ids, source_ends),
        _document(target_ids, target_ends),
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
    method: AlignmentMethod = "span",
    vocabulary_map: VocabularyMap | None = None,
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8]]:
    """Align every document of two tokenizations of one corpus.

    Args:
        source: D documents.
        target: the same D documents.
        source_vocab: vocabulary of the source ids.
        target_vocab: vocabulary of the target ids.
        method: see the module's docstring.
        vocabulary_map: see the module's docstring; no effect for `span` and `exact`.

    Returns:
        source position within the document int32 [T_target], −1 for none, and kind uint8
        [T_target]. Within a document the positions of `span` and `mined` never decrease, nor do
        those of `span` and `inside`.

    Raises:
        IncompatibleError: different numbers of documents, or ids outside a vocabulary, or a map of
            another pair of tokenizers.
        InvalidInputError: an unknown method, or end offsets that decrease or are negative.
    """
    check_method(source, target, source_vocab, target_vocab, method, vocabulary_map)
    check_tokens(source, source_vocab, "source")
    check_tokens(target, target_vocab, "target")
    span = _span_pairs(source, target, exact=False)
    if method == "span":
        return _with_inside(source, target, source_vocab, span, _kinds(span, span))
    exact = _span_pairs(source, target, exact=True)
    if method == "exact":
        return exact, _kinds(exact, exact)
    source_texts, source_tokens = _by_texts(source, source_vocab)
    target_texts, target_tokens = _by_texts(target, target_vocab)
    partner, mutual = warp_documents(
        source_tokens,
        target_tokens,
        *code_texts(source_texts, target_texts),
        span if method == "hybrid" else exact,
        _PATHS[method],
    )
    keep = mutual if vocabulary_map is None else _mapped(source, target, partner, vocabulary_map)
    # Tokens that end at 0 are not warped.
    by_span = span >= 0 if method == "hybrid" else target.end_offsets == 0
    position = np.where(by_span, span, np.where(keep, partner, -1)).astype(np.int32)
    kinds = _kinds(position, span)
    if method in INSIDE_METHODS:
        return _with_inside(source, target, source_vocab, position, kinds)
    return position, kinds


def _with_inside(
    source: TokenTable,
    target: TokenTable,
    source_vocab: Vocabulary,
    position: npt.NDArray[np.int32],
    kinds: npt.NDArray[np.uint8],
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8]]:
    """An alignment with the rows of kind `inside` where it has none."""
    inside = inside_rows(
        source.end_offsets,
        source_vocab.spelling.lengths[source.token_ids],
        source_vocab.spelling.spaced[source.token_ids],
        source.document_offsets,
        target.end_offsets,
        target.document_offsets,
    )
    chosen = (kinds == NONE) & (inside >= 0)
    return np.where(chosen, inside, position), np.where(chosen, INSIDE, kinds).astype(np.uint8)


def _kinds(position: npt.NDArray[np.int32], span: npt.NDArray[np.int32]) -> npt.NDArray[np.uint8]:
    kinds: npt.NDArray[np.uint8] = np.where(
        position < 0, NONE, np.where(position == span, SPAN, MINED)
    ).astype(np.uint8)
    return kinds


def _span_pairs(source: TokenTable, target: TokenTable, *, exact: bool) -> npt.NDArray[np.int32]:
    pairs: npt.NDArray[np.int32] = span_pairs(
        source.end_offsets,
        source.document_offsets,
        target.end_offsets,
        target.document_offsets,
        exact,
    )
    return pairs


def check_method(
    source: TokenReader,
    target: TokenReader,
    source_vocab: Vocabulary,
    target_vocab: Vocabulary,
    method: AlignmentMethod,
    vocabulary_map: VocabularyMap | None,
) -> None:
    """Make the checks of `align_table` that read no token."""
    if method not in ALIGNMENT_METHODS:
        raise InvalidInputError(
            f"Alignment method {method!r} is unknown; use one of {', '.join(ALIGNMENT_METHODS)}."
        )
    source_size, target_size = (len(side.document_offsets) - 1 for side in (source, target))
    if source_size != target_size:
        raise IncompatibleError(
            f"The source has {source_size:,} documents and the target {target_size:,}; an "
            "alignment needs two tokenizations of one corpus."
        )
    if vocabulary_map is None:
        return
    mapped = (vocabulary_map.source_digest, vocabulary_map.target_digest)
    expected = (source_vocab.tokenizer_digest, target_vocab.tokenizer_digest)
    if mapped != expected:
        raise IncompatibleError(
            f"The vocabulary map is from tokenizer {mapped[0][:16]} to {mapped[1][:16]}, but the "
            f"tokens are of {expected[0][:16]} and {expected[1][:16]}; map these two instead."
        )


def _document(ids: npt.NDArray[np.int32], ends: npt.NDArray[np.int32]) -> TokenTable:
    return TokenTable(
        np.asarray(ids, np.int32), np.asarray(ends, np.int32), np.array([0, len(ids)], np.int64)
    )


def check_tokens(table: TokenTable, vocabulary: Vocabulary, side: str) -> None:
    """Make the checks of `align_table` on the tokens of a side, which messages call `side`."""
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


def _by_texts(table: TokenTable, vocabulary: Vocabulary) -> tuple[list[str], Tokens]:
    """Distinct texts of the tokens, and the tokens as indices of their texts.

    Spaces are left out: tokenizers put them into different tokens, and the public code drops each
    tokenizer's mark for a space too.
    """
    distinct, index = np.unique(table.token_ids, return_inverse=True)
    texts = [text_of(vocabulary.token_bytes[i].replace(b" ", b"")) for i in distinct]
    return texts, Tokens(index.astype(np.int64), table.end_offsets, table.document_offsets)


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
