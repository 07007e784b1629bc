"""Scores by hand, and ranges against a byte-by-byte reference."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusestore.errors import NonFiniteError
from fusestore.fuse.scores import document_amounts, label_nats, range_amounts

LN2 = np.log(2.0)


def test_a_document_without_bos_does_not_count_its_first_token(helpers):
    # "ab" "c" "defg": the first token is given; 1 bit for 1 byte, then 3 bits for 4 bytes.
    tokens = helpers.table([[(5, 2), (6, 3), (7, 7)], [], [(5, 2)]])
    logprobs = np.array([-LN2, -3 * LN2, np.nan, np.nan], np.float32)
    amounts = document_amounts(tokens, logprobs)
    np.testing.assert_allclose(amounts.bits_per_byte(), [4 / 5, np.inf, np.inf], rtol=1e-6)
    np.testing.assert_allclose(amounts.token_ce(), [2 * LN2, np.inf, np.inf], rtol=1e-6)


def test_bos_makes_the_first_token_count(helpers):
    tokens = helpers.table([[(1, 0), (5, 2), (6, 4)]])
    amounts = document_amounts(tokens, np.array([-LN2, -LN2, np.nan], np.float32))
    np.testing.assert_allclose(amounts.bits_per_byte(), [0.5], rtol=1e-6)


def test_bits_are_spread_evenly_over_the_bytes_of_a_token(helpers):
    # Token ends 2, 4, 8; 2 bits over bytes (2, 4], 4 bits over (4, 8].
    tokens = helpers.table([[(5, 2), (6, 4), (7, 8)]])
    logprobs = np.array([-2 * LN2, -4 * LN2, np.nan], np.float32)
    start, stop = np.array([0, 3, 4, 6], np.int32), np.array([3, 5, 8, 6], np.int32)
    amounts = range_amounts(tokens, logprobs, np.zeros(4, np.int64), start, stop)
    np.testing.assert_allclose(amounts.nats / LN2, [1, 2, 4, 0], rtol=1e-6)
    assert amounts.num_bytes.tolist() == [1, 2, 4, 0]
    np.testing.assert_allclose(amounts.num_tokens, [0.5, 0.75, 1, 0])


def test_nan_in_a_document_that_is_not_skipped_is_an_error(helpers):
    tokens = helpers.table([[(5, 1), (6, 2)], [(5, 1), (6, 2), (7, 3)]])
    logprobs = np.array([-1, np.nan, -1, np.nan, np.nan], np.float32)
    with pytest.raises(NonFiniteError, match="token 2 of document 1"):
        document_amounts(tokens, logprobs)


def test_an_impossible_token_costs_much_but_not_infinitely(helpers):
    tokens = helpers.table([[(5, 1), (6, 2), (7, 3)]])
    logprobs = np.array([-np.inf, -1.0, np.nan], np.float32)
    ends = np.array([1, 2, 3], np.int32)
    ranges = range_amounts(tokens, logprobs, np.zeros(2, np.int64), ends[:2], ends[1:])
    np.testing.assert_allclose(ranges.nats, [1e6, 1.0], rtol=1e-6)
    assert np.isfinite(document_amounts(tokens, logprobs).nats).all()


def test_a_label_outside_the_entries_shares_the_tail():
    # Vocabulary of 6, 2 kept, tail 0.2 over the other 4.
    ids = np.array([[3, 1, 0]] * 3, np.int32)
    logprobs = np.array([[np.log(0.5), np.log(0.3), -np.inf]] * 3, np.float32)
    tail = np.full(3, np.log(0.2), np.float32)
    labels = np.array([1, 0, 5], np.int32)
    nats = label_nats(ids, logprobs, tail, labels, 6)
    np.testing.assert_allclose(np.exp(-nats), [0.3, 0.05, 0.05], rtol=1e-6)


def test_a_label_that_has_no_mass_left_costs_what_an_impossible_token_does():
    one = np.zeros((1, 1), np.int32), np.zeros((1, 1), np.float32), np.full(1, -np.inf, np.float32)
    assert label_nats(*one, np.array([1], np.int32), 2).tolist() == [1e6]
    assert label_nats(*one, np.array([1], np.int32), 1).tolist() == [1e6]


document = st.lists(
    st.tuples(st.integers(0, 3), st.floats(0.0, 9.0)), min_size=0, max_size=6
)  # (bytes of the token, nats spent on it)


@settings(max_examples=200, deadline=None)
@given(documents=st.lists(document, min_size=1, max_size=4), data=st.data())
def test_ranges_equal_a_byte_by_byte_count(helpers, documents, data):
    tables, logprobs, per_byte = [], [], []
    for pieces in documents:
        ends = np.cumsum([width for width, _ in pieces]).astype(int).tolist()
        tables.append([(0, end) for end in ends])
        logprobs += [-nats for _, nats in pieces[1:]] + [np.nan] * bool(pieces)
        # All that was spent between two different token ends lies evenly on the bytes between;
        # what ends where the first token ends lies on a byte of its own, numbered 0.
        spent = np.zeros(40)
        scored = np.zeros(40)
        waiting, before = 0.0, ends[0] if ends else 0
        groups = {}
        for (_, nats), end in list(zip(pieces, ends, strict=True))[1:]:
            groups[end] = groups.get(end, 0.0) + float(np.float32(nats))
        for end, nats in sorted(groups.items()):
            if end == before:
                waiting = nats
                continue
            spent[before + 1 : end + 1] += nats / (end - before)
            scored[before + 1 : end + 1] = 1
            before = end
        per_byte.append((spent, scored, waiting, ends[0] if ends else 0, ends[-1] if ends else 0))
    chosen = data.draw(st.integers(0, len(documents) - 1))
    low = data.draw(st.integers(0, 12))
    high = data.draw(st.integers(low, 20))
    tokens = helpers.table(tables)
    amounts = range_amounts(
        tokens,
        np.array(logprobs, np.float32),
        np.array([chosen]),
        np.array([low], np.int32),
        np.array([high], np.int32),
    )
    spent, scored, waiting, first, last = per_byte[chosen]
    expected = spent[low + 1 : high + 1].sum()
    if low <= first < min(high, last):
        expected += waiting
    np.testing.assert_allclose(amounts.nats, [expected], atol=1e-5)
    assert amounts.num_bytes.tolist() == [scored[low + 1 : high + 1].sum()]


@settings(max_examples=50, deadline=None)
@given(documents=st.lists(document, min_size=1, max_size=4))
def test_ranges_that_cover_a_document_add_up_to_it(helpers, documents):
    tables, logprobs = [], []
    for pieces in documents:
        ends = np.cumsum([width for width, _ in pieces]).astype(int).tolist()
        tables.append([(0, end) for end in ends])
        logprobs += [-nats for _, nats in pieces[1:]] + [np.nan] * bool(pieces)
    tokens = helpers.table(tables)
    labels = np.array(logprobs, np.float32)
    whole = document_amounts(tokens, labels)
    size = len(documents)
    covered = range_amounts(
        tokens, labels, np.arange(size), np.zeros(size, np.int32), np.full(size, 30, np.int32)
    )
    some = whole.num_bytes > 0
    np.testing.assert_allclose(covered.nats[some], whole.nats[some], atol=1e-6)
    np.testing.assert_allclose(covered.num_tokens[some], whole.num_tokens[some])
    np.testing.assert_allclose(covered.num_bytes, whole.num_bytes)
