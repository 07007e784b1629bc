"""Mixture weights and gates: against slow references, and never worse after a step."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fusestore.fuse.fits.features import mean_entropy, row_features
from fusestore.fuse.fits.gate import RIDGE, fit_gate, gate_weights, scale_of
from fusestore.fuse.fits.mixture_weights import SMALLEST, fit_weights


def random_terms(rng, count, num_sources):
    label_logprob = -rng.exponential(2.0, (count, num_sources)) * rng.uniform(0.5, 2, num_sources)
    allowed = rng.random((count, num_sources)) < 0.8
    return label_logprob, allowed


def likelihood(weights, label_logprob, allowed):
    """Σ log(Σ w p / Σ w), one position at a time; positions of one source say nothing."""
    total = 0.0
    for logprob, present in zip(label_logprob, allowed, strict=True):
        if present.sum() > 1:
            mixed = (weights[present] * np.exp(logprob[present])).sum() / weights[present].sum()
            total += np.log(mixed)
    return total


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_sources=st.integers(1, 4),
    count=st.integers(0, 60),
    prior=st.booleans(),
)
def test_no_step_lowers_the_likelihood_and_no_other_weights_are_better(
    seed, num_sources, count, prior
):
    rng = np.random.default_rng(seed)
    label_logprob, allowed = random_terms(rng, count, num_sources)
    pseudo = 3.0 * rng.dirichlet(np.ones(num_sources)) + 0.01 if prior else None
    group = rng.integers(0, 2, count)
    weights, history = fit_weights(label_logprob, allowed, group, 3, pseudo)
    assert np.all(np.diff(history) > -1e-6)
    np.testing.assert_allclose(weights.sum(axis=1), 1.0)
    assert np.all(weights >= SMALLEST / 2)
    extra = np.zeros(num_sources) if pseudo is None else pseudo
    for index in range(3):
        own = group == index

        def value(tried, own=own):
            return (
                likelihood(tried, label_logprob[own], allowed[own]) + (extra * np.log(tried)).sum()
            )

        best = value(weights[index])
        for _ in range(30):
            other = rng.dirichlet(np.ones(num_sources))
            other = np.maximum(0.9 * weights[index] + 0.1 * other, SMALLEST)
            assert value(other / other.sum()) <= best + 1e-3


def test_weights_are_the_shares_that_the_text_was_drawn_by():
    rng = np.random.default_rng(0)
    share, count = np.array([0.7, 0.2, 0.1]), 40_000
    rows = rng.dirichlet(np.full(20, 0.3), (count, 3))
    drawn = rng.choice(3, count, p=share)
    labels = (rows[np.arange(count), drawn].cumsum(axis=1) > rng.random((count, 1))).argmax(axis=1)
    label_logprob = np.log(np.maximum(rows[np.arange(count), :, labels], 1e-300))
    allowed = np.ones((count, 3), np.bool_)
    weights, _ = fit_weights(label_logprob, allowed, np.zeros(count, np.int64), 1)
    np.testing.assert_allclose(weights[0], share, atol=0.01)


def test_a_group_without_text_has_the_weights_of_the_prior():
    weights, _ = fit_weights(
        np.zeros((0, 2)), np.zeros((0, 2), np.bool_), np.zeros(0, np.int64), 1, np.array([3.0, 1.0])
    )
    np.testing.assert_allclose(weights, [[0.75, 0.25]])


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), num_sources=st.integers(2, 3), count=st.integers(5, 60))
def test_a_gate_ends_where_the_objective_is_flat(seed, num_sources, count):
    rng = np.random.default_rng(seed)
    label_logprob, allowed = random_terms(rng, count, num_sources)
    features = rng.normal(size=(count, num_sources, 2)).astype(np.float32)
    mean, deviation = scale_of(features, allowed)
    coefficients, history = fit_gate(features, label_logprob, allowed, mean, deviation)
    assert np.all(np.diff(history) >= 0)

    def objective(values):
        total = -0.5 * RIDGE * (values**2).sum()
        for index in range(count):
            present = allowed[index]
            if present.sum() < 2:
                continue
            scaled = np.clip((features[index] - mean) / deviation, -8, 8)
            logits = values[:, -1] + (values[:, :-1] * scaled).sum(axis=1)
            odds = np.exp(logits) * present
            total += np.log((odds / odds.sum() * np.exp(label_logprob[index]) * present).sum())
        return total

    best = objective(coefficients)
    assert np.isclose(best, history[-1])
    for _ in range(20):
        moved = coefficients + 0.05 * rng.normal(size=coefficients.shape)
        assert objective(moved) <= best + 1e-4 * count
    weights = gate_weights(features, allowed, mean, deviation, coefficients)
    np.testing.assert_allclose(weights.sum(axis=1), allowed.any(axis=1).astype(float))
    assert np.all(weights[~allowed] == 0)


def test_a_gate_finds_which_source_to_trust():
    rng = np.random.default_rng(1)
    count = 4_000
    sure = rng.random(count) < 0.5
    features = np.zeros((count, 2, 1), np.float32)
    features[:, 0, 0] = sure
    label_logprob = np.where(sure[:, None], [-0.1, -3.0], [-3.0, -0.1])
    allowed = np.ones((count, 2), np.bool_)
    mean, deviation = scale_of(features, allowed)
    coefficients, _ = fit_gate(features, label_logprob, allowed, mean, deviation)
    weights = gate_weights(features, allowed, mean, deviation, coefficients)
    assert weights[sure, 0].min() > 0.95
    assert weights[~sure, 1].min() > 0.95


def test_features_by_hand():
    ids = np.array([[4, 2], [2, 4], [1, 0]], np.int32)
    logprobs = np.log(np.array([[0.5, 0.25], [0.75, 0.25], [0.5, 1.0]], np.float32))
    logprobs[2, 1] = -np.inf
    tail = np.log(np.array([0.25, 1e-30, 0.5], np.float32))
    tail[1] = -np.inf
    rows = np.array([[0, 1], [2, -1]])
    known = np.array([[1.0, 0.5], [1.0, 0.0]], np.float32)
    got = row_features(rows, (ids, logprobs, tail), known)
    entropy = -(0.5 * np.log(0.5) + 2 * 0.25 * np.log(0.25))
    other = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    np.testing.assert_allclose(got[0, 0], [entropy, np.log(0.5), 0.25, 1.0, 0.25], rtol=1e-6)
    np.testing.assert_allclose(got[0, 1], [other, np.log(0.75), 0.0, 0.5, 0.25], rtol=1e-6)
    np.testing.assert_allclose(got[1, 0], [np.log(2), np.log(0.5), 0.5, 1.0, 0.0], rtol=1e-6)
    assert np.all(got[1, 1] == 0)
    np.testing.assert_allclose(mean_entropy(got, rows >= 0), [(entropy + other) / 2, np.log(2)])
