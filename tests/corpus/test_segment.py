"""Cutting: nothing lost, nothing too long, no character or grapheme torn without need."""

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from fusestore.corpus.segment import segment_text
from fusestore.errors import InvalidInputError
from tests.helpers.real_tokenizers import gemma_is_slow

TEXT = st.text(
    st.one_of(
        st.characters(exclude_categories=["Cs"]),
        st.sampled_from("the United States. \n"),
        st.sampled_from("\u0301\u200d👩🏽🇫🇷漢字\r\n▁"),
    ),
    max_size=200,
)


def segment(text, tokenizers, max_tokens):
    return list(segment_text(text, tokenizers, max_tokens).segments)


@pytest.fixture
def another(request):
    """The tokenizer of this name."""
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("another", gemma_is_slow(["gemma", "deepseek"]), indirect=True)
@given(text=TEXT, max_tokens=st.integers(8, 40))
@hypothesis_settings(
    deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_segments_join_to_the_text_and_fit_every_tokenizer(
    smollm2, another, mistral, wordpiece, text, max_tokens
):
    tokenizers = [smollm2, another, mistral, wordpiece]
    segments = segment(text, tokenizers, max_tokens)
    assert "".join(segments) == text
    assert all(segments) or text == ""
    for tokenizer in tokenizers:
        counts = [tokenizer.encode([part], add_bos=False).num_tokens for part in segments]
        assert max(counts) <= max_tokens - 1


@pytest.mark.parametrize("another", gemma_is_slow(["gemma", "mistral"]), indirect=True)
@pytest.mark.parametrize("max_tokens", [64, 512])
def test_a_real_text_is_cut_where_a_reader_would(smollm2, another, speeches, max_tokens):
    for text in speeches[:3]:
        result = segment_text(text, [smollm2, another], max_tokens)
        assert "".join(result.segments) == text
        assert result.forced_cuts == 0
        for tokenizer in (smollm2, another):
            table = tokenizer.encode(result.segments, add_bos=tokenizer.bos_id is not None)
            lengths = table.document_offsets[1:] - table.document_offsets[:-1]
            assert lengths.max() <= max_tokens
        # Two thirds of the length at least, but for the last part.
        whole = smollm2.encode(result.segments[:-1], add_bos=False)
        assert whole.num_tokens >= 0.5 * max_tokens * (len(result.segments) - 1)


def test_cuts_prefer_paragraphs_then_lines_then_sentences_then_words(smollm2):
    words = "one two three four five six seven eight nine ten"
    cases = [
        (f"{words}\n\n{words}\n{words}. {words}", f"{words}\n\n"),
        (f"{words}\n{words}. {words} {words}", f"{words}\n"),
        (f"{words}. {words} {words} {words}", f"{words}."),
    ]
    for text, expected in cases:
        # The window ends two words into the second part.
        assert segment(text, [smollm2], 15)[0] == expected
    first = segment(f"{words} {words}", [smollm2], 9)[0]
    assert words.startswith(first)
    assert words[len(first)] == " "


def test_short_texts_stay_whole(smollm2, mistral):
    assert segment("", [smollm2], 8) == [""]
    assert segment("One line.", [smollm2, mistral], 8) == ["One line."]
    assert segment("No tokenizer at all", [], 8) == ["No tokenizer at all"]


def test_graphemes_stay_whole_where_possible(smollm2):
    family = "👩🏽\u200d👩🏽\u200d👧"
    segments = segment_text(family * 6, [smollm2], 40).segments
    assert "".join(segments) == family * 6
    assert all(part == family * (len(part) // len(family)) for part in segments)


def test_a_text_without_common_boundaries_is_cut_all_the_same(smollm2, wordpiece):
    # WordPiece reads a word of more than 100 letters as one unknown token.
    text = "é" * 150
    result = segment_text(text, [smollm2, wordpiece], 40)
    assert "".join(result.segments) == text
    assert result.forced_cuts > 0


def test_too_short_a_length_is_refused(smollm2):
    with pytest.raises(InvalidInputError, match="leaves no room"):
        segment("text", [smollm2], 1)
    with pytest.raises(InvalidInputError, match=r"Character 0 .* alone takes more than 2"):
        segment("🦜", [smollm2], 3)
