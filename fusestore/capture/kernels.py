"""Selection on a CPU: compiled loops that read each row of logits twice and copy none.

Called from several threads at once (they release the interpreter's lock). Exponentials are float32
with a relative error below 3e-7; sums are float64 over short float32 sums. The result of a row
depends on that row alone.
"""

from __future__ import annotations

import math

import numba
import numpy as np

_BLOCK = 64
"""Logits that share a maximum, so that the largest are searched for in few blocks only."""

_TERMS = 512
"""Exponentials that are added in float32, by vector instructions, before float64 takes over."""

_LOWEST = -87.0
"""exp(x) below this is no normal float32: it counts as 0."""

_LOG2_E = np.float32(1.4426950408889634)
# ln 2 as a sum of two numbers: the first has few bits, so that its multiples are exact.
_LN_2_HIGH = np.float32(0.693359375)
_LN_2_LOW = np.float32(math.log(2.0) - 0.693359375)
_TO_INTEGER = np.float32(1.5 * 2**23)
"""Adding and subtracting it rounds a float32 of moderate size to an integer."""

_SIGN = np.uint64(1 << 31)
_ALL = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


@numba.njit(nogil=True, cache=True)
def top_k_rows(logits, positions, labels, k, ids, logprobs, tail, label_logprob, finite):
    """The k largest of rows `positions` [n] of `logits` float32 [m, V], lower id first in a tie.

    Writes `ids` int32 [n, k], `logprobs` float32 [n, k], `tail`, `label_logprob` float32 [n] and
    `finite` bool [n]. `labels` int64 [n].
    """
    vocab_size = logits.shape[1]
    maxima = np.empty(-(-vocab_size // _BLOCK), np.float32)
    keys = np.empty(vocab_size, np.uint64)
    exponentials = np.empty(vocab_size, np.float32)
    for i in range(len(positions)):
        row = logits[positions[i]]
        _block_maxima(row, maxima)
        peak = maxima.max()
        # Each of k blocks has an entry as large as this, so none of the k largest is below it.
        least = np.float32(-np.inf)
        if k <= len(maxima):
            least = np.partition(maxima, len(maxima) - k)[len(maxima) - k]
        count = _collect(row, maxima, least, keys)
        _exponentiate(row, peak, exponentials)
        if count < k or not math.isfinite(peak):
            finite[i] = False
            continue
        kept = np.partition(keys[:count], count - k)[count - k :]
        kept.sort()
        kept_mass = 0.0
        for entry in range(k):
            token = np.int64(_ALL - (kept[k - 1 - entry] & _ALL))
            ids[i, entry] = token
            kept_mass += exponentials[token]
            exponentials[token] = 0.0
        # Summed from the other entries, not subtracted from one: a small tail stays precise.
        rest = _total(exponentials)
        log_total = math.log(kept_mass + rest)
        for entry in range(k):
            logprobs[i, entry] = (np.float64(row[ids[i, entry]]) - peak) - log_total
        tail[i] = math.log(rest) - log_total if rest > 0.0 else -math.inf
        label_logprob[i] = (np.float64(row[labels[i]]) - peak) - log_total
        finite[i] = math.isfinite(log_total)


@numba.njit(nogil=True, cache=True)
def draw_rows(logits, positions, labels, uniforms, ids, label_logprob, finite):
    """Draws from the softmax of rows `positions` [n] of `logits` float32 [m, V].

    A draw is the first id at which the cumulated mass exceeds `uniforms` float64 [n, draws] in
    [0, 1), rising along each row. Writes `ids` int32 [n, draws], rising too, `label_logprob`
    float32 [n] and `finite` bool [n].
    """
    vocab_size = logits.shape[1]
    maxima = np.empty(-(-vocab_size // _BLOCK), np.float32)
    until = np.empty(-(-vocab_size // _TERMS), np.float64)
    exponentials = np.empty(vocab_size, np.float32)
    for i in range(len(positions)):
        row = logits[positions[i]]
        _block_maxima(row, maxima)
        peak = maxima.max()
        _exponentiate(row, peak, exponentials)
        total = 0.0
        for group in range(len(until)):
            total += _group_sum(exponentials, group)
            until[group] = total
        if not (math.isfinite(peak) and math.isfinite(total)):
            finite[i] = False
            continue
        finite[i] = True
        label_logprob[i] = (np.float64(row[labels[i]]) - peak) - math.log(total)
        group = -1
        token = 0
        for draw in range(uniforms.shape[1]):
            wanted = uniforms[i, draw] * total
            if group < 0 or until[group] <= wanted:
                group = max(group, 0)
                while group + 1 < len(until) and until[group] <= wanted:
                    group += 1
                token = group * _TERMS
                cumulated = np.float64(exponentials[token])
                if group > 0:
                    cumulated += until[group - 1]
            stop = min((group + 1) * _TERMS, vocab_size)
            last = token
            while cumulated <= wanted and token + 1 < stop:
                token += 1
                cumulated += exponentials[token]
                if exponentials[token] > 0.0:
                    last = token
            if cumulated <= wanted:
                # By rounding, the cumulated terms stay below the sum of the group.
                token = last
            ids[i, draw] = token


@numba.njit(nogil=True, cache=True)
def _block_maxima(row, maxima):
    for block in range(len(maxima)):
        maxima[block] = _largest(row[block * _BLOCK : (block + 1) * _BLOCK])


@numba.njit(nogil=True, cache=True)
def _largest(values):
    """The largest value; NaN is ignored, because `_exponentiate` keeps it."""
    largest = np.float32(-np.inf)
    for index in range(len(values)):
        largest = values[index] if values[index] > largest else largest
    return largest


@numba.njit(nogil=True, cache=True)
def _collect(row, maxima, least, keys):
    """Write keys of all entries that are at least `least`; returns their number.

    Keys grow with the logit, and among equal logits fall with the id.
    """
    bits = row.view(np.uint32)
    count = 0
    for block in range(len(maxima)):
        if not maxima[block] >= least:
            continue
        for token in range(block * _BLOCK, min((block + 1) * _BLOCK, len(row))):
            if row[token] >= least:
                pattern = np.uint64(bits[token])
                if row[token] == 0.0:
                    # −0 is 0.
                    pattern = np.uint64(0)
                pattern = pattern ^ (_ALL if pattern & _SIGN else _SIGN)
                keys[count] = (pattern << _HALF) | (_ALL - np.uint64(token))
                count += 1
    return count


@numba.njit(nogil=True, cache=True)
def _exponentiate(row, peak, exponentials):
    """exp(row − peak): 2^n · exp(f) with |f| ≤ ln 2 / 2, the latter by its Taylor series.

    Without calls and branches, so that it is compiled to vector instructions.
    """
    bits = exponentials.view(np.int32)
    for token in range(len(row)):
        x = row[token] - peak
        n = (x * _LOG2_E + _TO_INTEGER) - _TO_INTEGER
        f = (x - n * _LN_2_HIGH) - n * _LN_2_LOW
        series = f * np.float32(1 / 5040) + np.float32(1 / 720)
        series = series * f + np.float32(1 / 120)
        series = series * f + np.float32(1 / 24)
        series = series * f + np.float32(1 / 6)
        series = series * f + np.float32(0.5)
        series = series * f + np.float32(1.0)
        series = series * f + np.float32(1.0)
        # NaN compares as false and stays.
        vanishes = x < np.float32(_LOWEST)
        exponentials[token] = np.float32(0.0) if vanishes else series
        bits[token] += np.int32(0) if vanishes else np.int32(n) << np.int32(23)


@numba.njit(nogil=True, cache=True, fastmath={"reassoc", "nsz"})
def _group_sum(values, group):
    """The sum of one group of `_TERMS` values, in an order that the compiler chooses."""
    terms = values[group * _TERMS : (group + 1) * _TERMS]
    total = np.float32(0.0)
    for term in range(len(terms)):
        total += terms[term]
    return np.float64(total)


@numba.njit(nogil=True, cache=True)
def _total(values):
    total = 0.0
    for group in range(-(-len(values) // _TERMS)):
        total += _group_sum(values, group)
    return total
