"""Whole fusions against a slow reference: one position, one source, one dense row at a time."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusestore.cache.rows import Rows
from fusestore.fuse.fusion import prepare
from fusestore.fuse.inputs import SourceInput
from fusestore.fuse.recipe import Recipe
from fusestore.fuse.shard import fuse_rows
from tests.helpers.fusion_reference import (
    TARGET,
    VOCAB,
    Reference,
    random_source,
    random_text,
    random_tokens,
)


@settings(max_examples=250, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_sources=st.integers(1, 3),
    num_documents=st.integers(1, 6),
    strategy=st.sampled_from(["mince", "avgce", "packllm", "weighted", "uniform", "single"]),
    score=st.sampled_from(["bits_per_byte", "aligned_ce", "token_ce"]),
    granularity=st.sampled_from(["document", "window", "token"]),
    unaligned=st.sampled_from(["skip", "label", "target", "fusellm"]),
    kinds=st.sampled_from(
        [["span"], ["mined"], ["span", "mined"], ["span", "inside"], ["span", "inside", "mined"]]
    ),
    keep_label=st.booleans(),
    min_probability=st.sampled_from([None, 0.01, 0.2, 0.9]),
    window_length=st.integers(1, 8),
    packing=st.sampled_from(["stream", "document", "whole"]),
    top_k=st.integers(1, VOCAB),
    rows_per_shard=st.integers(1, 20),
)
def test_fused_rows_equal_the_reference_however_they_are_divided(
    helpers, seed, num_sources, num_documents, strategy, rows_per_shard, **choices
):
    rng = np.random.default_rng(seed)
    num_sources = 1 if strategy == "single" else num_sources
    texts = random_text(rng, num_documents)
    target = random_tokens(helpers, rng, texts, TARGET, bos=bool(rng.integers(2)))
    documents = np.sort(rng.permutation(num_documents)[: int(rng.integers(1, num_documents + 1))])
    if target.take(documents).num_tokens == 0:
        return
    names = [f"s{index}" for index in range(num_sources)]
    sources = [
        random_source(helpers, rng, name, texts, target, identity=rng.random() < 0.3)
        for name in names
    ]
    own = None
    if choices["unaligned"] == "target":
        own = random_source(helpers, rng, "own", texts, target, identity=True)
        choices["target_cache"] = "own"
    if choices["packing"] == "whole":
        longest = int(np.diff(target.document_offsets)[documents].max())
        choices["window_length"] = max(longest, choices["window_length"])
    weights = rng.random(num_sources) + 0.1 if strategy == "weighted" else np.ones(num_sources)
    recipe = Recipe.parse(
        {
            "corpus": "c",
            "split": "s",
            "target": "t",
            "strategy": strategy,
            "sources": [
                {"cache": name, "weight": float(weight)}
                for name, weight in zip(names, weights, strict=True)
            ],
            **choices,
        }
    )
    fusion = prepare(
        recipe,
        sources,
        target_tokens=target,
        tokens_digest="tokens",
        documents=documents,
        vocab_size=VOCAB,
        corpus_digest="corpus",
        target_cache=own,
    )
    reference = Reference(helpers, recipe, sources, target, documents)
    num_tokens = fusion.num_tokens
    for start in range(0, num_tokens, rows_per_shard):
        stop = min(start + rows_per_shard, num_tokens)
        rows, _ = fuse_rows(fusion, start, stop)
        expected = [reference.row(index, own) for index in range(start, stop)]
        helpers.assert_sparse_form(
            rows.ids,
            rows.logprobs,
            rows.tail,
            np.stack([row for row, _, _ in expected]),
            recipe.top_k,
        )
        assert rows.kind.tolist() == [kind for _, kind, _ in expected]
        assert rows.source.tolist() == [source for _, _, source in expected]
        stream = reference.stream[start:stop]
        assert rows.document.tolist() == [document for document, _ in stream]
        assert rows.input_ids.tolist() == [
            target.document(document)[0][position] for document, position in stream
        ]


@pytest.mark.parametrize("granularity", ["document", "window", "token"])
def test_a_source_that_knows_the_next_token_supervises_it_across_tokenizers(helpers, granularity):
    """The source is certain of its next token; at each span pair the fused mass must lie on the
    next target token. A target that copies, mass on the token itself, fails here."""
    text = b"the cat sat on the mat and the hat"
    target_pieces = [text[i : i + 1] for i in range(len(text))]
    source_pieces, start = [], 0
    for end in [*(i + 1 for i, byte in enumerate(text) if byte == 32), len(text)]:
        source_pieces += [text[start : end - 1], text[end - 1 : end]]
        start = end
    source_pieces = [piece for piece in source_pieces if piece]
    target_ids = {piece: index for index, piece in enumerate(dict.fromkeys(target_pieces))}
    source_ids = {piece: index for index, piece in enumerate(dict.fromkeys(source_pieces))}

    def tokens(pieces, ids):
        ends = np.cumsum([len(piece) for piece in pieces])
        return [(ids[piece], int(end)) for piece, end in zip(pieces, ends, strict=True)]

    target = helpers.table([tokens(target_pieces, target_ids)])
    source = helpers.table([tokens(source_pieces, source_ids)])
    following = [*source.token_ids[1:].tolist(), 0]
    certain = helpers.rows(
        [{token: 1.0} for token in following], 1, [*[0.0] * (len(following) - 1), np.nan]
    )
    # A source token becomes the target token it begins with: exact for what follows.
    target_id = np.array([target_ids[piece[:1]] for piece in source_ids], np.int32)
    end_to_row = {int(end): row for row, end in enumerate(source.end_offsets)}
    position = np.array([end_to_row.get(int(end), -1) for end in target.end_offsets], np.int32)
    recipe = Recipe.parse(
        {
            "corpus": "c",
            "split": "s",
            "target": "t",
            "top_k": 2,
            "granularity": granularity,
            "window_length": 8,
            "sources": [{"cache": "certain"}],
        }
    )
    fusion = prepare(
        recipe,
        [
            SourceInput(
                "certain",
                helpers.cache(source, certain),
                "d",
                "corpus",
                target_id=target_id,
                alignment=helpers.alignment([(position, (position >= 0).astype(np.uint8))]),
            )
        ],
        target_tokens=target,
        tokens_digest="tokens",
        documents=np.array([0]),
        vocab_size=len(target_ids),
        corpus_digest="corpus",
    )
    rows, _ = fuse_rows(fusion, 0, target.num_tokens)
    spans = (rows.kind == 1) & (rows.next_ids >= 0)
    assert spans.sum() >= 12
    assert np.array_equal(rows.ids[spans, 0], rows.next_ids[spans])
    np.testing.assert_allclose(rows.logprobs[spans, 0], 0.0, atol=1e-6)
    assert not np.any(rows.ids[spans, 0] == rows.input_ids[spans])


def test_zero_width_tokens_and_one_token_documents_do_not_break_scores(helpers):
    """Tokens that end where the one before ends, at every granularity, by finishing at all."""
    tokens = helpers.table([[(0, 0), (1, 0), (2, 2), (3, 2)], [(0, 3)], [(1, 0), (2, 0)]])
    labels = [-1.0, -2.0, -3.0, np.nan, np.nan, -1.0, np.nan]
    rows = Rows(
        np.zeros((7, 1), np.int32),
        np.zeros((7, 1), np.float32),
        np.full(7, -np.inf, np.float32),
        np.array(labels, np.float32),
    )
    for granularity in ("document", "window", "token"):
        recipe = Recipe.parse(
            {
                "corpus": "c",
                "split": "s",
                "target": "t",
                "top_k": 1,
                "window_length": 2,
                "granularity": granularity,
                "sources": [{"cache": "a"}],
            }
        )
        fusion = prepare(
            recipe,
            [SourceInput("a", helpers.cache(tokens, rows), "d", "corpus")],
            target_tokens=tokens,
            tokens_digest="tokens",
            documents=np.arange(3),
            vocab_size=4,
            corpus_digest="corpus",
        )
        fused, _ = fuse_rows(fusion, 0, 7)
        assert fused.kind.tolist() == [1] * 7
