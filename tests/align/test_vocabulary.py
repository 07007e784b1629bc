"""Vocabulary maps against comparing every pair of tokens."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rapidfuzz.distance import Levenshtein

from fusestore.align.edit_distance import text_of
from fusestore.align.kinds import MAP_KINDS
from fusestore.align.vocabulary.vocabulary_map import map_vocabulary
from fusestore.errors import InvalidInputError
from fusestore.tokenizers.vocabulary import Vocabulary

TEXTS = st.text(alphabet="ab é中😀", max_size=6)


def vocabulary(tokens, kinds=None, roles=(), digest="0" * 64):
    kinds = kinds or ["text"] * len(tokens)
    return Vocabulary(digest, tuple(tokens), tuple(kinds), tuple(roles))


def common_prefix(left, right):
    length = 0
    while length < min(len(left), len(right)) and left[length] == right[length]:
        length += 1
    return length


def brute_force(query, candidates, tie_break):
    def order(index):
        text = candidates[index]
        prefix = common_prefix(query, text) if tie_break == "prefix" else 0
        return Levenshtein.distance(query, text), -prefix, index

    best = min(range(len(candidates)), key=order)
    return best, Levenshtein.distance(query, candidates[best])


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.binary(max_size=5) | TEXTS.map(str.encode), max_size=12),
    st.lists(st.binary(max_size=5) | TEXTS.map(str.encode), max_size=12),
    st.sampled_from(["prefix", "first"]),
)
def test_mined_map_of_any_bytes_equals_brute_force(source, target, tie_break):
    mapped = map_vocabulary(vocabulary(source), vocabulary(target), "mined", tie_break)
    usable = [i for i, token in enumerate(target) if token]
    for source_id, token in enumerate(source):
        if not token or not usable:
            assert mapped.target_id[source_id] == -1
            continue
        best, distance = brute_force(
            text_of(token), [text_of(target[i]) for i in usable], tie_break
        )
        assert mapped.target_id[source_id] == usable[best]
        assert mapped.distance[source_id] == distance
        assert MAP_KINDS[mapped.kind[source_id]] == ("exact" if distance == 0 else "mined")


def test_prefix_keeps_understanding_on_under():
    source = vocabulary([b" understanding", b"under", b"zzz", "中文".encode()])
    target = vocabulary([b" ", b" un", b" under", b"under", b"\xe4"])
    mapped = map_vocabulary(source, target, "prefix")
    assert mapped.target_id.tolist() == [2, 3, -1, 4]
    assert mapped.distance.tolist() == [8, 0, -1, 2]
    assert [MAP_KINDS[kind] for kind in mapped.kind] == ["prefix", "exact", "none", "prefix"]


def test_special_byte_and_unused_rows():
    source = vocabulary(
        [b"<bos>", b"<eos>", b"<pad>", b"<img>", b"<tool>", b"\n", b"\xff", b"", b"<s>"],
        ["special"] * 5 + ["byte", "byte", "unused", "text"],
        [("bos", 0), ("eos", 1), ("pad", 2)],
    )
    target = vocabulary(
        [b"<s>", b"</s>", b"<tool>", b"\n", b"\n", b"<x>", b"<img>"],
        ["special"] * 3 + ["byte", "text", "text", "text"],
        [("bos", 0), ("eos", 1), ("pad", 1)],
    )
    mapped = map_vocabulary(source, target, "mined")
    assert mapped.target_id.tolist() == [0, 1, 1, -1, 2, 4, -1, -1, 5]
    assert [MAP_KINDS[kind] for kind in mapped.kind] == [
        *["role"] * 3, "none", "exact", "byte", "none", "none", "mined",
    ]  # fmt: skip


def test_one_token_in_all_roles_is_the_end_of_the_text():
    source = vocabulary([b"<|end|>"], ["special"], [("bos", 0), ("eos", 0), ("pad", 0), ("unk", 0)])
    target = vocabulary(
        [b"<pad>", b"<eos>", b"<bos>"], ["special"] * 3, [("pad", 0), ("eos", 1), ("bos", 2)]
    )
    assert map_vocabulary(source, target).target_id.tolist() == [1]


def test_to_polars_columns_and_nulls():
    mapped = map_vocabulary(vocabulary([b"a", b"b"]), vocabulary([b"a"]), "exact")
    table = mapped.to_polars()
    assert table.columns == ["source_id", "target_id", "distance", "kind"]
    assert table.rows() == [(0, 0, 0, "exact"), (1, None, None, "none")]


def test_unknown_method_and_tie_break_are_refused():
    with pytest.raises(InvalidInputError, match=r"nearest.*exact, mined, prefix"):
        map_vocabulary(vocabulary([b"a"]), vocabulary([b"a"]), "nearest")  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match=r"last.*prefix, first"):
        map_vocabulary(vocabulary([b"a"]), vocabulary([b"a"]), "mined", "last")  # type: ignore[arg-type]
