"""Temperatures of rows, and the generalized mean of several rows.

A row says nothing of single tokens outside its entries. In a mean, each of them has an even share
of its tail. A temperature needs to know over how many tokens the tail is spread: the whole
vocabulary would be far too many, and a low temperature would seem to free mass that it does not.
That number is fitted: see `fit_spreads`. Under these rules every result has mass 1.
"""

from __future__ import annotations

import math

import numba
import numpy as np
import numpy.typing as npt

from fusestore.fuse.project import Float64Array, Int32Array, SparseRows, keep_largest


def temper(rows: SparseRows, temperature: Float64Array, spread: Float64Array) -> SparseRows:
    """Every probability of a row to the power of 1 / temperature, normalized.

    Args:
        rows: R rows; each row's mass is 1.
        temperature: float64 [R], positive.
        spread: float64 [R], number of tokens over which the row's tail is spread, 1 or more.
    """
    ids, logprobs, tail = rows
    out_logprobs, out_tail = np.empty_like(logprobs), np.empty_like(tail)
    _temper_rows(logprobs, tail, temperature, spread, out_logprobs, out_tail)
    return ids, out_logprobs, out_tail


def mix_power(
    rows: npt.NDArray[np.int64],
    weights: Float64Array,
    order: float,
    projected: SparseRows,
    labels: Int32Array,
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
        labels: int32 [n], a token of each position, negative for none.
        vocab_size: tokens of the target.
        k_out: entries to keep.

    Returns:
        n rows in the form that `mix` returns, and the log-probability that each gives its label
        before it is cut, float64 [n]; −inf without a label.
    """
    ids, logprobs, tail = projected
    out_ids = np.empty((len(rows), k_out), np.int32)
    out_logprobs = np.empty((len(rows), k_out), np.float32)
    out_tail = np.empty(len(rows), np.float32)
    out_label = np.empty(len(rows), np.float64)
    slots = np.full(vocab_size, -1, np.int32)
    _mix_power_rows(
        *(rows, weights, float(order), ids, logprobs, tail, labels, slots),
        *(out_ids, out_logprobs, out_tail, out_label),
    )
    return (out_ids, out_logprobs, out_tail), out_label


@numba.njit(cache=True)
def _temper_rows(logprobs, tail, temperature, spread, out_logprobs, out_tail):
    k = logprobs.shape[1]
    for row in range(len(tail)):
        power = 1.0 / temperature[row]
        total = 0.0
        for entry in range(k):
            if logprobs[row, entry] > -math.inf:
                total += math.exp(power * np.float64(logprobs[row, entry]))
        outside = -math.inf
        if tail[row] > -math.inf:
            each = np.float64(tail[row]) - math.log(spread[row])
            outside = math.log(spread[row]) + power * each
            total += math.exp(outside)
        log_total = math.log(total)
        for entry in range(k):
            out_logprobs[row, entry] = -math.inf
            if logprobs[row, entry] > -math.inf:
                out_logprobs[row, entry] = power * np.float64(logprobs[row, entry]) - log_total
        out_tail[row] = outside - log_total


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
    for position in range(num_positions):
        label = labels[position]
        # An np.int64, here and below: numba compiles the called function once more for a literal.
        count = np.int64(0)
        for source in range(num_sources):
            if weights[position, source] > 0.0:
                used_rows[count] = rows[position, source]
                used_weights[count] = weights[position, source]
                count += 1
        size = 0
        if label >= 0 and count:
            slots[label] = 0
            union_ids[0] = label
            size = 1
        for used in range(count):
            row = used_rows[used]
            entries = 0
            for entry in range(k):
                if logprobs[row, entry] > -math.inf:
                    entries += 1
                    if slots[ids[row, entry]] < 0:
                        slots[ids[row, entry]] = size
                        union_ids[size] = ids[row, entry]
                        size += 1
            shares[used] = -math.inf
            if vocab_size > entries:
                shares[used] = np.float64(tail[row]) - math.log(vocab_size - entries)
        for slot in range(size):
            for used in range(count):
                terms[slot, used] = shares[used]
        for used in range(count):
            row = used_rows[used]
            for entry in range(k):
                if logprobs[row, entry] > -math.inf:
                    terms[slots[ids[row, entry]], used] = np.float64(logprobs[row, entry])
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
        kept = np.int64(0)
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
