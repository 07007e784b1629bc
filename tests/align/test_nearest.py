"""The nearest text: every answer is that of comparing all pairs, ties included."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cdist

from fusestore.align.edit_distance import common_prefix, text_of
from fusestore.align.vocabulary import character_index
from fusestore.align.vocabulary import nearest as module
from fusestore.align.vocabulary.nearest import nearest

SHORT = st.text(alphabet="ab é中😀\udc80", max_size=6)
LONG = st.text(alphabet="ab", min_size=60, max_size=70)
TEXTS = SHORT | LONG


def brute_force(query, candidates, prefer_prefix):
    def order(index):
        text = candidates[index]
        prefix = common_prefix(query, text) if prefer_prefix else 0
        return Levenshtein.distance(query, text), -prefix, index

    best = min(range(len(candidates)), key=order)
    return best, Levenshtein.distance(query, candidates[best])


def check(queries, candidates, prefer_prefix):
    index, distance = nearest(queries, candidates, prefer_prefix=prefer_prefix)
    assert (index.dtype, distance.dtype) == (np.int64, np.int32)
    expected = [brute_force(query, candidates, prefer_prefix) for query in queries]
    assert list(zip(index.tolist(), distance.tolist(), strict=True)) == expected


@pytest.mark.parametrize("max_common", [0, 2, 256], ids=["places", "both", "rows"])
@settings(max_examples=150, deadline=None)
@given(
    queries=st.lists(TEXTS, max_size=8),
    candidates=st.lists(TEXTS, min_size=1, max_size=30),
    prefer_prefix=st.booleans(),
)
def test_nearest_is_the_brute_force_minimum(max_common, queries, candidates, prefer_prefix):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(character_index, "_MAX_COMMON", max_common)
        patch.setattr(module, "_NEIGHBORS", 1)
        check(queries, candidates, prefer_prefix)


@pytest.mark.parametrize("prefer_prefix", [True, False])
@pytest.mark.parametrize("letters", ["ab", " etaoinshrdlu", "αβγδεζηθικλμνξοπρστυφχψω"])
def test_nearest_of_many_words(letters, prefer_prefix):
    rng = np.random.default_rng(0)

    def words(count):
        return ["".join(rng.choice(list(letters), rng.integers(1, 12))) for _ in range(count)]

    check(words(100), words(2000), prefer_prefix)


def test_edits_of_one_another_and_texts_with_nothing_in_common():
    rng = np.random.default_rng(1)
    candidates = ["".join(rng.choice(list(" abcdef"), rng.integers(3, 90))) for _ in range(300)]
    queries = ["", "xyz", "x" * 80, *("z" + text[1:-1] for text in candidates[:60])]
    for prefer_prefix in (True, False):
        check(queries, candidates, prefer_prefix)


def test_progress_and_blocks(monkeypatch):
    monkeypatch.setattr(module, "_QUERIES_PER_BLOCK", 3)
    seen = []
    nearest(
        ["a"] * 7, ["a", "b"], prefer_prefix=True, progress=lambda done, of: seen.append((done, of))
    )
    assert seen == [(0, 7), (3, 7), (6, 7), (7, 7)]


def test_no_queries():
    index, distance = nearest([], ["a"], prefer_prefix=True)
    assert len(index) == len(distance) == 0


def test_common_prefix():
    pairs = [("", ""), ("a", ""), ("ab", "ac"), ("ab", "abc"), ("xb", "ab")]
    assert [common_prefix(*pair) for pair in pairs] == [0, 0, 1, 2, 0]


def check_real(queries, candidates, prefer_prefix):
    """As `check`, with the distances of all pairs from rapidfuzz, some hundred queries a time."""
    index, distance = nearest(queries, candidates, prefer_prefix=prefer_prefix)
    for start in range(0, len(queries), 200):
        part = queries[start : start + 200]
        every = cdist(part, candidates, scorer=Levenshtein.distance, dtype=np.uint16)
        least = every.min(axis=1)
        assert distance[start : start + 200].tolist() == least.tolist()
        for query, row, smallest, found in zip(part, every, least, index[start:], strict=False):
            ties = np.flatnonzero(row == smallest)
            if prefer_prefix:
                prefixes = [common_prefix(query, candidates[i]) for i in ties]
                assert found == ties[int(np.argmax(prefixes))]
            else:
                assert found == ties[0]


def unmatched(source, target):
    """Texts of the source that the target lacks, and all texts of the target."""
    sides = [
        dict.fromkeys(
            text_of(token)
            for token, kind in zip(side.token_bytes, side.kinds, strict=True)
            if kind == "text" and token
        )
        for side in (source.vocabulary, target.vocabulary)
    ]
    return [text for text in sides[0] if text not in sides[1]], list(sides[1])


@pytest.mark.slow
def test_a_whole_pair_of_real_vocabularies(tokenizers):
    queries, candidates = unmatched(tokenizers["mistral"], tokenizers["smollm2"])
    check_real(queries, candidates, prefer_prefix=True)


@pytest.mark.slow
@pytest.mark.parametrize("prefer_prefix", [True, False])
@pytest.mark.parametrize(
    ("source", "target"),
    [("smollm2", "mistral"), ("gemma3", "smollm2"), ("gemma3", "deepseek"), ("deepseek", "gemma3")],
)
def test_a_sample_of_real_vocabularies(tokenizers, source, target, prefer_prefix):
    queries, candidates = unmatched(tokenizers[source], tokenizers[target])
    sample = np.random.default_rng(0).choice(len(queries), 400, replace=False)
    check_real([queries[i] for i in sample], candidates, prefer_prefix)
