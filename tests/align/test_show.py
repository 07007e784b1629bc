"""What `--inspect` shows: cells at every boundary, whole characters, and the reasons."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusestore.align.kinds import ALIGNMENT_METHODS
from fusestore.align.report.columns import AlignedDocument, columns, explain, shown_text, window
from fusestore.align.tokens.pairing import align_tokens
from fusestore.tokenizers.vocabulary import Vocabulary
from tests.helpers.token_pieces import Pieces, cut


def aligned(source, target, method="hybrid", bos=(False, False)):
    left, right = Pieces("a" * 64), Pieces("b" * 64)
    source_ids, source_ends = left.document(source, bos[0])
    target_ids, target_ends = right.document(target, bos[1])
    vocabularies = left.vocabulary, right.vocabulary
    position, kind = align_tokens(
        source_ids, source_ends, target_ids, target_ends, *vocabularies, method
    )
    return AlignedDocument(
        "it",
        b"".join(source),
        source_ids,
        source_ends,
        target_ids,
        target_ends,
        *vocabularies,
        method,
        position,
        kind,
    )


def line(cells):
    return "".join(cell.text + ("|" if cell.closes else " ") for cell in cells)


def test_worked_example():
    document = aligned(
        [b"The", b" under", b"stand", b"ing", b" of", b" it"],
        [b"The", b" unders", b"tanding", b" of it"],
    )
    shown = columns(document)
    assert line(c.source for c in shown) == "The|␣under|s tand|ing|␣of|␣it|"
    assert line(c.target for c in shown) == "The|␣under s|tand ing|␣of ␣it|"
    assert [c.target.kind for c in shown if c.target.closes] == ["span", "mined", "span", "span"]
    assert [c.source.kind for c in shown if c.source.closes] == [
        *["span", "mined", "none"],
        *["span", "none", "span"],
    ]
    assert [explain(document, j).why for j in (0, 1)] == [
        "both end at byte 3",
        "their ends differ, but the path of least edit distance joins only these two",
    ]
    assert line(c.target for c in window(document, 1, 3)) == "␣under s|tand ing|"


@pytest.mark.parametrize(
    ("source", "target", "method", "position", "why"),
    [
        ([b"abc", b"de"], [b"ab", b"cde"], "span", 0, r"no source token ends at byte 2.*are 3$"),
        ([b"ab", b"cd"], [b"a", b"bcd"], "span", 0, r"^source token 0, .* has no row before it"),
        ([b"ab", b"cd"], [b"abc", b"d"], "exact", 0, r"^no.* byte 3; the nearest ends are 2 and 4"),
        ([b"ab"], [b"ab", b""], "span", 0, "another target token ends at byte 2 too"),
        ([b"ab", b"c"], [b"a", b"bc"], "exact", 1, r"source token 1 ends at byte 3.*begins else"),
        ([b"x", b"y", b"z"], [b"xyz"], "mined", 0, r"source token 2 ends.*one-to-one"),
    ],
)
def test_why_a_position_is_not_aligned(source, target, method, position, why):
    explanation = explain(aligned(source, target, method), position)
    assert (explanation.kind, explanation.source_pos) == ("none", None)
    assert re.search(why, explanation.why)


@pytest.mark.parametrize(
    ("source", "target", "position", "row", "why"),
    [
        (
            [b"the", b" ", b"cat"],
            [b"the", b" ca", b"t"],
            *(1, 1),
            "ends 2 bytes inside source token 2 cat; row 1, conditioned on ca, has read the same "
            "text",
        ),
        (
            [b"a", "🦊".encode()],
            [b"a\xf0", b"\x9f\xa6\x8a"],
            *(0, 0),
            "ends 1 byte inside source token 1 🦊; row 0, conditioned on \\xf0, has read the same "
            "text",
        ),
    ],
)
def test_why_a_row_is_conditioned(source, target, position, row, why):
    explanation = explain(aligned(source, target, "span"), position)
    assert (explanation.kind, explanation.source_pos) == ("inside", row)
    assert explanation.why == why


def test_a_row_before_an_added_space_is_conditioned_on_it():
    """`▁the` covers the document's first three bytes and spells four."""
    vocabulary = Vocabulary("a" * 64, (b"<bos>", b" the"), ("special", "text"), (("bos", 0),))
    letters = Vocabulary("b" * 64, (b"th", b"e"), ("text", "text"), ())
    tokens = np.array([0, 1], np.int32)
    ends = np.array([0, 3], np.int32), np.array([2, 3], np.int32)
    position, kind = align_tokens(tokens, ends[0], tokens, ends[1], vocabulary, letters)
    document = AlignedDocument(
        *("it", b"the", tokens, ends[0], tokens, ends[1]),
        *(vocabulary, letters, "span", position, kind),
    )
    why = explain(document, 0).why
    assert why.startswith("ends 2 bytes inside source token 1 ␣the; row 0, conditioned on ␣th, ")


