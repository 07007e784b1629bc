"""Applying a fit: the fused rows of a learned strategy, and what they give the next token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fusestore.cache.rows import NO_LABEL
from fusestore.fuse.combine import hold_labels, mix
from fusestore.fuse.fits.features import mean_entropy, row_features
from fusestore.fuse.fits.gate import gate_weights
from fusestore.fuse.fits.manifest import FitManifest, Fitted
from fusestore.fuse.fits.power import UNKNOWN, mix_power, temper
from fusestore.fuse.observation import BoolArray, FloatArray, Observed
from fusestore.fuse.project import Float32Array, SparseRows
from fusestore.fuse.scores import MAX_NATS, label_nats
from fusestore.fuse.strategies import normalize_rows


@dataclass(frozen=True)
class Blend:
    """n positions of a learned fusion of S sources.

    Attributes:
        weights: float64 [n, S]; each row sums to 1, or to 0 where no source may supervise.
        rows: the fused rows.
        label_logprob: float64 [n], of the next token, before rows are cut.
    """

    weights: FloatArray
    rows: SparseRows
    label_logprob: FloatArray


def blend(
    fitted: Fitted,
    observed: Observed,
    vocab_size: int,
    top_k: int,
    *,
    keep_label: bool,
    members: Sequence[int] | None = None,
) -> Blend:
    """Fuse n positions by a fit.

    Args:
        fitted: the fit.
        observed: the positions.
        vocab_size: tokens of the target.
        top_k: entries to keep.
        keep_label: whether rows hold their next token.
        members: indices of the sources to fuse; None: all.
    """
    manifest = fitted.manifest
    allowed = observed.allowed
    if members is not None:
        allowed = allowed & np.isin(np.arange(allowed.shape[1]), members)
    features = None
    if manifest.gate is not None or manifest.fingerprint.by == "entropy":
        features = row_features(observed.rows, observed.projected, observed.known)
    weights = fitted_weights(fitted, observed.document, allowed, features)
    temperatures = np.array(manifest.temperatures)
    rows, label = mix_at(
        observed, temperatures, weights, manifest.order, observed.labels, vocab_size, top_k
    )
    used = weights > 0
    if keep_label:
        found = used.any(axis=1) & (observed.label_found | ~used).all(axis=1)
        held = np.flatnonzero(found)
        hold_labels(held, observed.labels[held], label[held], *rows)
    elif manifest.order != 1.0 or np.any(temperatures != 1.0):
        none = np.full_like(observed.labels, NO_LABEL)
        rows, _ = mix_at(observed, temperatures, weights, manifest.order, none, vocab_size, top_k)
    return Blend(weights, rows, label)


def fitted_weights(
    fitted: Fitted,
    document: npt.NDArray[np.int64],
    allowed: BoolArray,
    features: Float32Array | None,
) -> FloatArray:
    """Weights over the sources that have a row, float64 [n, S].

    Args:
        fitted: the fit.
        document: int64 [n], indices in the corpus.
        allowed: bool [n, S].
        features: float32 [n, S, F]; needed for a gate and for weights by entropy.
    """
    manifest = fitted.manifest
    if manifest.gate is not None and features is not None:
        gate = manifest.gate
        return gate_weights(
            *(features, allowed, np.array(gate.mean), np.array(gate.deviation)),
            np.array(gate.coefficients),
        )
    group = groups_of(manifest, fitted.domain, document, allowed, features)
    return normalize_rows(np.where(allowed, np.array(manifest.weights)[group], 0.0))


def groups_of(
    manifest: FitManifest,
    domain: npt.NDArray[np.int32] | None,
    document: npt.NDArray[np.int64],
    allowed: BoolArray,
    features: Float32Array | None,
) -> npt.NDArray[np.int64]:
    """The row of the fit's weights at each position, int64 [n]."""
    if manifest.fingerprint.by == "domain" and domain is not None:
        return domain[document].astype(np.int64)
    if manifest.fingerprint.by == "entropy" and features is not None:
        return entropy_groups(manifest.edges, features, allowed)
    return np.zeros(len(document), np.int64)


def entropy_groups(
    edges: Sequence[float], features: Float32Array, allowed: BoolArray
) -> npt.NDArray[np.int64]:
    """1 and up: the bin of each position's mean entropy, int64 [n]."""
    entropy = mean_entropy(features, allowed)
    return 1 + np.searchsorted(np.array(edges), entropy, side="right").astype(np.int64)


def mix_at(
    observed: Observed,
    temperatures: FloatArray,
    weights: FloatArray,
    order: float,
    labels: npt.NDArray[np.int32],
    vocab_size: int,
    top_k: int,
) -> tuple[SparseRows, FloatArray]:
    """The rows at fitted temperatures, fused; and the log-probability of the labels, float64 [n].

    Args:
        observed: the positions.
        temperatures: float64 [S].
        weights: float64 [n, S].
        order: of the generalized mean.
        labels: int32 [n]; all −100: no row knows its label.
        vocab_size: tokens of the target.
        top_k: entries to keep.
    """
    projected, label_logprob = tempered(observed, temperatures, labels, vocab_size)
    if order != 1.0:
        known = observed.label_found & (labels != NO_LABEL)[:, None]
        exact = np.where(known, label_logprob, UNKNOWN)
        return mix_power(observed.rows, weights, order, projected, labels, exact, vocab_size, top_k)
    rows = mix(observed.rows, weights, *projected, top_k)
    with np.errstate(divide="ignore"):
        terms = np.log(weights) + label_logprob
    return rows, np.logaddexp.reduce(terms, axis=1)


def tempered(
    observed: Observed,
    temperatures: FloatArray,
    labels: npt.NDArray[np.int32],
    vocab_size: int,
) -> tuple[SparseRows, FloatArray]:
    """All projected rows at their source's temperature, and the labels' log-probability [n, S].

    A label without an exact probability has that of the row: see `label_nats`.
    """
    if not np.any(temperatures != 1.0):
        return observed.projected, observed.label_logprob
    count = len(observed.projected[2])
    row_labels = np.full(count, NO_LABEL, np.int32)
    row_logprob = np.full(count, UNKNOWN)
    row_temperature = np.ones(count)
    places = []
    for index, temperature in enumerate(temperatures):
        positions = np.flatnonzero(observed.rows[:, index] >= 0)
        rows = observed.rows[positions, index]
        row_labels[rows] = labels[positions]
        found = observed.label_found[positions, index] & (labels[positions] != NO_LABEL)
        row_logprob[rows] = np.where(found, observed.label_logprob[positions, index], UNKNOWN)
        row_temperature[rows] = temperature
        places.append((positions, rows))
    projected, row_result = temper(
        observed.projected, row_temperature, row_labels, row_logprob, vocab_size
    )
    guessed = np.flatnonzero(np.isnan(row_result) & (row_labels != NO_LABEL))
    row_result[guessed] = -label_nats(
        *(column[guessed] for column in projected), row_labels[guessed], vocab_size
    )
    result = np.zeros(observed.rows.shape)
    for index, (positions, rows) in enumerate(places):
        result[positions, index] = np.maximum(np.nan_to_num(row_result[rows]), -MAX_NATS)
    return projected, result
