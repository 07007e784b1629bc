"""Temperatures of rows, and the generalized mean of several rows.

A row says nothing of single tokens outside its entries. Each of them has an even share of its
tail, except for the label, the exact probability of which is known: it counts like an entry. Under
this rule every result below has mass 1.
"""

from __future__ import annotations

import math

import numba
import numpy as np
import numpy.typing as npt

from fusestore.fuse.project import Float64Array, Int32Array, SparseRows, keep_largest

UNKNOWN = np.nan
"""Log-probability of a label that a row gives no exact probability."""


def temper(
    rows: SparseRows,
    temperature: Float64Array,
    labels: Int32Array,
    label_logprob: Float64Array,
    vocab_size: int,
) -> tuple[SparseRows, Float64Array]:
    """Every probability of a row to the power of 1 / temperature, normalized.

    Args:
        rows: R rows; each row's mass is 1.
        temperature: float64 [R], positive.
        labels: int32 [R], the next token, negative for none.
        label_logprob: float64 [R], its exact log-probability, or `UNKNOWN`.
        vocab_size: tokens of the target.

    Returns:
        The rows, and the log-probability of each row's label, float64 [R]; `UNKNOWN` stays.
    """
    ids, logprobs, tail = rows
    out_logprobs = np.empty_like(logprobs)
    out_tail = np.empty_like(tail)
    out_label = np.empty(len(tail), np.float64)
    _temper_rows(
        *(ids, logprobs, tail, temperature, labels, label_logprob, vocab_size),
        *(out_logprobs, out_tail, out_label),
    )
    return (ids, out_logprobs, out_tail), out_label


def mix_power(
    rows: npt.NDArray[np.int64],
    weights: Float64Array,
    order: float,
    projected: SparseRows,
    labels: Int32Array,
    label_logprob: Float64Array,
    vocab_size: int,
    k_out: int,
) -> tuple[SparseRows, Float64Array]:
    """The generalized mean of the rows that each position names: (Σ w p^a)^(1/a), normalized.

    Order 1 is the mixture, and order 0 the geometric mean exp(Σ w log p). Tokens outside all
    entries are one lump of their number.

    Args:
        rows: int64 [n, sources], index of each source's row among the R rows; −1 for none.
        weights: float64 [n, sources], sum 1 at each position, 0 without a row. If all weights of a
            position are 0, all its mass is in the tail.
        order: a, from 0 to 1.
        projected: R rows; each row's mass is 1.
        labels: int32 [n], the next token, negative for none.
        label_logprob: float64 [n, sources], its exact log-probability, or `UNKNOWN`.
        vocab_size: tokens of the target.
        k_out: entries to keep.

    Returns:
        n rows in the form that `mix` returns, and the label's log-probability, float64 [n]; −inf
        without a label.
    """
    ids, logprobs, tail = projected
    out_ids = np.empty((len(rows), k_out), np.int32)
    out_logprobs = np.empty((len(rows), k_out), np.float32)
    out_tail = np.empty(len(rows), np.float32)
    out_label = np.empty(len(rows), np.float64)
    slots = np.full(vocab_size, -1, np.int32)
    _mix_power_rows(
        *(rows, weights, float(order), ids, logprobs, tail, labels, label_logprob, slots),
        *(out_ids, out_logprobs, out_tail, out_label),
    )
    return (out_ids, out_logprobs, out_tail), out_label


@numba.njit(cache=True)
def _rest_of(ids, logprobs, tail, label, label_logprob, vocab_size):
    """Of one row: `(index of the label among the entries or −1, tokens outside, log of a share)`.

    A label of known probability is not among the tokens outside.
    """
    count = 0
    at = -1
    for entry in range(len(ids)):
        if logprobs[entry] > -math.inf:
            count += 1
            if ids[entry] == label:
                at = entry
    others = vocab_size - count
    mass = math.exp(np.float64(tail))
    if at < 0 and label >= 0 and not math.isnan(label_logprob):
        others -= 1
        mass -= math.exp(label_logprob)
    if others <= 0 or mass <= 0.0:
        return at, max(others, 0), -math.inf
    return at, others, math.log(mass) - math.log(others)


