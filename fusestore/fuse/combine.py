"""Mixing: several projected distributions at one position become one.

Probabilities are mixed in the linear domain, on the union of the sources' entries; the sources'
tails join the tail of the mixture. A mixed row may then lose its least probable entries, be made to
hold its label, and be rounded.
"""

from __future__ import annotations

import math

import numba
import numpy as np
import numpy.typing as npt

from fusestore.errors import InvalidInputError
from fusestore.fuse.project import Float32Array, Float64Array, Int32Array, keep_largest


def mix(
    rows: npt.NDArray[np.int64],
    weights: Float64Array,
    ids: Int32Array,
    logprobs: Float32Array,
    tail: Float32Array,
    k_out: int,
) -> tuple[Int32Array, Float32Array, Float32Array]:
    """Mix the rows that each position names.

    Args:
        rows: int64 [n, sources], index of each source's row among the R rows; −1 for none.
        weights: float64 [n, sources], sum 1 at each position, 0 without a row. If all weights of a
            position are 0, all its mass is in the tail.
        ids: int32 [R, k] target token ids; an entry with log-probability −inf is unused.
        logprobs: float32 [R, k]; together with `tail` each row's mass is 1.
        tail: float32 [R].
        k_out: entries to keep.

    Returns:
        `(ids int32 [n, k_out], logprobs float32 [n, k_out], tail float32 [n])` in the form that
        `project` returns.
    """
    if rows.shape != weights.shape or np.any((rows < 0) & (weights > 0)):
        raise InvalidInputError("A source with a weight has no row at its position.")
    out_ids = np.empty((len(rows), k_out), np.int32)
    out_logprobs = np.empty((len(rows), k_out), np.float32)
    out_tail = np.empty(len(rows), np.float32)
    slots = np.full(int(ids.max(initial=-1)) + 1, -1, np.int32)
    _mix_rows(rows, weights, ids, logprobs, tail, slots, out_ids, out_logprobs, out_tail)
    return out_ids, out_logprobs, out_tail


@numba.njit(cache=True)
def _mix_rows(rows, weights, ids, logprobs, tail, slots, out_ids, out_logprobs, out_tail):
    """`slots` is scratch, −1 everywhere: index of a target token among the row's kept entries."""
    num_positions, num_sources = rows.shape
    k = ids.shape[1]
    kept_ids = np.empty(max(1, num_sources * k), np.int32)
    kept_logprobs = np.empty(max(1, num_sources * k), np.float32)
    masses = np.empty(max(1, num_sources * k), np.float64)
    for position in range(num_positions):
        contributors = 0
        only = -1
        for source in range(num_sources):
            if weights[position, source] > 0.0:
                contributors += 1
                only = rows[position, source]
        # An np.int64, because numba compiles the called function once more for a literal.
        count = np.int64(0)
        tail_mass = 0.0
        if contributors == 0:
            tail_mass = 1.0
        elif contributors == 1:
            # The log-probabilities are copied, which avoids the rounding of exp and log.
            tail_mass = math.exp(np.float64(tail[only]))
            for entry in range(k):
                if logprobs[only, entry] > -math.inf:
                    kept_ids[count] = ids[only, entry]
                    kept_logprobs[count] = logprobs[only, entry]
                    count += 1
        else:
            for source in range(num_sources):
                weight = weights[position, source]
                if weight <= 0.0:
                    continue
                row = rows[position, source]
                tail_mass += weight * math.exp(np.float64(tail[row]))
                for entry in range(k):
                    if logprobs[row, entry] == -math.inf:
                        continue
                    token = ids[row, entry]
                    mass = weight * math.exp(np.float64(logprobs[row, entry]))
                    slot = slots[token]
                    if slot < 0:
                        slots[token] = count
                        kept_ids[count] = token
                        masses[count] = mass
                        count += 1
                    else:
                        masses[slot] += mass
            for slot in range(count):
                slots[kept_ids[slot]] = -1
                kept_logprobs[slot] = math.log(masses[slot]) if masses[slot] > 0.0 else -math.inf
        out_tail[position] = keep_largest(
            kept_ids,
            kept_logprobs,
            count,
            tail_mass,
            out_ids[position],
            out_logprobs[position],
        )


def drop_below(
    min_probability: float | None, ids: Int32Array, logprobs: Float32Array, tail: Float32Array
) -> None:
    """Move entries of a lower probability into the tail, in place; the first of a row stays.

    Args:
        min_probability: in (0, 1); None: rows are left as they are.
        ids: int32 [n, k], in the form that `mix` returns.
        logprobs: float32 [n, k].
        tail: float32 [n].
    """
    if min_probability is not None:
        _drop_below(np.float32(math.log(min_probability)), ids, logprobs, tail)


