"""Mixing against a dense float64 sum."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusestore.errors import InvalidInputError
from fusestore.fuse.combine import drop_below, hold_labels, mix, round_entries
from fusestore.fuse.project import project
from fusestore.fuse.strategies import normalize_rows


def test_two_rows_by_hand():
    # 0.75 · {1: 0.8, 2: 0.2} + 0.25 · {2: 0.6, tail: 0.4} = {1: 0.6, 2: 0.3, tail: 0.1}
    ids, logprobs, tail = mix(
        np.array([[0, 1]]),
        np.array([[0.75, 0.25]]),
        np.array([[1, 2], [2, 0]], np.int32),
        np.array([[np.log(0.8), np.log(0.2)], [np.log(0.6), -np.inf]], np.float32),
        np.array([-np.inf, np.log(0.4)], np.float32),
        3,
    )
    assert ids.tolist() == [[1, 2, 0]]
    np.testing.assert_allclose(np.exp(logprobs), [[0.6, 0.3, 0.0]], rtol=1e-6)
    np.testing.assert_allclose(np.exp(tail), [0.1], rtol=1e-6)


def test_a_weight_without_a_row_is_refused():
    with pytest.raises(InvalidInputError, match="no row"):
        mix(
            np.array([[-1]]),
            np.array([[1.0]]),
            np.zeros((1, 1), np.int32),
            np.zeros((1, 1), np.float32),
            np.zeros(1, np.float32),
            1,
        )


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_positions=st.integers(0, 6),
    num_sources=st.integers(1, 4),
    width=st.integers(1, 6),
    extra=st.integers(0, 8),
    k_out=st.integers(1, 12),
)
def test_mixture_equals_the_dense_sum(
    helpers, seed, num_positions, num_sources, width, extra, k_out
):
    rng = np.random.default_rng(seed)
    vocab_size = width + extra
    num_rows = num_positions * num_sources
    raw = helpers.random_rows(rng, num_rows, width, vocab_size, [])
    ids, logprobs, tail = project(
        raw.ids, raw.logprobs, raw.tail, np.arange(vocab_size, dtype=np.int32), width
    )
    rows = np.arange(num_rows).reshape(num_positions, num_sources)
    weights = normalize_rows(np.where(rng.random(rows.shape) < 0.4, 0.0, rng.random(rows.shape)))
    rows = np.where(weights > 0, rows, -1)

    full = np.zeros((num_positions, vocab_size + 1))
    dense = helpers.dense(ids, logprobs, tail, vocab_size)
    for position in range(num_positions):
        for source in range(num_sources):
            if weights[position, source] > 0:
                full[position] += weights[position, source] * dense[rows[position, source]]
        if not weights[position].any():
            full[position, -1] = 1.0

    helpers.assert_sparse_form(*mix(rows, weights, ids, logprobs, tail, k_out), full, k_out)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), k_out=st.integers(1, 7))
def test_one_source_passes_as_if_it_were_mixed_with_itself(helpers, seed, k_out):
    rng = np.random.default_rng(seed)
    raw = helpers.random_rows(rng, 8, 5, 9, [])
    projected = project(raw.ids, raw.logprobs, raw.tail, np.arange(9, dtype=np.int32), 5)
    rows = np.arange(8)[:, None]
    alone = mix(rows, np.ones((8, 1)), *projected, k_out)
    twice = mix(np.repeat(rows, 2, axis=1), np.full((8, 2), 0.5), *projected, k_out)
    np.testing.assert_allclose(np.exp(alone[1]), np.exp(twice[1]), rtol=1e-5)
    np.testing.assert_allclose(np.exp(alone[2]), np.exp(twice[2]), rtol=1e-5, atol=1e-7)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_rows=st.integers(0, 6),
    width=st.integers(1, 8),
    least=st.floats(1e-6, 0.99),
)
def test_entries_below_the_least_probability_join_the_tail(helpers, seed, num_rows, width, least):
    rng = np.random.default_rng(seed)
    raw = helpers.random_rows(rng, num_rows, width, 12, [])
    before = project(raw.ids, raw.logprobs, raw.tail, np.arange(12, dtype=np.int32), width)
    after = (before[0].copy(), before[1].copy(), before[2].copy())
    drop_below(None, *after)
    for array, same in zip(after, before, strict=True):
        np.testing.assert_array_equal(array, same)
    drop_below(least, *after)
    for row in range(num_rows):
        kept, tail = [], np.exp(np.float64(before[2][row]))
        for entry in range(width):
            probability = np.exp(np.float64(before[1][row, entry]))
            if entry == 0 or probability >= least:
                kept.append((before[0][row, entry], before[1][row, entry]))
            else:
                tail += probability
        kept += [(0, -np.inf)] * (width - len(kept))
        assert list(zip(after[0][row], after[1][row], strict=True)) == kept
        np.testing.assert_allclose(np.exp(np.float64(after[2][row])), tail, rtol=1e-6, atol=1e-38)


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), width=st.integers(1, 8), least=st.floats(1e-3, 0.99))
def test_a_row_without_its_least_entries_holds_its_label_and_its_mass(helpers, seed, width, least):
    rng = np.random.default_rng(seed)
    raw = helpers.random_rows(rng, 8, width, 12, [])
    rows = project(raw.ids, raw.logprobs, raw.tail, np.arange(12, dtype=np.int32), width)
    labels, probability = rng.integers(0, 12, 8).astype(np.int32), rng.random(8)
    drop_below(least, *rows)
    hold_labels(np.ones(8, np.bool_), labels, probability, *rows)
    ids, logprobs, tail = (array.astype(np.float64) for array in rows)
    np.testing.assert_allclose(np.exp(logprobs).sum(axis=1) + np.exp(tail), 1.0, atol=1e-5)
    held = (ids == labels[:, None]) & np.isfinite(logprobs)
    assert np.all(held.sum(axis=1) == 1)
    np.testing.assert_allclose(np.exp(logprobs[held]), probability, rtol=1e-5)


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    width=st.integers(1, 8),
    step=st.floats(1 / 512, 1.0),
    scale=st.floats(0.0, 6.0),
)
def test_rounded_entries_lie_on_the_grid_and_rows_keep_their_mass(
    helpers, seed, width, step, scale
):
    rng = np.random.default_rng(seed)
    masses = np.sort(np.exp(scale * rng.standard_normal((6, width + 1))), axis=1)[:, ::-1]
    logprobs = np.log(masses / masses.sum(axis=1, keepdims=True))
    ids = np.argsort(rng.random((6, 12)), axis=1)[:, :width].astype(np.int32)
    before = (ids, logprobs[:, :width].astype(np.float32), logprobs[:, width].astype(np.float32))
    for row_ids, row in zip(before[0], before[1], strict=True):
        row_ids[:] = row_ids[np.lexsort((row_ids, -row))]
    absent = int(rng.integers(width + 1))
    before[0][0, absent:], before[1][0, absent:] = 0, -np.inf
    after = (before[0].copy(), before[1].copy(), before[2].copy())
    round_entries(None, *after)
    round_entries(step, *after)
    np.testing.assert_array_equal(after[2], before[2])
    for row in range(6):
        old = {t: np.float64(v) for t, v in zip(ids[row], before[1][row], strict=True) if v > -9e9}
        expected = {t: np.round(v / step) * step for t, v in list(old.items())[1:]}
        gained = sum(np.exp(np.float32(v), dtype=float) for v in expected.values())
        gained -= sum(np.exp(v) for v in list(old.values())[1:])
        if old:
            token, first = next(iter(old.items()))
            if gained > np.exp(first) / 2:
                expected = dict(old)
            else:
                expected[token] = np.log(np.exp(first) - gained)
        ordered = sorted(expected.items(), key=lambda entry: (-np.float32(entry[1]), entry[0]))
        present = len(ordered)
        assert np.all(after[1][row, present:] == -np.inf)
        assert np.all(after[0][row, present:] == 0)
        np.testing.assert_allclose(after[1][row, :present], [v for _, v in ordered], rtol=1e-5)
        assert dict(zip(after[0][row, :present], after[1][row], strict=False)).keys() == old.keys()
        mass, kept_mass = (np.exp(rows[1][row], dtype=float).sum() for rows in (before, after))
        np.testing.assert_allclose(kept_mass, mass, rtol=1e-5)
        keys = list(zip(-after[1][row, :present], after[0][row, :present], strict=True))
        assert keys == sorted(keys)