@numba.njit(cache=True)
def _temper_rows(
    ids,
    logprobs,
    tail,
    temperature,
    labels,
    label_logprob,
    vocab_size,
    out_logprobs,
    out_tail,
    out_label,
):
    k = ids.shape[1]
    for row in range(len(tail)):
        power = 1.0 / temperature[row]
        label, known = labels[row], label_logprob[row]
        exact = label >= 0 and not math.isnan(known)
        at, others, share = _rest_of(ids[row], logprobs[row], tail[row], label, known, vocab_size)
        inside = 0.0
        for entry in range(k):
            logprob = np.float64(logprobs[row, entry])
            if exact and entry == at:
                logprob = known
            if logprob > -math.inf:
                inside += math.exp(power * logprob)
        outside = others * math.exp(power * share) if share > -math.inf else 0.0
        if exact and at < 0:
            outside += math.exp(power * known)
        log_total = math.log(inside + outside) if inside + outside > 0.0 else 0.0
        for entry in range(k):
            logprob = np.float64(logprobs[row, entry])
            if exact and entry == at:
                logprob = known
            out_logprobs[row, entry] = (
                power * logprob - log_total if logprobs[row, entry] > -math.inf else -math.inf
            )
        out_tail[row] = math.log(outside) - log_total if outside > 0.0 else -math.inf
        if inside + outside == 0.0:
            out_tail[row] = 0.0
        out_label[row] = min(0.0, power * known - log_total) if exact else math.nan


@numba.njit(cache=True)
def _mean(terms, weights, count, order):
    """Log of the generalized mean of log-probabilities `terms`."""
    if order == 0.0:
        total = 0.0
        for source in range(count):
            total += weights[source] * terms[source]
        return total
    largest = -math.inf
    for source in range(count):
        largest = max(largest, terms[source])
    if largest == -math.inf:
        return -math.inf
    total = 0.0
    for source in range(count):
        total += weights[source] * math.exp(order * (terms[source] - largest))
    return largest + math.log(total) / order


@numba.njit(cache=True)
def _mix_power_rows(
    rows,
    weights,
    order,
    ids,
    logprobs,
    tail,
    labels,
    label_logprob,
    slots,
    out_ids,
    out_logprobs,
    out_tail,
    out_label,
):
    """`slots` is scratch [vocab_size], −1 everywhere: index of a token in the union of entries."""
    num_positions, num_sources = rows.shape
    k = ids.shape[1]
    vocab_size = len(slots)
    union_ids = np.empty(num_sources * k + 1, np.int32)
    terms = np.empty((num_sources * k + 1, num_sources), np.float64)
    masses = np.empty(num_sources * k + 1, np.float64)
    kept_ids = np.empty(num_sources * k + 1, np.int32)
    kept_logprobs = np.empty(num_sources * k + 1, np.float32)
    shares = np.empty(num_sources, np.float64)
    used_rows = np.empty(num_sources, np.int64)
    used_weights = np.empty(num_sources, np.float64)
    used_labels = np.empty(num_sources, np.float64)
    for position in range(num_positions):
        label = labels[position]
        count = 0
        for source in range(num_sources):
            if weights[position, source] > 0.0:
                used_rows[count] = rows[position, source]
                used_weights[count] = weights[position, source]
                used_labels[count] = label_logprob[position, source]
                count += 1
        size = 0
        if label >= 0 and count:
            slots[label] = 0
            union_ids[0] = label
            size = 1
        for used in range(count):
            row = used_rows[used]
            _, _, shares[used] = _rest_of(
                ids[row], logprobs[row], tail[row], label, used_labels[used], vocab_size
            )
            for entry in range(k):
                if logprobs[row, entry] > -math.inf and slots[ids[row, entry]] < 0:
                    slots[ids[row, entry]] = size
                    union_ids[size] = ids[row, entry]
                    size += 1
        for slot in range(size):
            for used in range(count):
                terms[slot, used] = shares[used]
        for used in range(count):
            row = used_rows[used]
            for entry in range(k):
                if logprobs[row, entry] > -math.inf:
                    terms[slots[ids[row, entry]], used] = np.float64(logprobs[row, entry])
            if label >= 0 and not math.isnan(used_labels[used]):
                terms[0, used] = used_labels[used]
        total = 0.0
        for slot in range(size):
            slots[union_ids[slot]] = -1
            masses[slot] = _mean(terms[slot], used_weights, count, order)
            total += math.exp(masses[slot])
        outside = 0.0
        if count and vocab_size > size:
            outside = (vocab_size - size) * math.exp(_mean(shares, used_weights, count, order))
        total += outside
        out_label[position] = -math.inf
        kept = 0
        if total > 0.0:
            log_total = math.log(total)
            for slot in range(size):
                if masses[slot] > -math.inf:
                    kept_ids[kept] = union_ids[slot]
                    kept_logprobs[kept] = masses[slot] - log_total
                    kept += 1
            if label >= 0:
                out_label[position] = min(0.0, masses[0] - log_total)
            outside /= total
        else:
            outside = 1.0
        out_tail[position] = keep_largest(
            kept_ids,
            kept_logprobs,
            kept,
            outside,
            out_ids[position],
            out_logprobs[position],
        )