@numba.njit(cache=True)
def _drop_below(lowest, ids, logprobs, tail):
    for row in range(len(tail)):
        entry = ids.shape[1] - 1
        mass = 0.0
        # From the least entry on, because rows fall: the sum is of small terms first.
        while entry > 0 and logprobs[row, entry] < lowest:
            mass += math.exp(np.float64(logprobs[row, entry]))
            ids[row, entry] = 0
            logprobs[row, entry] = -math.inf
            entry -= 1
        if mass > 0.0:
            tail[row] = math.log(math.exp(np.float64(tail[row])) + mass)


def hold_labels(
    held: npt.NDArray[np.bool_],
    labels: Int32Array,
    probability: Float64Array,
    ids: Int32Array,
    logprobs: Float32Array,
    tail: Float32Array,
) -> None:
    """Give rows their labels as entries of given probabilities, in place.

    The mass that the label gains or loses is taken from the tail or joins it, so that the other
    entries keep their log-probabilities. Where the tail holds too little, it becomes 0 and the
    other entries are scaled. A row without room drops its last entry into the tail. The row's mass
    stays 1.

    Args:
        held: bool [n]: whether the row is to hold its label.
        labels: int32 [n], target token ids.
        probability: float64 [n], in [0, 1]. 0: the row is left as it is.
        ids: int32 [n, k], in the form that `mix` returns.
        logprobs: float32 [n, k].
        tail: float32 [n].
    """
    _hold_labels(held, labels, probability, ids, logprobs, tail)


@numba.njit(cache=True)
def _hold_labels(held, labels, probabilities, ids, logprobs, tail):
    k = ids.shape[1]
    for row in range(len(held)):
        probability = probabilities[row]
        if not held[row] or not probability > 0.0:
            continue
        label, logprob = labels[row], np.float32(math.log(probability))
        # The label's entry leaves, or else the last and least, if the row has no room.
        out = k - 1
        for entry in range(k):
            if logprobs[row, entry] == -math.inf or ids[row, entry] == label:
                out = entry
                break
        leaving = math.exp(np.float64(logprobs[row, out]))
        free = math.exp(np.float64(tail[row])) + leaving
        for entry in range(out, k - 1):
            ids[row, entry] = ids[row, entry + 1]
            logprobs[row, entry] = logprobs[row, entry + 1]
        others = 1.0 - free
        if probability >= 1.0:
            ids[row, :] = 0
            logprobs[row, :] = -math.inf
            free = 1.0
        elif probability > free + 1e-6:
            scale = math.log((1.0 - probability) / others)
            for entry in range(k - 1):
                logprobs[row, entry] += scale
        rest = free - probability
        tail[row] = math.log(rest) if rest > 0.0 else -math.inf
        place = k - 1
        while place > 0 and (
            logprobs[row, place - 1] < logprob
            or (logprobs[row, place - 1] == logprob and ids[row, place - 1] > label)
        ):
            ids[row, place] = ids[row, place - 1]
            logprobs[row, place] = logprobs[row, place - 1]
            place -= 1
        ids[row, place] = label
        logprobs[row, place] = logprob


def round_entries(
    step: float | None, ids: Int32Array, logprobs: Float32Array, tail: Float32Array
) -> None:
    """Round log-probabilities to multiples of `step`, in place; mass and tail stay as they are.

    A row's most probable entry is not rounded: it takes up what the others gain or lose. A row in
    which they would gain more than half of it is left as it is. Equal entries are ordered by id.

    Args:
        step: in nats; None: rows are left as they are.
        ids: int32 [n, k], in the form that `mix` returns.
        logprobs: float32 [n, k].
        tail: float32 [n], not changed.
    """
    if step is not None:
        _round_entries(step, ids, logprobs)


@numba.njit(cache=True)
def _round_entries(step, ids, logprobs):
    k = ids.shape[1]
    rounded = np.empty(k, np.float32)
    for row in range(len(ids)):
        gained, count = 0.0, 1
        while count < k and logprobs[row, count] > -math.inf:
            logprob = np.float64(logprobs[row, count])
            rounded[count] = np.float32(round(logprob / step) * step)
            gained += math.exp(np.float64(rounded[count])) - math.exp(logprob)
            count += 1
        first = math.exp(np.float64(logprobs[row, 0]))
        if not gained <= first / 2:
            continue
        rounded[0] = np.float32(math.log(first - gained)) if count > 1 else logprobs[row, 0]
        for entry in range(count):
            token, place = ids[row, entry], entry
            while place > 0 and (
                logprobs[row, place - 1] < rounded[entry]
                or (logprobs[row, place - 1] == rounded[entry] and ids[row, place - 1] > token)
            ):
                ids[row, place] = ids[row, place - 1]
                logprobs[row, place] = logprobs[row, place - 1]
                place -= 1
            ids[row, place] = token
            logprobs[row, place] = rounded[entry]
