"""Applying a fit: the fused rows of a learned strategy, and what they give the next token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fusestore.cache.rows import NO_LABEL
from fusestore.fuse.combine import drop_below, hold_labels, mix
from fusestore.fuse.fits.features import mean_entropy, row_features
from fusestore.fuse.fits.gate import gate_weights
from fusestore.fuse.fits.manifest import FitManifest, Fitted
from fusestore.fuse.fits.power import mix_power, temper
from fusestore.fuse.observation import BoolArray, FloatArray, Observed
from fusestore.fuse.project import Float32Array, SparseRows
from fusestore.fuse.scores import MAX_NATS, label_nats
from fusestore.fuse.strategies import normalize_rows


@dataclass(frozen=True)
class RowRule:
    """How rows of S sources are changed and averaged.

    Attributes:
        temperatures: float64 [S].
        spreads: float64 [S], number of tokens over which a source's tail is spread.
        order: of the generalized mean.
    """

    temperatures: FloatArray
    spreads: FloatArray
    order: float = 1.0

    @classmethod
    def of(cls, manifest: FitManifest) -> RowRule:
        """That of a fit."""
        return cls(np.array(manifest.temperatures), np.array(manifest.spreads), manifest.order)

    @property
    def is_tempered(self) -> bool:
        """Whether a temperature differs from 1."""
        return bool(np.any(self.temperatures != 1.0))

    def apply(self, observed: Observed, rows: SparseRows) -> SparseRows:
        """The rows of `observed`, at their source's temperature."""
        if not self.is_tempered:
            return rows
        temperature, spread = np.ones(len(rows[2])), np.ones(len(rows[2]))
        for index in range(observed.rows.shape[1]):
            own = observed.rows[:, index]
            own = own[own >= 0]
            temperature[own], spread[own] = self.temperatures[index], self.spreads[index]
        return temper(rows, temperature, spread)


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
    min_probability: float | None,
    keep_label: bool,
    members: Sequence[int] | None = None,
) -> Blend:
    """Fuse n positions by a fit.

    Args:
        fitted: the fit.
        observed: the positions.
        vocab_size: tokens of the target.
        top_k: entries to keep.
        min_probability: of an entry; see `drop_below`.
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
    rule = RowRule.of(manifest)
    rows, label = mix_at(observed, rule, weights, observed.labels, vocab_size, top_k)
    used = weights > 0
    if not keep_label and (rule.is_tempered or rule.order != 1.0):
        none = np.full_like(observed.labels, NO_LABEL)
        rows, _ = mix_at(observed, rule, weights, none, vocab_size, top_k)
    drop_below(min_probability, *rows)
    if keep_label:
        found = np.asarray(used.any(axis=1) & (observed.label_found | ~used).all(axis=1))
        hold_labels(found, observed.labels, np.exp(label), *rows)
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
    rule: RowRule,
    weights: FloatArray,
    labels: npt.NDArray[np.int32],
    vocab_size: int,
    top_k: int,
) -> tuple[SparseRows, FloatArray]:
    """The sources' rows, fused; and the log-probability of the labels, float64 [n].

    Args:
        observed: the positions.
        rule: temperatures and order.
        weights: float64 [n, S].
        labels: int32 [n]; all −100: no row knows its label.
        vocab_size: tokens of the target.
        top_k: entries to keep.
    """
    if rule.order == 1.0:
        projected, label_logprob = tempered(observed, rule, labels, vocab_size)
        rows = mix(observed.rows, weights, *projected, top_k)
        with np.errstate(divide="ignore"):
            terms = np.log(weights) + label_logprob
        return rows, np.logaddexp.reduce(terms, axis=1)
    projected = rule.apply(observed, holding(observed, labels)[0])
    return mix_power(observed.rows, weights, rule.order, projected, labels, vocab_size, top_k)


def tempered(
    observed: Observed, rule: RowRule, labels: npt.NDArray[np.int32], vocab_size: int
) -> tuple[SparseRows, FloatArray]:
    """All projected rows at their source's temperature, and the labels' log-probability [n, S].

    Rows at other temperatures than 1 hold their labels. A label without an exact probability has
    that of the row: see `label_nats`.
    """
    if not rule.is_tempered:
        return observed.projected, observed.label_logprob
    held, row_labels = holding(observed, labels)
    projected = rule.apply(observed, held)
    nats = label_nats(*projected, row_labels, vocab_size)
    result = np.zeros(observed.rows.shape)
    present = observed.rows >= 0
    result[present] = np.maximum(-nats[observed.rows[present]], -MAX_NATS)
    return projected, result


def holding(
    observed: Observed, labels: npt.NDArray[np.int32]
) -> tuple[SparseRows, npt.NDArray[np.int32]]:
    """All projected rows, each with its label of known probability as an entry more.

    Returns:
        R rows one entry wider, and the label of each, int32 [R], −100 for none.
    """
    ids, logprobs, tail = observed.projected
    row_labels = np.full(len(tail), NO_LABEL, np.int32)
    row_logprob = np.zeros(len(tail))
    exact = np.zeros(len(tail), np.bool_)
    for index in range(observed.rows.shape[1]):
        positions = np.flatnonzero(observed.rows[:, index] >= 0)
        rows = observed.rows[positions, index]
        row_labels[rows] = labels[positions]
        row_logprob[rows] = observed.label_logprob[positions, index]
        exact[rows] = observed.label_found[positions, index] & (labels[positions] != NO_LABEL)
    wide_ids = np.zeros((len(tail), ids.shape[1] + 1), np.int32)
    wide_logprobs = np.full(wide_ids.shape, -np.inf, np.float32)
    wide_ids[:, :-1], wide_logprobs[:, :-1] = ids, logprobs
    wide_tail = tail.copy()
    hold_labels(exact, row_labels, np.exp(row_logprob), wide_ids, wide_logprobs, wide_tail)
    return (wide_ids, wide_logprobs, wide_tail), row_labels
