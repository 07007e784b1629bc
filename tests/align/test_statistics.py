"""Pair counts against plain dictionaries, and the maps that rest on them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusestore.align.kinds import MAP_KINDS
from fusestore.align.vocabulary import statistics
from fusestore.align.vocabulary.statistics import PairCounts, count_pairs
from fusestore.align.vocabulary.vocabulary_map import map_vocabulary
from fusestore.errors import IncompatibleError, InvalidInputError
from fusestore.tokenizers.token_table import TokenTable
from fusestore.tokenizers.vocabulary import Vocabulary

DOCUMENTS = st.lists(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), max_size=12))


def table(documents):
    """Documents as lists of (id, bytes); a token of 0 bytes stands for no text."""
    ids = [token_id for document in documents for token_id, _ in document]
    ends = [np.cumsum([size for _, size in document], dtype=np.int32) for document in documents]
    offsets = np.cumsum([0, *map(len, documents)])
    return TokenTable(
        np.array(ids, np.int32), np.concatenate([np.empty(0, np.int32), *ends]), offsets
    )


def plain_counts(source, target):
    counts = Counter()
    for left, right in zip(source, target, strict=True):
        begins = {}
        at = 0
        for token_id, size in right:
            if size:
                begins[at] = token_id
            at += size
        at = 0
        for token_id, size in left:
            if size and at in begins:
                counts[token_id, begins[at]] += 1
            at += size
    return counts


def as_counter(counts):
    return {
        (int(source), int(target)): int(count)
        for source, target, count in zip(
            counts.source_ids, counts.target_ids, counts.counts, strict=True
        )
    }


@settings(max_examples=200, deadline=None)
@given(DOCUMENTS, DOCUMENTS, st.sampled_from([1, 3, 2**20]))
def test_counts_are_those_of_plain_dictionaries(source, target, tokens_per_block):
    size = min(len(source), len(target))
    source, target = source[:size], target[:size]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "_TOKENS_PER_BLOCK", tokens_per_block)
        counts = count_pairs(table(source), table(target))
    assert as_counter(counts) == plain_counts(source, target)
    keys = list(zip(counts.source_ids.tolist(), counts.target_ids.tolist(), strict=True))
    assert keys == sorted(keys)
    assert (counts.source_ids.dtype, counts.counts.dtype) == (np.int32, np.int64)


def test_tables_of_different_corpora_are_refused():
    with pytest.raises(IncompatibleError, match=r"1 documents.*2; statistics"):
        count_pairs(table([[(0, 1)]]), table([[(0, 1)], []]))


def vocabulary(tokens, kinds=None):
    return Vocabulary("0" * 64, tuple(tokens), tuple(kinds or ["text"] * len(tokens)), ())


def counts_of(pairs):
    rows = sorted((s, t, n) for (s, t), n in pairs.items())
    source, target, count = (np.array(column) for column in zip(*rows, strict=True))
    return PairCounts(source.astype(np.int32), target.astype(np.int32), count.astype(np.int64))


def test_counts_choose_where_edit_distance_would_guess():
    source = vocabulary([b" elephantine", b" seen", b"same", b" rare", b" colour", b"\xff"])
    target = vocabulary(
        [b" eleph", b"antine", b" seed", b"same", b" color", b" hue", b" <0xFF>", b"<unk>"],
        [*["text"] * 7, "special"],
    )
    counts = counts_of(
        {(0, 0): 3, (0, 7): 9, (1, 5): 1, (2, 5): 50, (4, 5): 2, (4, 4): 2, (4, 0): 1}
    )
    mapped = map_vocabulary(source, target, "statistical", counts=counts)
    mined = map_vocabulary(source, target, "mined")
    assert mapped.target_id.tolist() == [0, 5, 3, mined.target_id[3], 4, mined.target_id[5]]
    assert mapped.distance.tolist()[:3] == [6, 3, 0]
    assert [MAP_KINDS[kind] for kind in mapped.kind] == [
        *["statistical"] * 2, "exact", "mined", "statistical", "mined",
    ]  # fmt: skip
    assert mapped.digest != mined.digest


def test_ties_of_counts_go_by_distance_then_prefix_then_id():
    source = vocabulary([b"abcd"])
    target = vocabulary([b"xbcd", b"abcx", b"abxd", b"abcy", b"a"])
    everything = counts_of({(0, target_id): 4 for target_id in range(5)})
    mapped = map_vocabulary(source, target, "statistical", counts=everything)
    assert (mapped.target_id[0], mapped.distance[0]) == (1, 1)
    first = map_vocabulary(source, target, "statistical", "first", counts=everything)
    assert first.target_id[0] == 0


def test_counts_go_with_the_method():
    one = vocabulary([b"a"])
    with pytest.raises(InvalidInputError, match="needs counts"):
        map_vocabulary(one, one, "statistical")
    with pytest.raises(InvalidInputError, match="'mined' uses no counts"):
        map_vocabulary(one, one, "mined", counts=counts_of({(0, 0): 1}))


def test_counts_of_another_vocabulary_are_refused():
    one = vocabulary([b"a"])
    with pytest.raises(IncompatibleError, match=r"up to 0 and 3.*1 and 1 ids"):
        map_vocabulary(one, one, "statistical", counts=counts_of({(0, 3): 1}))
