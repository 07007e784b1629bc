"""A gate: mixture weights that follow from the rows at each position.

w = softmax over the sources of `bias_s + Σ_f coefficient_sf · feature_sf`, the features scaled to
mean 0 and deviation 1. Maximizes Σ log Σ w_s p_s(label) less half the squared coefficients, by
Lange's EM gradient method (1995): Newton's step for the expected memberships, and a line search,
so the objective never falls. The start is even weights.
"""

from __future__ import annotations

import math

import numba
import numpy as np
import numpy.typing as npt

from fusestore.fuse.project import Float32Array, Float64Array

TOLERANCE = 1e-9
MOST_STEPS = 200
RIDGE = 1.0
"""Of the penalty, in nats of all positions together: it decides only where text is scarce."""

FARTHEST = 8.0
"""Deviations from the mean at which a feature is cut, so that no row decides by one odd value."""


def scale_of(
    features: Float32Array, allowed: npt.NDArray[np.bool_]
) -> tuple[Float64Array, Float64Array]:
    """Mean and deviation of each source's features, float64 [sources, F]; a constant one has 1."""
    num_sources, num_features = features.shape[1:]
    mean = np.zeros((num_sources, num_features))
    deviation = np.ones((num_sources, num_features))
    for source in range(num_sources):
        values = features[allowed[:, source], source].astype(np.float64)
        if len(values):
            mean[source] = values.mean(axis=0)
            spread = values.std(axis=0)
            deviation[source] = np.where(spread > 1e-6, spread, 1.0)
    return mean, deviation


def gate_weights(
    features: Float32Array,
    allowed: npt.NDArray[np.bool_],
    mean: Float64Array,
    deviation: Float64Array,
    coefficients: Float64Array,
) -> Float64Array:
    """Weights over the sources that have a row, float64 [n, sources]; each row's sum 1, or 0.

    Args:
        features: float32 [n, sources, F].
        allowed: bool [n, sources].
        mean: float64 [sources, F].
        deviation: float64 [sources, F].
        coefficients: float64 [sources, F + 1], the last of them the bias.
    """
    weights = np.zeros(allowed.shape)
    _gate_weights(features, allowed, mean, deviation, coefficients, weights)
    return weights


def fit_gate(
    features: Float32Array,
    label_logprob: Float64Array,
    allowed: npt.NDArray[np.bool_],
    mean: Float64Array,
    deviation: Float64Array,
) -> tuple[Float64Array, list[float]]:
    """Coefficients float64 [sources, F + 1], and the objective after every step.

    Args:
        features: float32 [n, sources, F].
        label_logprob: float64 [n, sources].
        allowed: bool [n, sources].
        mean: float64 [sources, F].
        deviation: float64 [sources, F].
    """
    num_sources, num_features = features.shape[1:]
    size = num_sources * (num_features + 1)
    coefficients = np.zeros((num_sources, num_features + 1))
    compared = np.flatnonzero(allowed.sum(axis=1) > 1)
    data = (features[compared], label_logprob[compared], allowed[compared], mean, deviation)
    gradient, curvature = np.zeros(size), np.zeros((size, size))

    def objective(values: Float64Array, *, slopes: bool) -> float:
        gradient[:], curvature[:] = 0.0, 0.0
        likelihood = _gate_terms(*data, values, gradient, curvature, slopes)
        return float(likelihood - 0.5 * RIDGE * (values**2).sum())

    history = [objective(coefficients, slopes=True)]
    stretch = 1.0
    for _ in range(MOST_STEPS):
        direction = np.linalg.solve(
            curvature + RIDGE * np.eye(size), gradient - RIDGE * coefficients.ravel()
        ).reshape(coefficients.shape)
        best = history[-1]
        while stretch > 1e-6:
            reached = objective(coefficients + stretch * direction, slopes=False)
            if reached > best:
                break
            stretch /= 2.0
        else:
            break
        coefficients = coefficients + stretch * direction
        history.append(objective(coefficients, slopes=True))
        stretch = min(8.0, 2.0 * stretch)
        if history[-1] - best < TOLERANCE * max(1, len(compared)):
            break
    return coefficients, history


@numba.njit(cache=True)
def _softmax_at(features, allowed, mean, deviation, coefficients, scaled, weights):
    """Of one position: the scaled features and a 1 in `scaled` [S, F + 1]; weights in [S]."""
    num_sources, num_features = features.shape
    largest = -math.inf
    for source in range(num_sources):
        weights[source] = -math.inf
        if not allowed[source]:
            continue
        logit = coefficients[source, num_features]
        scaled[source, num_features] = 1.0
        for index in range(num_features):
            value = (features[source, index] - mean[source, index]) / deviation[source, index]
            value = min(max(value, -FARTHEST), FARTHEST)
            scaled[source, index] = value
            logit += coefficients[source, index] * value
        weights[source] = logit
        largest = max(largest, logit)
    total = 0.0
    for source in range(num_sources):
        weights[source] = math.exp(weights[source] - largest) if allowed[source] else 0.0
        total += weights[source]
    if total > 0.0:
        for source in range(num_sources):
            weights[source] /= total


@numba.njit(cache=True)
def _gate_weights(features, allowed, mean, deviation, coefficients, out):
    scaled = np.zeros((features.shape[1], features.shape[2] + 1))
    for position in range(len(features)):
        _softmax_at(
            *(features[position], allowed[position], mean, deviation, coefficients),
            *(scaled, out[position]),
        )


@numba.njit(cache=True)
def _gate_terms(
    features,
    label_logprob,
    allowed,
    mean,
    deviation,
    coefficients,
    gradient,
    curvature,
    slopes,
):
    """The log-likelihood; with `slopes` its gradient and the curvature of the expected weights."""
    num_positions, num_sources, num_features = features.shape
    width = num_features + 1
    scaled = np.zeros((num_sources, width))
    weights = np.zeros(num_sources)
    total = 0.0
    for position in range(num_positions):
        _softmax_at(
            *(features[position], allowed[position], mean, deviation, coefficients),
            *(scaled, weights),
        )
        largest = -math.inf
        for source in range(num_sources):
            if allowed[position, source]:
                largest = max(largest, label_logprob[position, source])
        mass = 0.0
        for source in range(num_sources):
            if allowed[position, source]:
                mass += weights[source] * math.exp(label_logprob[position, source] - largest)
        total += largest + math.log(max(mass, 1e-300))
        if not slopes:
            continue
        for source in range(num_sources):
            if not allowed[position, source]:
                continue
            likelihood = math.exp(label_logprob[position, source] - largest)
            slope = weights[source] * likelihood / max(mass, 1e-300) - weights[source]
            for index in range(width):
                gradient[source * width + index] += slope * scaled[source, index]
            for other in range(num_sources):
                if not allowed[position, other]:
                    continue
                product = -weights[source] * weights[other]
                if other == source:
                    product += weights[source]
                for index in range(width):
                    value = product * scaled[source, index]
                    for second in range(width):
                        curvature[source * width + index, other * width + second] += (
                            value * scaled[other, second]
                        )
    return total
