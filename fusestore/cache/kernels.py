"""Compiled loops between stored values and rows; `docs/format.md` says the same in words.

The tests compare them with plain Python versions. All are single-threaded and give equal output for
equal input.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from fusestore.store.codec import ABSENT

SOUND = -1
"""Returned by a kernel if no row is bad."""

_LONG_RUN = 32

USUAL_WIDTH = 16
"""Columns of a group for which `decode_gaps` is fastest: `layout.COLUMNS_PER_CHUNK`."""

_Array = npt.NDArray[Any]


@numba.njit(cache=True, nogil=True)
def number_ids(
    ids: npt.NDArray[np.int32],
    logprobs: npt.NDArray[np.float32],
    row_class: npt.NDArray[np.uint16],
    class_numbers: npt.NDArray[np.uint32],
    id_to_rank: npt.NDArray[np.uint32],
) -> npt.NDArray[np.uint32]:
    """The numbers that stand for token ids, see `IdOrder`; 0 for absent entries.

    Args:
        ids: int32 [n, k], all within the vocabulary.
        logprobs: float32 [n, k]; −inf where there is no entry.
        row_class: uint16 [n].
        class_numbers: uint32 [C, H].
        id_to_rank: uint32 [V].

    Returns:
        uint32 [n, k].
    """
    numbers = np.zeros(ids.shape, np.uint32)
    head = class_numbers.shape[1]
    for row in range(len(ids)):
        numbers_of_class = class_numbers[row_class[row]]
        for column in range(ids.shape[1]):
            if logprobs[row, column] > -np.inf:
                rank = id_to_rank[ids[row, column]]
                numbers[row, column] = numbers_of_class[rank] if rank < head else rank
    return numbers


@numba.njit(cache=True, nogil=True)
def _sort(run: npt.NDArray[np.uint32]) -> None:
    """Sort in place; insertion is ten times faster for runs of two or three, which most are."""
    if len(run) > _LONG_RUN:
        run.sort()
        return
    for end in range(1, len(run)):
        number = run[end]
        at = end
        while at > 0 and run[at - 1] > number:
            run[at] = run[at - 1]
            at -= 1
        run[at] = number


@numba.njit(cache=True, nogil=True)
def code_ties(numbers: npt.NDArray[np.uint32], differences: npt.NDArray[np.uint16]) -> int:
    """Sort each run of equal log-probability by number and replace it by gaps, in place.

    The order inside a run carries no information, and a sorted run of n entries takes log2(n!) bits
    less. A run begins at column 1 at the earliest: entry 0 stays the model's first choice. The
    first number of a run is kept; each later number becomes its distance to the number before,
    minus 1. Absent entries become 0.

    Args:
        numbers: uint32 [n, k], replaced.
        differences: uint16 [n, k] from `quantize_logprobs`.

    Returns:
        The first row with the same number twice in a run, or `SOUND`.
    """
    columns = numbers.shape[1]
    for row in range(len(numbers)):
        start = 0
        while start < columns:
            if differences[row, start] == ABSENT:
                numbers[row, start:] = 0
                break
            stop = start + 1
            if start > 0:
                while stop < columns and differences[row, stop] == 0:
                    stop += 1
            if stop > start + 1:
                _sort(numbers[row, start:stop])
                for column in range(stop - 1, start, -1):
                    if numbers[row, column] == numbers[row, column - 1]:
                        return row
                    numbers[row, column] -= numbers[row, column - 1] + np.uint32(1)
            start = stop
    return SOUND


@numba.njit(nogil=True, inline="always")
def _decode_gaps(
    width: np.uint64,
    values: _Array,
    differences: npt.NDArray[np.uint16],
    first: int,
    row_class: npt.NDArray[np.uint16],
    table: _Array,
    head: int,
    vocab_size: int,
    step: float,
    out_ids: npt.NDArray[np.int32],
    out_logprobs: npt.NDArray[np.float32],
) -> int:
    """`decode_gaps` for groups of `width` columns.

    Without branches inside a row, because a processor cannot predict whether a number is a gap or
    below the head. The values that depend on the entry before are computed in a loop of their own;
    the other loops handle several entries at a time.
    """
    # Unsigned indices, because a signed index may count from the end, which costs a comparison.
    # numba widens every sum to 64 bits, and a vector holds half as many of them; hence the casts.
    groups, columns = np.uint64(differences.shape[0]), np.uint64(out_ids.shape[1])
    one, zero = np.uint32(1), np.uint32(0)
    below, last = np.uint32(head), np.uint32(vocab_size - 1)
    shared = np.uint32(len(table) - vocab_size)
    totals = np.empty(groups * width, np.int32)
    followings = np.empty(groups * width, np.uint32)
    for row in range(np.uint64(len(out_ids))):
        source = np.uint64(first) + row
        total, following = np.int32(0), zero
        for group in range(groups):
            start = group * width
            gaps, steps = values[group, source], differences[group, source]
            for i in range(width):
                total = np.int32(total + steps[i])
                totals[start + i] = total
                gap = np.uint32(zero - np.uint32((steps[i] == 0) & (start + i > one)))
                following = np.uint32(gaps[i] + one + (following & gap))
                followings[start + i] = following
        # Sums beyond the last entry have no meaning and are not used.
        count = columns
        while count > 0 and differences[(count - one) // width, source, (count - one) % width] == (
            ABSENT
        ):
            count -= one
        for column in range(count):
            out_logprobs[row, column] = np.float32(-step * np.float64(totals[column]))
        offset, largest = np.uint32(row_class[row] * below), zero
        for column in range(count):
            number = np.uint32(followings[column] - one)
            largest = max(largest, number)
            number = min(number, last)
            followings[column] = np.uint32((offset if number < below else shared) + number)
        if largest > last:
            return int(row)
        for column in range(count):
            out_ids[row, column] = table[followings[column]]
        for column in range(count, columns):
            out_ids[row, column] = 0
            out_logprobs[row, column] = -np.inf
    return SOUND


@numba.njit(cache=True, nogil=True)
def decode_gaps(
    values: _Array,
    differences: npt.NDArray[np.uint16],
    first: int,
    row_class: npt.NDArray[np.uint16],
    table: _Array,
    head: int,
    vocab_size: int,
    step: float,
    out_ids: npt.NDArray[np.int32],
    out_logprobs: npt.NDArray[np.float32],
) -> int:
    """Ids and log-probabilities of `compact` rows.

    Args:
        values: uint16 or uint32 [groups, chunk, columns]: the result of `code_ties`, divided into
            groups of columns.
        differences: uint16 of the same shape, from `quantize_logprobs`.
        first: the row of the chunk to begin with.
        row_class: uint16 [n], below C.
        table: uint16 or int32 [C · H + V]: `IdOrder.table`.
        head: H.
        vocab_size: V.
        step: the grid in nats.
        out_ids: int32 [n, k], receives the ids; 0 for absent entries.
        out_logprobs: float32 [n, k], receives the log-probabilities.

    Returns:
        The first row with a number outside the vocabulary, or `SOUND`.
    """
    # A call of its own for the usual width: the compiler unrolls loops of a constant length, which
    # saves a fifth of the time.
    if differences.shape[2] == USUAL_WIDTH:
        return _decode_gaps(
            np.uint64(USUAL_WIDTH),
            values,
            differences,
            first,
            row_class,
            table,
            head,
            vocab_size,
            step,
            out_ids,
            out_logprobs,
        )
    return _decode_gaps(
        np.uint64(differences.shape[2]),
        values,
        differences,
        first,
        row_class,
        table,
        head,
        vocab_size,
        step,
        out_ids,
        out_logprobs,
    )


@numba.njit(cache=True, nogil=True)
def decode_numbers(
    values: _Array,
    first: int,
    logprobs: npt.NDArray[np.float32],
    row_class: npt.NDArray[np.uint16],
    table: _Array,
    head: int,
    vocab_size: int,
    out_ids: npt.NDArray[np.int32],
) -> int:
    """Ids of `lossless` rows, given their log-probabilities float32 [n, k].

    As `decode_gaps`, with values that are the numbers themselves.
    """
    rows, columns = out_ids.shape
    groups, _, width = values.shape
    below, last = np.uint32(head), np.uint32(vocab_size - 1)
    shared = np.uint32(len(table) - vocab_size)
    for row in range(rows):
        offset = np.uint32(row_class[row]) * below
        for group in range(groups):
            start = group * width
            for column in range(start, min(start + width, columns)):
                number = np.uint32(values[group, first + row, column - start])
                if number > last:
                    return row
                token_id = table[(offset if number < below else shared) + number]
                out_ids[row, column] = token_id if logprobs[row, column] > -np.inf else 0
    return SOUND


@numba.njit(cache=True, nogil=True)
def decode_grid(numbers: _Array, step: float, out: npt.NDArray[np.float32]) -> None:
    """Log-probabilities of grid numbers that are not differences: uint16 [n, k] to float32."""
    for row in range(len(numbers)):
        for column in range(numbers.shape[1]):
            number = numbers[row, column]
            logprob = np.float32(-step * np.float64(number))
            out[row, column] = logprob if number != ABSENT else np.float32(-np.inf)
