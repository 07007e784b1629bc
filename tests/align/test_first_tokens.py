"""The first target token from each byte on, against comparing every token."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusestore.align.vocabulary.first_tokens import first_tokens
from fusestore.align.vocabulary.vocabulary_map import map_vocabulary
from fusestore.tokenizers.vocabulary import Spelling, TokenKind, Vocabulary
from tests.helpers.real_tokenizers import gemma_is_slow

PIECE = st.binary(max_size=5).map(lambda data: bytes(97 + byte % 3 for byte in data))
KIND: st.SearchStrategy[TokenKind] = st.sampled_from(["text", "text", "byte", "special", "unused"])


@st.composite
def vocabularies(draw):
    """Few letters, so that tokens begin each other; some tokens have the same bytes."""
    tokens = draw(st.lists(st.tuples(PIECE, KIND), max_size=12))
    spelled = [b"" if kind == "unused" else data for data, kind in tokens]
    return Vocabulary("b" * 64, tuple(spelled), tuple(kind for _, kind in tokens), ())


def plain_first(rest, target):
    """The longest token that `rest` begins with; of equal ones text, then the lowest id."""
    fitting = [
        (-len(token), kind == "byte", token_id)
        for token_id, (token, kind) in enumerate(zip(target.token_bytes, target.kinds, strict=True))
        if kind in ("text", "byte") and token and rest.startswith(token)
    ]
    return min(fitting)[2] if fitting else -1


@settings(max_examples=500, deadline=None)
@given(vocabularies(), vocabularies())
def test_first_tokens_are_the_longest_that_begin_there(source, target):
    found = first_tokens(source.spelling, target)
    assert found.dtype == np.int32
    spelled = [
        token if kind in ("text", "byte") else b""
        for token, kind in zip(source.token_bytes, source.kinds, strict=True)
    ]
    assert found.tolist() == [
        plain_first(token[start:], target) for token in spelled for start in range(len(token))
    ]


@settings(max_examples=200, deadline=None)
@given(vocabularies())
def test_a_spelling_has_the_bytes_of_text_alone(vocabulary):
    spelling = vocabulary.spelling
    assert spelling.lengths.dtype == np.int32
    for token, (data, kind) in enumerate(
        zip(vocabulary.token_bytes, vocabulary.kinds, strict=True)
    ):
        start, stop = spelling.offsets[token : token + 2]
        expected = data if kind in ("text", "byte") else b""
        assert spelling.data[start:stop].tobytes() == expected
        assert spelling.lengths[token] == len(expected)
    assert spelling.offsets[-1] == len(spelling.data)


def test_of_no_tokens():
    none = Vocabulary("a" * 64, (), (), ())
    some = Vocabulary("b" * 64, (b"ab",), ("text",), ())
    assert first_tokens(none.spelling, some).tolist() == []
    assert first_tokens(some.spelling, none).tolist() == [-1, -1]
    assert len(Spelling.of([], []).data) == 0


@settings(max_examples=200, deadline=None)
@given(vocabularies(), vocabularies())
def test_from_its_first_byte_a_text_token_goes_where_the_prefix_map_sends_it(source, target):
    check_against_prefix_map(source, target)


def check_against_prefix_map(source, target):
    found = first_tokens(source.spelling, target)
    mapped = map_vocabulary(source, target, "prefix")
    starts = source.spelling.offsets[:-1]
    text = (np.array(source.kinds) == "text") & (source.spelling.lengths > 0)
    assert np.array_equal(found[starts[text]], mapped.target_id[text])


@pytest.mark.parametrize(
    ("source_name", "target_name"),
    gemma_is_slow(
        [
            ("gemma3", "smollm2"),
            ("mistral", "gemma3"),
            ("smollm2", "mistral"),
            ("deepseek", "mistral"),
        ]
    ),
)
def test_first_tokens_of_real_vocabularies(tokenizers, source_name, target_name):
    source, target = (tokenizers[name].vocabulary for name in (source_name, target_name))
    found = first_tokens(source.spelling, target)
    best: dict[bytes, int] = {}
    for kind in ("byte", "text"):
        ids = [i for i, each in enumerate(target.kinds) if each == kind and target.token_bytes[i]]
        best |= {target.token_bytes[i]: i for i in reversed(ids)}
    for token in range(0, len(source), 211):
        if source.kinds[token] not in ("text", "byte"):
            continue
        data, first_byte = source.token_bytes[token], source.spelling.offsets[token]
        for start in range(len(data)):
            beginnings = (data[start:stop] for stop in range(len(data), start, -1))
            expected = next((best[each] for each in beginnings if each in best), -1)
            assert found[first_byte + start] == expected, (token, start)
    check_against_prefix_map(source, target)