def test_a_source_token_whose_bytes_a_normalizer_changed_has_no_known_beginning():
    vocabulary = Vocabulary("a" * 64, (b"a", b"1\xe2\x81\x842"), ("text", "text"), ())
    halves = Vocabulary("b" * 64, (b"a\xc2", b"\xbd"), ("text", "text"), ())
    tokens = np.array([0, 1], np.int32)
    ends = np.array([1, 3], np.int32), np.array([2, 3], np.int32)
    position, kind = align_tokens(tokens, ends[0], tokens, ends[1], vocabulary, halves)
    document = AlignedDocument(
        *("it", "a½".encode(), tokens, ends[0], tokens, ends[1]),
        *(vocabulary, halves, "span", position, kind),
    )
    assert kind.tolist() == [0, 1]
    assert "does not spell the bytes that it covers" in explain(document, 0).why


def test_cut_characters_and_tokens_without_text():
    fox = "🦊".encode()
    document = aligned([b" ", fox, b"\n"], [b" " + fox[:2], fox[2:], b"\n"], bos=(True, False))
    shown = columns(document)
    assert line(c.source for c in shown) == "⟨<bos>⟩|␣|🦊 |\\n|"
    assert line(c.target for c in shown) == " ␣ \\xf0\\x9f|\\xa6\\x8a|\\n|"
    assert window(document, 0, 1)[0].source.text == "⟨<bos>⟩"
    assert shown_text("a\u0301\u200b\t".encode()) == "a\\u0301\\u200b\\t"


@settings(max_examples=150, deadline=None)
@given(
    st.text(alphabet="ab c é中😀\n", max_size=14),
    st.lists(st.integers(0, 40), max_size=14),
    st.lists(st.integers(0, 40), max_size=14),
    st.sampled_from(ALIGNMENT_METHODS),
    st.booleans(),
)
def test_every_token_is_shown_once_and_both_sides_show_the_text(text, left, right, method, bos):
    data = text.encode()
    document = aligned(cut(data, left), cut(data, right), method, (bos, not bos))
    shown = columns(document)
    assert [c.end for c in shown] == sorted(c.end for c in shown)
    for side, ends in (("source", document.source_ends), ("target", document.target_ends)):
        cells = [getattr(column, side) for column in shown]
        closing = [cell.position for cell in cells if cell.closes]
        assert closing == list(range(len(ends)))
        assert [c.end for c, cell in zip(shown, cells, strict=True) if cell.closes] == list(ends)
    if document.target_ids.size:
        assert window(document, 0, len(document.target_ids)) == shown
    for j, position in enumerate(document.source_pos):
        explanation = explain(document, j)
        assert explanation.source_pos == (None if position < 0 else position)
        assert explanation.target_end == document.target_ends[j]
        assert np.array_equal(explanation.kind == "none", position < 0)
