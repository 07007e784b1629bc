"""What the benchmark of large runs makes of captured documents."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.scale import Captured, Repeated, in_vocabulary, order_of_documents, truncated
from fusestore.cache.rows import Rows
from fusestore.tokenizers.token_table import TokenTable

LENGTHS = np.array([3, 1, 5, 2])
NUM_TOKENS = int(LENGTHS.sum())


def captured(k: int = 4) -> Captured:
    rng = np.random.default_rng(0)
    mass = np.sort(rng.dirichlet(np.ones(k + 1), NUM_TOKENS), axis=1)[:, ::-1]
    logprobs = np.log(mass).astype(np.float32)
    ids = np.argsort(rng.random((NUM_TOKENS, 50)), axis=1)[:, :k].astype(np.int32)
    label = np.log(rng.random(NUM_TOKENS)).astype(np.float32)
    ends = np.concatenate([np.arange(1, length + 1) * 2 for length in LENGTHS]).astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(LENGTHS)])
    tokens = TokenTable(rng.integers(0, 50, NUM_TOKENS).astype(np.int32), ends, offsets)
    rows = Rows(ids, logprobs[:, :k].copy(), logprobs[:, k].copy(), label)
    return Captured(tokens, rows, "0" * 64, 50)


@given(st.integers(1, 60), st.data())
def test_documents_repeat_with_their_tokens_and_rows(num_tokens, data):
    source = captured()
    documents = order_of_documents(source, num_tokens)
    repeated = Repeated.of(source, documents)
    total = int(repeated.document_offsets[-1])
    assert total >= num_tokens > total - int(LENGTHS[documents[-1]])
    offsets = source.tokens.document_offsets
    expected = np.concatenate([np.arange(*offsets[i : i + 2]) for i in documents])
    start = data.draw(st.integers(0, total - 1))
    stop = data.draw(st.integers(start + 1, total))
    assert np.array_equal(repeated.places(start, stop), expected[start:stop])
    assert np.array_equal(repeated[start:stop].ids, source.rows.ids[expected[start:stop]])
    for round_begin in range(0, len(documents) - len(LENGTHS), len(LENGTHS)):
        assert set(documents[round_begin : round_begin + len(LENGTHS)]) == set(range(len(LENGTHS)))


def test_rows_in_their_own_vocabulary_stay_as_they_are():
    source = captured()
    same = in_vocabulary(source.rows, source.tokens, source.tokens, np.arange(50, dtype=np.int32))
    assert np.array_equal(same.ids, source.rows.ids)
    assert np.allclose(same.logprobs, source.rows.logprobs, atol=1e-6)
    assert np.allclose(same.tail, source.rows.tail, atol=1e-6)


def test_rows_in_another_vocabulary_are_distributions_of_distinct_ids():
    source = captured()
    mapped = (np.arange(50) // 10).astype(np.int32)
    mapped[7] = -1
    rows = in_vocabulary(source.rows, source.tokens, source.tokens, mapped)
    mass = np.exp(rows.logprobs).sum(axis=1) + np.exp(rows.tail)
    assert np.allclose(mass, 1, atol=1e-5)
    assert all(len(set(ids)) == len(ids) for ids in rows.ids.tolist())
    assert np.all(np.diff(rows.logprobs, axis=1) <= 0)
    fewer = truncated(rows, 2)
    assert np.allclose(np.exp(fewer.logprobs).sum(axis=1) + np.exp(fewer.tail), 1, atol=1e-5)
