"""Fitting learned strategies to the labels of one split, from caches alone.

Weights and gates are fitted to every position that is read, at most about a million, spread evenly
over the split. Temperatures and orders need whole rows, and are fitted to an even sample of these.
The same inputs give the same parameters, which are rounded to six digits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fusestore.errors import IncompatibleError
from fusestore.fuse.fits.blend import RowRule, entropy_groups, mix_at, tempered
from fusestore.fuse.fits.features import mean_entropy
from fusestore.fuse.fits.fit_data import Reader, Terms, sample_of, take, terms_of
from fusestore.fuse.fits.gate import fit_gate, gate_weights, scale_of
from fusestore.fuse.fits.line_search import fit_order, golden
from fusestore.fuse.fits.manifest import FitFingerprint, FitManifest, GateParameters
from fusestore.fuse.fits.mixture_weights import fit_weights
from fusestore.fuse.fusion import Fusion
from fusestore.fuse.observation import BoolArray, FloatArray, Observed, is_kept
from fusestore.fuse.strategies import normalize_rows
from fusestore.progress import Progress, ignore_progress
from fusestore.store.receipts import FileRecord

ENTROPY_BINS = 8
PRIOR = 256.0
"""Positions by which the weights of a domain or bin are drawn to those of all."""


def fit_strategies(
    fusion: Fusion,
    fingerprints: Sequence[FitFingerprint],
    domains: Sequence[str] = (),
    progress: Progress = ignore_progress,
) -> list[FitManifest]:
    """Fit learned strategies to a split.

    Args:
        fusion: the sources on the split; its own strategy has no effect.
        fingerprints: of the fits to make.
        domains: of every document of the corpus; needed for weights by domain.
        progress: receives the positions that were read.

    Raises:
        IncompatibleError: rows of a source are samples, which give no probability for a label that
            was not drawn.
        InvalidInputError: no source may supervise a position with a next token.
        NonFiniteError, CorruptionError: a cache is damaged.
    """
    sampled = [source.name for source in fusion.sources if source.draws]
    if sampled:
        raise IncompatibleError(
            f"The rows of {', '.join(sampled)} are samples, which do not give the probability of a "
            "label that was not drawn, so nothing can be fitted to them. Use a strategy that is "
            "not learned, or caches of selection top-k or top-p."
        )
    by_weights = [each for each in fingerprints if each.method in ("em", "gate")]
    needs_rows = any(each.temperature or each.method == "loglinear" for each in fingerprints)
    passes = int(needs_rows) + int(bool(by_weights))
    reader = Reader(fusion, passes, progress)
    count = len(fusion.sources)
    plain = hot = RowRule(np.ones(count), np.ones(count))
    sample = None
    if needs_rows:
        sample = sample_of(reader)
        if any(each.temperature for each in fingerprints):
            hot = fit_temperatures(sample, fusion.vocab_size)
    terms = None
    if by_weights:
        needs_features = any(each.method == "gate" or each.by == "entropy" for each in by_weights)
        terms = terms_of(reader, hot, fusion.vocab_size, needs_features=needs_features)
    made = []
    for each in fingerprints:
        own = hot if each.temperature else plain
        if each.method in ("em", "gate") and terms is not None:
            made.append(_fit_weights(each, own, terms, domains, fusion))
        elif sample is not None:
            made.append(_fit_rows(each, own, sample, fusion.vocab_size))
    return made


def fit_temperatures(sample: Observed, vocab_size: int) -> RowRule:
    """The temperature of each source, from ½ to 2, at which its labels are most probable."""
    count = sample.allowed.shape[1]
    spreads = fit_spreads(sample, vocab_size)
    temperatures = np.ones(count)
    for index in range(count):
        labeled = np.flatnonzero(sample.label_found[:, index] & sample.predicted)
        if not len(labeled):
            continue
        own = take(sample, labeled)

        def nats(power: float, own: Observed = own, index: int = index) -> float:
            tried = np.ones(count)
            tried[index] = 2.0**power
            rule = RowRule(tried, spreads)
            return -float(tempered(own, rule, own.labels, vocab_size)[1][:, index].sum())

        temperatures[index] = _rounded(2.0 ** golden(nats, -1.0, 1.0, 16))
    return RowRule(temperatures, spreads)


def fit_spreads(sample: Observed, vocab_size: int) -> FloatArray:
    """Over how many tokens each source's tail is spread, float64 [S].

    That of a label outside the entries, whose exact probability is known, is tail / probability.
    The mean of its logarithm is the entropy of what the tail holds, as the text draws from it.
    """
    result = np.ones(sample.allowed.shape[1])
    for index in range(len(result)):
        labeled = np.flatnonzero(sample.label_found[:, index] & sample.predicted)
        ids, logprobs, tail = sample.projected_rows(sample.rows[labeled, index])
        outside = ~is_kept(ids, logprobs, sample.labels[labeled]) & np.isfinite(tail)
        logs = tail[outside].astype(np.float64) - sample.label_logprob[labeled[outside], index]
        if len(logs):
            result[index] = _rounded(float(np.exp(np.clip(logs.mean(), 0.0, np.log(vocab_size)))))
    return result


def _fit_weights(
    fingerprint: FitFingerprint,
    rule: RowRule,
    terms: Terms,
    domains: Sequence[str],
    fusion: Fusion,
) -> FitManifest:
    """`em` or `gate`."""
    logprob = terms.tempered if fingerprint.temperature else terms.raw
    if fingerprint.method == "gate":
        mean, deviation = map(_all_rounded, scale_of(terms.features, terms.allowed))
        coefficients, _ = fit_gate(terms.features, logprob, terms.allowed, mean, deviation)
        coefficients = _all_rounded(coefficients)
        weights = gate_weights(terms.features, terms.allowed, mean, deviation, coefficients)
        gate = GateParameters(
            mean=_nested(mean), deviation=_nested(deviation), coefficients=_nested(coefficients)
        )
        even = np.full((1, terms.allowed.shape[1]), 1.0 / terms.allowed.shape[1])
        return _manifest(fingerprint, rule, even, terms, weights, logprob, gate=gate)
    none = np.zeros(len(logprob), np.int64)
    shared = fit_weights(logprob, terms.allowed, none, 1)[0]
    if fingerprint.by == "global":
        whole = _all_rounded(shared)
        return _manifest(fingerprint, rule, whole, terms, whole[none], logprob)
    names: tuple[str, ...] = ()
    edges: tuple[float, ...] = ()
    if fingerprint.by == "domain":
        names = tuple(sorted({domains[document] for document in fusion.documents}))
        number = {name: index for index, name in enumerate(names)}
        group = np.array([number.get(name, 0) for name in domains], np.int64)[terms.document]
        num_groups = len(names)
    else:
        entropy = mean_entropy(terms.features, terms.allowed)
        inner = np.arange(1, ENTROPY_BINS) / ENTROPY_BINS
        edges = tuple(sorted({_rounded(value) for value in np.quantile(entropy, inner)}))
        group = entropy_groups(edges, terms.features, terms.allowed) - 1
        num_groups = len(edges) + 1
    own = fit_weights(logprob, terms.allowed, group, num_groups, PRIOR * shared[0])[0]
    whole = _all_rounded(np.concatenate([shared, own]))
    return _manifest(
        *(fingerprint, rule, whole, terms, whole[1 + group], logprob),
        domains=names,
        edges=edges,
    )


def _fit_rows(
    fingerprint: FitFingerprint, rule: RowRule, sample: Observed, vocab_size: int
) -> FitManifest:
    """`temperature` or `loglinear`."""
    count = sample.allowed.shape[1]
    logprob = tempered(sample, rule, sample.labels, vocab_size)[1]
    terms = Terms(
        sample.allowed,
        sample.label_logprob,
        logprob,
        np.zeros((*sample.allowed.shape, 0), np.float32),
        sample.document,
    )
    even = np.full(count, 1.0 / count)
    if fingerprint.method == "temperature":
        spread = np.tile(even, (len(logprob), 1))
        return _manifest(fingerprint, rule, even[None], terms, spread, logprob)

    def nats(order: float, weights: FloatArray) -> float:
        spread = normalize_rows(np.where(sample.allowed, weights, 0.0))
        labels = mix_at(sample, replace(rule, order=order), spread, sample.labels, vocab_size, 1)[1]
        return -float(labels.sum())

    start = fit_weights(logprob, sample.allowed, np.zeros(len(logprob), np.int64), 1)[0][0]
    order, weights = fit_order(nats, start)
    order, weights = _rounded(order), _all_rounded(weights)
    spread = normalize_rows(np.where(sample.allowed, weights, 0.0))
    labels = mix_at(sample, replace(rule, order=order), spread, sample.labels, vocab_size, 1)[1]
    return _manifest(
        *(fingerprint, replace(rule, order=order), weights[None], terms, spread, logprob),
        labels=labels,
    )


def _manifest(
    fingerprint: FitFingerprint,
    rule: RowRule,
    weights: FloatArray,
    terms: Terms,
    spread: FloatArray,
    logprob: FloatArray,
    *,
    domains: tuple[str, ...] = (),
    edges: tuple[float, ...] = (),
    gate: GateParameters | None = None,
    labels: FloatArray | None = None,
) -> FitManifest:
    """`spread`: weights at each position; `labels`: their result, unless it is a mixture's."""
    if labels is None:
        labels = _mixed(spread, terms.allowed, logprob)
    return FitManifest(
        fingerprint=fingerprint,
        num_positions=len(terms.allowed),
        temperatures=tuple(float(value) for value in rule.temperatures),
        spreads=tuple(float(value) for value in rule.spreads),
        order=rule.order,
        weights=_nested(weights),
        domains=domains,
        edges=edges,
        gate=gate,
        nats_even=_rounded(-_mixed(np.ones(spread.shape), terms.allowed, terms.raw).mean()),
        nats_fitted=_rounded(-labels.mean()),
        files={"fingerprint.json": FileRecord.of(fingerprint.to_bytes())},
    )


def _mixed(weights: FloatArray, allowed: BoolArray, logprob: FloatArray) -> FloatArray:
    shares = normalize_rows(np.where(allowed, weights, 0.0))
    with np.errstate(divide="ignore"):
        result: FloatArray = np.logaddexp.reduce(np.log(shares) + logprob, axis=1)
    return result


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")


def _all_rounded(values: FloatArray) -> FloatArray:
    return np.array([_rounded(value) for value in values.ravel()]).reshape(values.shape)


def _nested(values: FloatArray) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(float(value) for value in row) for row in values)
