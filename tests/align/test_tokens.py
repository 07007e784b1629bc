"""Token alignment: spans against their definition, warping against a plain dynamic programme."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusestore.align.kinds import ALIGNMENT_METHODS, INSIDE, MINED, NONE, SPAN
from fusestore.align.tokens.pairing import align_table, align_tokens
from fusestore.align.vocabulary.vocabulary_map import map_vocabulary
from fusestore.errors import IncompatibleError, InvalidInputError
from fusestore.tokenizers.token_table import TokenTable
from fusestore.tokenizers.vocabulary import Vocabulary
from tests.helpers.plain_spans import never_falls, of_kind, plain_inside, plain_span
from tests.helpers.plain_warping import plain_pairs
from tests.helpers.token_pieces import Pieces, align, two_cuts


def spans_of(source, target, bos=(False, False)):
    """The pairs of kind `span` alone."""
    return of_kind(*align(source, target, "span", bos), SPAN)


def insides_of(source, target, bos=(False, False)):
    """The rows of kind `inside` by their definition."""
    pieces = [b"", *source] if bos[0] else source
    source_ends, target_ends = (
        Pieces("").document(side, has_bos)[1]
        for side, has_bos in zip((source, target), bos, strict=True)
    )
    return plain_inside(pieces, source_ends, target_ends)


@settings(max_examples=300, deadline=None)
@given(two_cuts(), st.booleans(), st.booleans())
def test_span_is_the_definition(cuts, source_bos, target_bos):
    source, target = cuts
    position, kind = align(source, target, "span", (source_bos, target_bos))
    source_ends = Pieces("").document(source, source_bos)[1]
    target_ends = Pieces("").document(target, target_bos)[1]
    spans = plain_span(source_ends, target_ends)
    insides = insides_of(source, target, (source_bos, target_bos))
    assert of_kind(position, kind, SPAN) == spans
    assert of_kind(position, kind, INSIDE) == insides
    assert kind == [
        SPAN if span >= 0 else INSIDE if inside >= 0 else NONE
        for span, inside in zip(spans, insides, strict=True)
    ]


@settings(max_examples=300, deadline=None)
@given(two_cuts(), st.booleans())
def test_a_row_of_kind_inside_and_the_bytes_since_are_the_text(cuts, bos):
    """Row and bytes since have read what the target has read, and the source goes on from there."""
    source, target = cuts
    position, kind = align(source, target, "span", (bos, False))
    text, pieces = b"".join(source), [b"", *source] if bos else source
    for place, (row, of) in enumerate(zip(position, kind, strict=True)):
        if of == INSIDE:
            read = b"".join(target[: place + 1])
            before = b"".join(pieces[: row + 1])
            since = read[len(before) :]
            assert since
            assert before + since == read
            assert pieces[row + 1].startswith(since)
            assert pieces[row + 1] != since
            assert text.startswith(before + pieces[row + 1])


@settings(max_examples=300, deadline=None)
@given(two_cuts())
def test_exact_pairs_cover_the_same_bytes(cuts):
    source, target = cuts
    position, _ = align(source, target, "exact")
    span = spans_of(source, target)
    source_ends = Pieces("").document(source)[1]
    target_ends = Pieces("").document(target)[1]
    for j, i in enumerate(span):
        source_start = source_ends[i - 1] if i > 0 else 0
        target_start = target_ends[j - 1] if j > 0 else 0
        assert position[j] == (i if i >= 0 and source_start == target_start else -1)


@settings(max_examples=300, deadline=None)
@given(two_cuts())
def test_mined_is_the_plain_dynamic_programme(cuts):
    # Pieces without text would end at 0 in front; what ends at 0 is left to the span rule.
    source, target = ([piece for piece in side if piece] for side in cuts)
    position, kind = align(source, target, "mined")
    pairs = plain_pairs(source, target)
    assert position == [pairs.get(j, -1) for j in range(len(target))]
    span = spans_of(source, target)
    for p, s, k in zip(position, span, kind, strict=True):
        assert k == (NONE if p < 0 else SPAN if p == s else MINED)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=12),
    st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=12),
)
def test_mined_on_unrelated_tokens_with_many_ties(source, target):
    source, target = [t.encode() for t in source], [t.encode() for t in target]
    pairs = plain_pairs(source, target)
    assert align(source, target, "mined")[0] == [pairs.get(j, -1) for j in range(len(target))]


@settings(max_examples=300, deadline=None)
@given(two_cuts(), st.booleans(), st.booleans())
def test_hybrid_is_span_and_the_plain_programme_in_the_gaps(cuts, source_bos, target_bos):
    """What the warping leaves without a pair is `inside` where a row can be conditioned."""
    source, target = ([piece for piece in side if piece] for side in cuts)
    position, kind = align(source, target, "hybrid", (source_bos, target_bos))
    span = spans_of(source, target, (source_bos, target_bos))
    insides = insides_of(source, target, (source_bos, target_bos))
    expected = list(span)
    s0, t0 = int(source_bos), int(target_bos)
    closings = [(i, j) for j, i in enumerate(span) if i >= s0 and j >= t0]
    for i, j in closings:
        gap = plain_pairs(source[s0 - source_bos : i + 1 - source_bos],
                          target[t0 - target_bos : j + 1 - target_bos])  # fmt: skip
        for b, a in gap.items():
            if expected[t0 + b] < 0:
                expected[t0 + b] = s0 + a
        s0, t0 = i + 1, j + 1
    assert of_kind(position, kind, SPAN, MINED) == expected
    assert position == [p if p >= 0 else i for p, i in zip(expected, insides, strict=True)]
    assert kind == [
        SPAN if s >= 0 else MINED if p >= 0 else INSIDE if i >= 0 else NONE
        for p, s, i in zip(expected, span, insides, strict=True)
    ]


@settings(max_examples=200, deadline=None)
@given(st.lists(two_cuts(), max_size=5), st.sampled_from(ALIGNMENT_METHODS), st.booleans())
def test_documents_never_meet_and_positions_never_decrease(documents, method, bos):
    left, right = Pieces("a" * 64), Pieces("b" * 64)
    source = left.table([source for source, _ in documents], bos)
    target = right.table([target for _, target in documents])
    vocabularies = left.vocabulary, right.vocabulary
    position, kind = align_table(source, target, *vocabularies, method)
    assert position.dtype == np.int32
    assert kind.dtype == np.uint8
    alone = [
        align_tokens(*source.document(i), *target.document(i), *vocabularies, method)
        for i in range(len(documents))
    ]
    assert position.tolist() == [p for positions, _ in alone for p in positions]
    assert kind.tolist() == [k for _, kinds in alone for k in kinds]
    for i, (positions, kinds) in enumerate(alone):
        assert never_falls(of_kind(positions, kinds, SPAN, MINED))
        assert never_falls(of_kind(positions, kinds, SPAN, INSIDE))
        assert np.all(positions < len(source.document(i)[0]))
        assert np.array_equal(positions < 0, kinds == NONE)


def test_worked_example():
    source = [b"The", b" under", b"stand", b"ing", b" of", b" it"]
    target = [b"The", b" unders", b"tanding", b" of it"]
    assert align(source, target, "exact") == ([0, -1, -1, -1], [SPAN, NONE, NONE, NONE])
    assert align(source, target, "span") == ([0, 1, 3, 5], [SPAN, INSIDE, SPAN, SPAN])
    assert align(source, target, "hybrid") == ([0, 1, 3, 5], [SPAN, MINED, SPAN, SPAN])
    assert align(source, target, "mined") == ([0, 1, -1, -1], [SPAN, MINED, NONE, NONE])


def test_a_source_that_knows_the_next_token_points_at_the_next_text():
    source = [b"The", b" un", b"der", b"stand", b"ing", b" of"]
    target = [b"The", b" under", b"standing", b" of"]
    position, _ = align(source, target, "span", bos=(True, False))
    text = b"".join(source)
    source_starts = np.concatenate([[0, 0], np.cumsum([len(piece) for piece in source])])
    target_starts = np.concatenate([[0], np.cumsum([len(piece) for piece in target])])
    assert position == [1, 3, 5, 6]
    for j, i in enumerate(position[:-1]):
        assert source_starts[i + 1] == target_starts[j + 1]
        next_source, next_target = text[source_starts[i + 1] :], text[target_starts[j + 1] :]
        assert next_source == next_target
        assert next_target.startswith(target[j + 1])


@pytest.mark.parametrize("method", ALIGNMENT_METHODS)
def test_bos_pairs_with_bos_and_spoils_nothing_when_only_one_side_has_it(method):
    pieces = [b"Hi", b" there"]
    assert align(pieces, pieces, method, (True, True)) == ([0, 1, 2], [SPAN] * 3)
    assert align(pieces, pieces, method, (True, False)) == ([1, 2], [SPAN] * 2)
    assert align(pieces, pieces, method, (False, True)) == ([-1, 0, 1], [NONE, SPAN, SPAN])


def test_a_map_keeps_only_the_pairs_it_sends_to_each_other():
    source, target = [b"xyz", b"gets", b"q"], [b"xyz", b"get", b"sq"]
    assert align(source, target, "mined")[0] == [0, 1, 2]
    assert align(source, target, "mined", vocabulary_map="mined")[0] == [0, 1, 2]
    assert align(source, target, "mined", vocabulary_map="exact")[0] == [0, -1, -1]


def test_bad_input_is_refused():
    left = Pieces("a" * 64)
    one, two = left.table([[b"a"]]), left.table([[b"a"], [b"b"]])
    vocabulary = left.vocabulary
    with pytest.raises(IncompatibleError, match="1 documents and the target 2"):
        align_table(one, two, vocabulary, vocabulary)
    with pytest.raises(InvalidInputError, match=r"fuzzy.*hybrid"):
        align_table(one, one, vocabulary, vocabulary, "fuzzy")  # type: ignore[arg-type]
    with pytest.raises(IncompatibleError, match="ids from 1 to 1"):
        align_table(one, one, Vocabulary("c" * 64, (b"",), ("text",), ()), vocabulary)
    falling = TokenTable(np.array([1, 1], np.int32), np.array([2, 1], np.int32), np.array([0, 2]))
    with pytest.raises(InvalidInputError, match="decrease within a document"):
        align_table(falling, falling, vocabulary, vocabulary)
    other = map_vocabulary(Vocabulary("c" * 64, (b"a",), ("text",), ()), vocabulary)
    with pytest.raises(IncompatibleError, match="map these two instead"):
        align_table(one, one, vocabulary, vocabulary, "mined", other)
