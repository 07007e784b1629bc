"""Projection: a distribution over a source's tokens becomes one over the target's tokens.

The masses of all source tokens that are mapped to one target token are summed. Mass of tokens
without a target token, and mass beyond the largest `k_out` entries, joins the tail. Cached
log-probabilities lie on a grid, so a row's mass is only nearly 1: kept entries and tail are first
rescaled by one common factor to exactly 1, which keeps all stored ratios.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numba
import numpy as np
import numpy.typing as npt

from fusestore.errors import IncompatibleError, InvalidInputError, NonFiniteError
from fusestore.tokenizers.vocabulary import NO_SPELLING, Spelling

IntArray = npt.NDArray[np.int64]
Int32Array = npt.NDArray[np.int32]
Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]

SparseRows = tuple[Int32Array, Float32Array, Float32Array]
"""`(ids int32 [n, k], logprobs float32 [n, k], tail float32 [n])` in the form of `project`."""

_OUTSIDE_MAP = 1
_NOT_FINITE = 2


@dataclass(frozen=True)
class Conditions:
    """The bytes by which m rows of kind `inside` are conditioned.

    Attributes:
        since: int32 [m], number of these bytes; 0: the row is not conditioned.
        following: int32 [m], a source token that begins with them.
        spelling: of the source's ids.
        first_tokens: int32 [B], of every byte of the spelling the target token that begins there.
    """

    since: Int32Array
    following: Int32Array
    spelling: Spelling
    first_tokens: Int32Array


def project(
    ids: Int32Array,
    logprobs: Float32Array,
    tail: Float32Array,
    target_id: Int32Array,
    k_out: int,
) -> SparseRows:
    """Project n rows over source tokens onto target tokens.

    Args:
        ids: int32 [n, k] source token ids; an entry with log-probability −inf is unused.
        logprobs: float32 [n, k] natural log-probabilities.
        tail: float32 [n] log of the mass outside the entries.
        target_id: int32 [V_src] target token of each source token, −1 for none.
        k_out: entries to keep.

    Returns:
        `(ids int32 [n, k_out], logprobs float32 [n, k_out], tail float32 [n])`, each row by
        falling log-probability, then by id; unused entries are id 0 with −inf. A row without any
        mass gets a tail of mass 1.

    Raises:
        IncompatibleError: an id lies outside the map.
        NonFiniteError: NaN or +inf among the log-probabilities.
    """
    return project_and_measure(ids, logprobs, tail, target_id, k_out)[:3]


def project_and_measure(
    ids: Int32Array,
    logprobs: Float32Array,
    tail: Float32Array,
    target_id: Int32Array,
    k_out: int,
) -> tuple[Int32Array, Float32Array, Float32Array, Float64Array]:
    """`project`, and the mass of each row on tokens without a target token, float64 [n]."""
    if k_out < 1:
        raise InvalidInputError(f"k_out is {k_out}; at least one entry must be kept.")
    rows = np.arange(len(ids))
    out = empty_rows(len(ids), k_out)
    unmapped = project_into(ids, logprobs, tail, target_id, rows, rows, *out)
    return *out, unmapped


def empty_rows(num_rows: int, k_out: int) -> SparseRows:
    """Rows with all their mass in the tail."""
    return (
        np.zeros((num_rows, k_out), np.int32),
        np.full((num_rows, k_out), -np.inf, np.float32),
        np.zeros(num_rows, np.float32),
    )


def project_into(
    ids: Int32Array,
    logprobs: Float32Array,
    tail: Float32Array,
    target_id: Int32Array,
    rows: IntArray,
    places: IntArray,
    out_ids: Int32Array,
    out_logprobs: Float32Array,
    out_tail: Float32Array,
    conditions: Conditions | None = None,
    vocab_size: int | None = None,
) -> Float64Array:
    """`project` some rows into given rows of the output, without a copy.

    A conditioned row keeps the entries that begin with the bytes that the target has read since,
    and sends each to the first target token of what remains of it. Its tail keeps its share, as
    if the mass outside the entries agreed with those bytes as often as that inside. An entry that
    ends with those bytes does not say what follows them: its mass joins the tail.

    Args:
        ids: as for `project`.
        logprobs: as for `project`.
        tail: as for `project`.
        target_id: as for `project`.
        rows: int64 [m], indices of the rows to project.
        places: int64 [m], indices of their rows in the output.
        out_ids: int32 [p, k_out], written at `places` as `project` returns it.
        out_logprobs: float32 [p, k_out], likewise.
        out_tail: float32 [p], likewise.
        conditions: of the m rows; None: no row is conditioned.
        vocab_size: tokens of the target, where it is known that no map names others.

    Returns:
        The mass of each row on tokens without a target token, float64 [m].

    Raises:
        As for `project`.
    """
    if logprobs.shape != ids.shape or tail.shape != (len(ids),):
        raise InvalidInputError(
            f"Rows do not fit together: ids {ids.shape}, logprobs {logprobs.shape}, "
            f"tail {tail.shape}; expected [n, k], [n, k] and [n]."
        )
    unmapped = np.empty(len(rows), np.float64)
    if conditions is None:
        none = np.zeros(0, np.int32)
        conditions = Conditions(none, none, NO_SPELLING, none)
    if vocab_size is None:
        named = (target_id, conditions.first_tokens)
        vocab_size = max(int(tokens.max(initial=-1)) for tokens in named) + 1
    slots = np.full(vocab_size, -1, np.int32)
    problem, row, entry = _project_rows(
        *(ids, logprobs, tail, target_id, slots, rows, places),
        *(out_ids, out_logprobs, out_tail, unmapped),
        *(conditions.since, conditions.following),
        *(conditions.spelling.heads, conditions.spelling.data, conditions.spelling.offsets),
        conditions.first_tokens,
    )
    if problem == _OUTSIDE_MAP:
        raise IncompatibleError(
            f"Row {row} holds token id {ids[row, entry]}, but the vocabulary map has "
            f"{len(target_id)} source tokens: the map belongs to another tokenizer."
        )
    if problem == _NOT_FINITE:
        raise NonFiniteError(
            f"Row {row} holds a log-probability that is NaN or +inf; run `fusestore verify`."
        )
    return unmapped


@numba.njit(cache=True)
def begins_with(token, other, length, heads, data, offsets):
    """Whether a token's text begins with the first `length` bytes of another's, int32 ids."""
    shown = ~np.uint64(0) if length >= 8 else (np.uint64(1) << np.uint64(8 * length)) - np.uint64(1)
    if (heads[token] ^ heads[other]) & shown:
        return False
    start, prefix_start = offsets[token], offsets[other]
    if offsets[token + 1] - start < length:
        return False
    for index in range(length):  # noqa: SIM110 - numba knows no generator
        if data[start + index] != data[prefix_start + index]:
            return False
    return True


@numba.njit(cache=True)
def _project_rows(
    ids,
    logprobs,
    tail,
    target_id,
    slots,
    rows,
    places,
    out_ids,
    out_logprobs,
    out_tail,
    unmapped,
    since,
    following,
    heads,
    spelled,
    spelled_offsets,
    first_tokens,
):
    """`slots` is scratch, −1 everywhere: index of a target token among the row's kept entries."""
    k = ids.shape[1]
    entry_masses = np.empty(k, np.float64)
    kept_ids = np.empty(k, np.int32)
    kept_logprobs = np.empty(k, np.float32)
    masses = np.empty(k, np.float64)
    collided = np.empty(k, np.bool_)
    source_logprobs = np.empty(k, np.float64)
    for index in range(len(rows)):
        row, place = rows[index], places[index]
        tail_mass = math.exp(np.float64(tail[row]))
        total = tail_mass
        for entry in range(k):
            mass = math.exp(np.float64(logprobs[row, entry]))
            entry_masses[entry] = mass
            total += mass
        if not total < math.inf:
            return _NOT_FINITE, row, 0
        if total == 0.0:
            tail_mass = total = 1.0
        length = since[index] if len(since) else 0
        if length:
            agreeing = 0.0
            for entry in range(k):
                token = ids[row, entry]
                if logprobs[row, entry] == -math.inf:
                    continue
                if token < 0 or token >= len(target_id):
                    return _OUTSIDE_MAP, row, entry
                if token < len(heads) and begins_with(
                    token, following[index], length, heads, spelled, spelled_offsets
                ):
                    agreeing += entry_masses[entry]
                else:
                    entry_masses[entry] = -1.0
            share = tail_mass / total
            tail_mass = total = 1.0
            if agreeing > 0.0 and share < 1.0:
                total = agreeing / (1.0 - share)
                tail_mass = share * total
        lost = 0.0
        # An np.int64, because numba compiles the called function once more for a literal.
        count = np.int64(0)
        for entry in range(k):
            logprob = logprobs[row, entry]
            if logprob == -math.inf:
                continue
            source_id = ids[row, entry]
            if source_id < 0 or source_id >= len(target_id):
                return _OUTSIDE_MAP, row, entry
            mass = entry_masses[entry]
            if mass < 0.0:
                continue
            if length == 0:
                token = target_id[source_id]
            else:
                remainder = spelled_offsets[source_id] + length
                token = np.int32(-1)
                if remainder < spelled_offsets[source_id + 1]:
                    token = first_tokens[remainder]
            if token < 0:
                lost += mass
                continue
            slot = slots[token]
            if slot < 0:
                slots[token] = count
                kept_ids[count] = token
                masses[count] = mass
                source_logprobs[count] = logprob
                collided[count] = False
                count += 1
            else:
                masses[slot] += mass
                collided[slot] = True
        log_total = math.log(total)
        for slot in range(count):
            slots[kept_ids[slot]] = -1
            # A token that did not collide keeps its exact log-probability, even if its mass is 0.
            if collided[slot]:
                kept_logprobs[slot] = math.log(masses[slot]) - log_total
            else:
                kept_logprobs[slot] = source_logprobs[slot] - log_total
        unmapped[index] = lost / total
        out_tail[place] = keep_largest(
            kept_ids,
            kept_logprobs,
            count,
            (tail_mass + lost) / total,
            out_ids[place],
            out_logprobs[place],
        )
    return 0, 0, 0


@numba.njit(cache=True)
def keep_largest(kept_ids, kept_logprobs, count, tail_mass, out_ids, out_logprobs):
    """Write the largest of the first `count` entries in order; return the new tail, a log.

    Insertion sort, because rows are almost sorted. Entries beyond the last join the tail.
    """
    written = 0
    for entry in range(count):
        token = kept_ids[entry]
        logprob = kept_logprobs[entry]
        place = written
        if written < len(out_ids):
            written += 1
        else:
            place -= 1
            last = out_logprobs[place]
            if last > logprob or (last == logprob and out_ids[place] < token):
                tail_mass += math.exp(np.float64(logprob))
                continue
            tail_mass += math.exp(np.float64(last))
        while place > 0 and (
            out_logprobs[place - 1] < logprob
            or (out_logprobs[place - 1] == logprob and out_ids[place - 1] > token)
        ):
            out_ids[place] = out_ids[place - 1]
            out_logprobs[place] = out_logprobs[place - 1]
            place -= 1
        out_ids[place] = token
        out_logprobs[place] = logprob
    for entry in range(written, len(out_ids)):
        out_ids[entry] = 0
        out_logprobs[entry] = -math.inf
    return math.log(tail_mass) if tail_mass > 0.0 else -math.inf
