"""Rows of kind `inside` against their definition, whatever tokens spell and cover."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusestore.align.kinds import INSIDE, NONE, SPAN
from fusestore.align.tokens.pairing import align_tokens
from fusestore.align.tokens.spans import inside_rows
from fusestore.tokenizers.vocabulary import TokenKind, Vocabulary
from tests.helpers.plain_spans import plain_inside


@st.composite
def source_tokens(draw):
    """Bytes that each token covers and spells.

    Most spell what they cover. A special token does neither. A token that covers nothing ends where
    the one before it ends. Others are of a normalizer, or spell a space that the document lacks.
    """
    covered = draw(st.lists(st.integers(0, 4), max_size=8))
    longer = st.sampled_from([0, 0, 0, 1, -1, 2])
    return [(count, max(0, count + draw(longer))) for count in covered]


@st.composite
def documents(draw):
    """Source tokens of some documents, and where target tokens end."""
    sources = draw(st.lists(source_tokens(), max_size=4))
    totals = [sum(covered for covered, _ in tokens) for tokens in sources]
    # A target may have lost the text's end, or have text where the source has none.
    targets = [sorted(draw(st.lists(st.integers(0, end + 2), max_size=12))) for end in totals]
    return sources, targets


def offsets_of(parts):
    return np.cumsum([0, *(len(part) for part in parts)]).astype(np.int64)


def flat(parts):
    return np.array([value for part in parts for value in part], np.int32)


@settings(max_examples=500, deadline=None)
@given(documents())
def test_inside_rows_are_the_definition(drawn):
    sources, targets = drawn
    ends = [np.cumsum([covered for covered, _ in tokens]).tolist() for tokens in sources]
    lengths = [[spelled for _, spelled in tokens] for tokens in sources]
    found = inside_rows(
        *(flat(ends), flat(lengths), np.ones(len(flat(ends)), np.bool_), offsets_of(ends)),
        *(flat(targets), offsets_of(targets)),
    )
    assert found.dtype == np.int32
    assert found.tolist() == [
        row
        for spelled, source_ends, target_ends in zip(lengths, ends, targets, strict=True)
        for row in plain_inside([b" " * count for count in spelled], source_ends, target_ends)
    ]


BOS = (b"<bos>", "special")


@pytest.mark.parametrize(
    ("source", "ends", "target_ends", "expected"),
    [
        pytest.param(
            *([BOS, (b"cats", "text")], [0, 4], [2, 4], [(0, INSIDE), (1, SPAN)]),
            id="behind a special token",
        ),
        pytest.param(
            *([(b"cats", "text")], [4], [2, 4], [(-1, NONE), (0, SPAN)]),
            id="before the first row",
        ),
        pytest.param(
            *([BOS, (b" cats", "text")], [0, 4], [2, 4], [(0, INSIDE), (1, SPAN)]),
            id="a space that the tokenizer adds",
        ),
        pytest.param(
            *([BOS, ("i̇st".encode(), "text")], [0, 4], [2, 4], [(-1, NONE), (1, SPAN)]),
            id="a capital that lowercasing makes longer",
        ),
        pytest.param(
            *([BOS, (b" ", "text"), (b"cats", "text")], [0, 0, 4], [0, 2, 4]),
            [(1, SPAN), (1, INSIDE), (2, SPAN)],
            id="a space that is a token of its own",
        ),
        pytest.param(
            *([(b"a", "text"), (b" cats", "text")], [1, 5], [3, 5], [(-1, NONE), (1, SPAN)]),
            id="a byte too many in the middle",
        ),
        pytest.param(
            *([(b"a", "text"), (b"1/2", "text")], [1, 3], [2, 3], [(-1, NONE), (1, SPAN)]),
            id="a character that a normalizer spells out",
        ),
        pytest.param(
            *([(b"ab", "text"), BOS, (b"cats", "text")], [2, 2, 6], [2, 3, 3, 6]),
            [(1, SPAN), (-1, NONE), (1, INSIDE), (2, SPAN)],
            id="the last of equal ends on both sides",
        ),
        pytest.param(
            *([BOS, (b"\xf0", "byte"), (b"\x9f\xa6\x8a", "text")], [0, 1, 4], [2, 4]),
            [(1, INSIDE), (2, SPAN)],
            id="inside a character",
        ),
        pytest.param(
            *([(b"a", "text"), (b"bcd", "text")], [1, 4], [2, 3, 4, 6]),
            [(0, INSIDE), (0, INSIDE), (1, SPAN), (-1, NONE)],
            id="behind the source's end",
        ),
    ],
)
def test_what_can_and_what_cannot_be_conditioned(source, ends, target_ends, expected):
    kinds: tuple[TokenKind, ...] = tuple(kind for _, kind in source)
    vocabulary = Vocabulary("a" * 64, tuple(token for token, _ in source), kinds, ())
    other = Vocabulary("b" * 64, (b"t",), ("text",), ())
    position, kind = align_tokens(
        np.arange(len(source), dtype=np.int32),
        np.array(ends, np.int32),
        np.zeros(len(target_ends), np.int32),
        np.array(target_ends, np.int32),
        vocabulary,
        other,
        "span",
    )
    assert list(zip(position.tolist(), kind.tolist(), strict=True)) == expected
