"""Temperatures and generalized means against dense float64 rows, and against plain mixtures."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusestore.fuse.combine import mix
from fusestore.fuse.fits.power import mix_power, temper

VOCAB = 9


def random_rows(rng, count, width):
    """Rows by falling log-probability, of mass 1; some without a tail, some without entries."""
    ids = np.zeros((count, width), np.int32)
    logprobs = np.full((count, width), -np.inf, np.float32)
    tail = np.zeros(count, np.float32)
    for row in range(count):
        used = int(rng.integers(0, width + 1))
        mass = rng.dirichlet(np.full(used + 1, 0.5))
        if used and rng.random() < 0.2:
            mass = np.append(mass[:-1] / mass[:-1].sum(), 0.0)
        mass[:used] = np.sort(mass[:used])[::-1]
        with np.errstate(divide="ignore"):
            logprobs[row, :used] = np.log(mass[:used])
            tail[row] = np.log(mass[used])
        ids[row, :used] = rng.permutation(VOCAB)[:used]
    return ids, logprobs, tail


def dense(rows, row, width=VOCAB):
    """float64 [VOCAB] of one row, its tail spread over what it lacks."""
    ids, logprobs, tail = rows
    result = np.zeros(width)
    kept = np.isfinite(logprobs[row])
    result[ids[row, kept]] = np.exp(logprobs[row, kept].astype(np.float64))
    lacking = np.setdiff1d(np.arange(width), ids[row, kept])
    result[lacking] = np.exp(np.float64(tail[row])) / max(1, len(lacking))
    return result


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    temperature=st.floats(0.3, 3.0),
    spread=st.integers(1, 50),
)
def test_temperatures_equal_dense_powers(seed, temperature, spread):
    rng = np.random.default_rng(seed)
    rows = random_rows(rng, 4, 5)
    ids, logprobs, tail = temper(rows, np.full(4, temperature), np.full(4, float(spread)))
    for row in range(4):
        kept = np.isfinite(rows[1][row])
        mass = np.exp(rows[1][row, kept].astype(np.float64))
        outside = np.full(spread, np.exp(np.float64(rows[2][row])) / spread)
        whole = np.concatenate([mass, outside]) ** (1 / temperature)
        whole /= whole.sum()
        np.testing.assert_allclose(np.exp(logprobs[row, kept]), whole[: kept.sum()], rtol=1e-5)
        np.testing.assert_allclose(
            np.exp(tail[row]), whole[kept.sum() :].sum(), rtol=1e-5, atol=1e-30
        )
        assert np.array_equal(ids[row], rows[0][row])


def test_temperature_1_changes_nothing():
    rows = random_rows(np.random.default_rng(3), 20, 5)
    _, logprobs, tail = temper(rows, np.ones(20), np.full(20, 7.0))
    np.testing.assert_allclose(logprobs, rows[1], atol=1e-6)
    np.testing.assert_allclose(tail, rows[2], atol=1e-6)


def mean(probabilities, weights, order):
    """float64 [VOCAB], by the definition."""
    if order == 0:
        with np.errstate(divide="ignore"):
            powers = np.exp((weights[:, None] * np.log(probabilities)).sum(axis=0))
    else:
        powers = (weights[:, None] * probabilities**order).sum(axis=0) ** (1 / order)
    return powers


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_sources=st.integers(1, 3),
    order=st.sampled_from([0.0, 0.05, 0.3, 0.7, 1.0]),
    k_out=st.integers(1, VOCAB),
)
def test_generalized_means_equal_dense_ones(helpers, seed, num_sources, order, k_out):
    rng = np.random.default_rng(seed)
    count = 4
    projected = random_rows(rng, count * num_sources, 4)
    rows = np.arange(count * num_sources).reshape(count, num_sources)
    weights = rng.dirichlet(np.ones(num_sources), count)
    weights[rng.random(weights.shape) < 0.2] = 0.0
    total = weights.sum(axis=1, keepdims=True)
    weights = np.where(total > 0, weights / np.where(total > 0, total, 1.0), 0.0)
    labels = rng.integers(-1, VOCAB, count).astype(np.int32)
    sparse, label = mix_power(rows, weights, order, projected, labels, VOCAB, k_out)
    for position in range(count):
        used = np.flatnonzero(weights[position])
        if not len(used):
            assert sparse[2][position] == 0
            assert label[position] == -np.inf
            continue
        sources = np.array([dense(projected, rows[position, source]) for source in used])
        expected = mean(sources, weights[position, used], order)
        if expected.sum() == 0:
            assert sparse[2][position] == 0
            continue
        expected /= expected.sum()
        union = {
            int(token)
            for source in used
            for token, logprob in zip(
                projected[0][rows[position, source]],
                projected[1][rows[position, source]],
                strict=True,
            )
            if np.isfinite(logprob)
        }
        if labels[position] >= 0:
            union.add(int(labels[position]))
            np.testing.assert_allclose(
                np.exp(label[position]), expected[labels[position]], rtol=1e-4, atol=1e-12
            )
        kept = np.isfinite(sparse[1][position])
        np.testing.assert_allclose(
            np.exp(sparse[1][position, kept]), expected[sparse[0][position, kept]], rtol=1e-4
        )
        wanted = sorted((expected[sorted(union)]).tolist(), reverse=True)[:k_out]
        np.testing.assert_allclose(
            np.exp(sparse[1][position, kept]), [w for w in wanted if w > 0], rtol=1e-4, atol=1e-12
        )
        mass = np.exp(sparse[1][position, kept].astype(np.float64)).sum()
        assert mass + np.exp(np.float64(sparse[2][position])) == pytest.approx(1.0, abs=1e-5)


def test_order_1_is_the_mixture_but_for_the_shares_of_tails():
    rng = np.random.default_rng(5)
    projected = random_rows(rng, 60, 4)
    rows = np.arange(60).reshape(30, 2)
    weights = rng.dirichlet(np.ones(2), 30)
    none = np.full(30, -100, np.int32)
    sparse, _ = mix_power(rows, weights, 1.0, projected, none, 10**7, 8)
    ids, logprobs, tail = projected
    plain = mix(rows, weights, ids, logprobs, tail, 8)
    np.testing.assert_allclose(np.exp(sparse[1]), np.exp(plain[1]), atol=1e-6)
    np.testing.assert_allclose(np.exp(sparse[2]), np.exp(plain[2]), atol=1e-6)
