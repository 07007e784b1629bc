"""Selection on a CPU: compiled loops that read each row of logits twice and copy none.

Called from several threads at once (they release the interpreter's lock). Exponentials are float32
with a relative error below 3e-7, sums are float64 over short float32 ones. What a row gives depends
on that row alone.
"""

from __future__ import annotations

import math

import numba
import numpy as np

_BLOCK = 64
"""Logits that share a maximum: the largest ones are then looked for in few blocks only."""

_TERMS = 512
"""Exponentials that are added in float32, by vector instructions, before float64 takes over."""

_LOWEST = -87.0
"""exp(x) below this is no normal float32: it counts as 0."""

_LOG2_E = np.float32(1.4426950408889634)
# ln 2 in two parts: the first has few bits, so that its multiples are exact.
_LN_2_HIGH = np.float32(0.693359375)
_LN_2_LOW = np.float32(math.log(2.0) - 0.693359375)
_TO_INTEGER = np.float32(1.5 * 2**23)
"""Adding it leaves a float32 of moderate size no room for a fraction: that rounds it."""

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
        # Each of k blocks has an entry as large as this, so the k largest are not below it.
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
        # Summed from what was not kept, not subtracted from one: a small tail stays precise.
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
        for stretch in range(len(until)):
            total += _stretch_sum(exponentials, stretch)
            until[stretch] = total
        if not (math.isfinite(peak) and math.isfinite(total)):
            finite[i] = False
            continue
        finite[i] = True
        label_logprob[i] = (np.float64(row[labels[i]]) - peak) - math.log(total)
        stretch = -1
        token = 0
        for draw in range(uniforms.shape[1]):
            wanted = uniforms[i, draw] * total
            if stretch < 0 or until[stretch] <= wanted:
                stretch = max(stretch, 0)
                while stretch + 1 < len(until) and until[stretch] <= wanted:
                    stretch += 1
                token = stretch * _TERMS
                cumulated = np.float64(exponentials[token])
                if stretch > 0:
                    cumulated += until[stretch - 1]
            stop = min((stretch + 1) * _TERMS, vocab_size)
            last = token
            while cumulated <= wanted and token + 1 < stop:
                token += 1
                cumulated += exponentials[token]
                if exponentials[token] > 0.0:
                    last = token
            if cumulated <= wanted:
                # By rounding, the stretch's terms add up to less than its sum said.
                token = last
            ids[i, draw] = token


@numba.njit(nogil=True, cache=True)
def _block_maxima(row, maxima):
    for block in range(len(maxima)):
        maxima[block] = _largest(row[block * _BLOCK : (block + 1) * _BLOCK])


@numba.njit(nogil=True, cache=True)
def _largest(values):
    """NaN is passed over here: `_exponentiate` does not lose it."""
    largest = np.float32(-np.inf)
    for index in range(len(values)):
        largest = values[index] if values[index] > largest else largest
    return largest


@numba.njit(nogil=True, cache=True)
def _collect(row, maxima, least, keys):
    """Keys of all entries that are at least `least`; returns how many.

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
def _stretch_sum(values, stretch):
    """The sum of one stretch of `_TERMS` values, in an order that is the compiler's to choose."""
    terms = values[stretch * _TERMS : (stretch + 1) * _TERMS]
    total = np.float32(0.0)
    for term in range(len(terms)):
        total += terms[term]
    return np.float64(total)


@numba.njit(nogil=True, cache=True)
def _total(values):
    total = 0.0
    for stretch in range(-(-len(values) // _TERMS)):
        total += _stretch_sum(values, stretch)
    return total
