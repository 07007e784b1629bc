"""Where tokens end in texts that tokenizers change, and which rows a span may join."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from fusestore.align.kinds import SPAN
from fusestore.align.tokens.pairing import align_table
from fusestore.tokenizers.end_offsets import character_end_offsets
from tests.helpers.difficult_texts import PIECES, difficult_texts
from tests.helpers.real_tokenizers import FAMILIES, LARGE, gemma_is_slow
from tests.helpers.what_was_read import check_ends, read_by_tokens, read_of_text

TEXT = st.lists(
    st.one_of(
        st.sampled_from(PIECES),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=6),
        st.text("e\u0301\u0323\u1161\u11ab\u1112 ½ﬁ▁\x00\x04👩\u200d🏽", max_size=6),
    ),
    max_size=4,
).map("".join)


def tokens_of(tokenizer, text):
    """The bytes of each token and where it ends."""
    ids, ends = tokenizer.encode([text], False).document(0)
    return [(tokenizer.vocabulary.token_bytes[i], int(e)) for i, e in zip(ids, ends, strict=True)]


def span_pairs(source, target, text):
    """Target and source position of every span pair."""
    sides = source.encode([text], False), target.encode([text], False)
    position, kind = align_table(*sides, source.vocabulary, target.vocabulary, "hybrid")
    return [(int(i), int(position[i])) for i in np.flatnonzero(kind == SPAN)]


def pairs_of(source, target, text):
    """The same as the bytes of the tokens."""
    own, other = tokens_of(target, text), tokens_of(source, text)
    return [(own[i][0], other[j][0]) for i, j in span_pairs(source, target, text)]


def test_a_composed_letter_ends_behind_its_accent(family):
    text = "cafe\u0301 x"
    qwen, smollm2 = family("qwen"), family("smollm2")
    assert [end for token, end in tokens_of(qwen, text) if token.endswith("é".encode())] == [6]
    assert tokens_of(smollm2, text)[-2][1] == 6
    pairs = pairs_of(qwen, smollm2, text)
    assert [target for target, source in pairs if source.endswith("é".encode())] == [
        tokens_of(smollm2, text)[-2][0]
    ]
    assert not any(target.endswith(b"e") for target, _ in pairs)


def test_a_syllable_of_three_jamo_ends_behind_the_third(family):
    assert {end for _, end in tokens_of(family("qwen"), "\u1112\u1161\u11ab")} == {9}


def test_no_part_of_an_expanded_character_ends_before_it(family):
    nfkc, smollm2 = family("nfkc"), family("smollm2")
    text = "a ½ cup"
    tokens = tokens_of(nfkc, text)
    sizes = list(itertools.accumulate(len(token) for token, _ in tokens))
    assert sizes[-1] == len("a 1⁄2 cup".encode())
    parts = [i for i, size in enumerate(sizes) if len("a ") < size < len("a 1⁄2".encode())]
    assert parts
    assert {tokens[i][1] for i in parts} == {4}
    assert not {target for target, _ in span_pairs(smollm2, nfkc, text)} & set(parts)
    assert not {source for _, source in span_pairs(nfkc, smollm2, text)} & set(parts)
    assert (4, True) in {(tokens[i][1], i not in parts) for i, _ in span_pairs(smollm2, nfkc, text)}


def test_bytes_that_a_vocabulary_lacks_are_named_and_passed_over(family):
    smollm2 = family("smollm2")
    assert smollm2.unspelled_bytes.hex(" ") == "04 06 13 14 16 1d f1 f2"
    text = "a\x04b\x13\x14 \U00040000 c"
    assert smollm2.unspelled(text).hex(" ") == "04 13 14 f1"
    assert smollm2.unspelled("plain") == b""
    ends = dict(tokens_of(smollm2, text))
    assert ends[b"a"] == 2
    assert ends[b"b"] == 5
    assert ends[b" c"] == len(text.encode())
    assert family("deepseek").unspelled_bytes == b""


@pytest.mark.parametrize("name", gemma_is_slow(FAMILIES))
def test_every_exact_end_is_where_just_that_was_read(name, family):
    tokenizer = family(name)
    assert sum(check_ends(tokenizer, text) for text in difficult_texts()) > 300


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_exact_ends_of_whole_vocabularies(name, family):
    tokenizer = family(name)
    assert sum(check_ends(tokenizer, text) for text in difficult_texts(3_000)) > 10_000


@pytest.mark.parametrize("name", gemma_is_slow(FAMILIES))
@given(text=TEXT)
@hypothesis_settings(deadline=None, max_examples=30)
def test_exact_ends_of_drawn_texts(name, family, text):
    check_ends(family(name), text)


def check_spans(source, target, texts) -> int:
    """Check that both rows of each span pair have read the same text; returns how many pairs."""
    count = 0
    for text in texts:
        data = text.encode()
        pairs = span_pairs(source, target, text)
        count += len(pairs)
        offsets = []
        for side, column in ((target, 0), (source, 1)):
            ids, ends = (part.tolist() for part in side.encode([text], False).document(0))
            reads = read_by_tokens(side, ids)
            offsets.append([ends[pair[column]] for pair in pairs])
            for pair, end in zip(pairs, offsets[-1], strict=True):
                expected = read_of_text(side, data, end)
                assert reads[pair[column]] in (expected, b" " + expected), (text, pair)
        assert offsets[0] == offsets[1]
    return count


SPELLING = [name for name in FAMILIES if name not in ("word_piece", "unigram")]


# Each is a source and a target once, without Gemma's too.
IN_A_ROUND = [*zip(SPELLING, SPELLING[1:] + SPELLING[:1], strict=True), ("smollm2", "deepseek")]


@pytest.mark.parametrize(("source_name", "target_name"), gemma_is_slow(IN_A_ROUND))
def test_a_span_joins_rows_that_have_read_the_same(source_name, target_name, family):
    source, target = family(source_name), family(target_name)
    assert check_spans(source, target, difficult_texts()[::6]) > 300


@pytest.mark.slow
@pytest.mark.parametrize("names", list(itertools.permutations(SPELLING, 2)))
def test_a_span_joins_rows_that_have_read_the_same_for_all_pairs(names, family):
    source, target = map(family, names)
    assert check_spans(source, target, difficult_texts()) > 2_000


def test_ends_by_characters_where_changes_are_not_known_closer():
    # Of `e◌́`, `½` and `x`, the library says that the first is cut off before its accent, and that
    # three tokens are parts of the second.
    spans = np.array([[0, 1], [2, 3], [2, 3], [2, 3], [3, 4]])
    assert character_end_offsets(spans, "e\u0301½x").tolist() == [3, 5, 5, 5, 6]
    # A token that begins inside what a reader sees as one character: the one before ends with it.
    assert character_end_offsets(np.array([[0, 1], [1, 3]]), "e\u0301x").tolist() == [4, 4]
