"""The loops between stored values and rows, compiled; `docs/format.md` says the same in words.

The tests hold them to plain Python versions. All are single-threaded and give equal output for
equal input.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from fusestore.storage.codec import ABSENT

SOUND = -1
"""What a kernel returns when no row is bad."""

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
def code_ties(numbers: npt.NDArray[np.uint32], differences: npt.NDArray[np.uint16]) -> int:
    """Sort each run of equal log-probability by number and keep the gaps, in place.

    The order inside a run says nothing, and without it a run of n entries takes log2(n!) bits less.
    A run begins at column 1 at the earliest: entry 0 stays the model's first choice. The first
    number of a run is kept; each later one becomes its distance to the one before, minus 1.
    Absent entries become 0.

    Args:
        numbers: uint32 [n, k], replaced.
        differences: uint16 [n, k] from `quantize_logprobs`.

    Returns:
        The first row that holds one number twice in a run, or `SOUND`.
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
                numbers[row, start:stop].sort()
                for column in range(stop - 1, start, -1):
                    if numbers[row, column] == numbers[row, column - 1]:
                        return row
                    numbers[row, column] -= numbers[row, column - 1] + np.uint32(1)
            start = stop
    return SOUND


@numba.njit(cache=True, nogil=True)
def decode_tied(
    values: _Array,
    differences: npt.NDArray[np.uint16],
    row_class: npt.NDArray[np.uint16],
    class_ids: npt.NDArray[np.int32],
    rank_to_id: npt.NDArray[np.int32],
    step: float,
    out_ids: npt.NDArray[np.int32],
    out_logprobs: npt.NDArray[np.float32],
) -> int:
    """Ids and log-probabilities of `compact` rows.

    Args:
        values: uint16 or uint32 [n, k], as `code_ties` leaves numbers.
        differences: uint16 [groups, n, columns]: `quantize_logprobs`, cut into groups of columns.
        row_class: uint16 [n].
        class_ids: int32 [C, H].
        rank_to_id: int32 [V].
        step: the grid in nats.
        out_ids: int32 [n, k], filled; 0 for absent entries.
        out_logprobs: float32 [n, k], filled.

    Returns:
        The first row with a number outside the vocabulary, or `SOUND`.
    """
    rows, columns = out_ids.shape
    width = differences.shape[2]
    head, vocab_size = class_ids.shape[1], len(rank_to_id)
    for row in range(rows):
        ids_of_class = class_ids[row_class[row]]
        total = np.int64(0)
        number = np.int64(0)
        column = 0
        while column < columns:
            group = column // width
            for inner in range(min(width, columns - group * width)):
                difference = differences[group, row, inner]
                if difference == ABSENT:
                    out_ids[row, column:] = 0
                    out_logprobs[row, column:] = -np.inf
                    column = columns
                    break
                value = np.int64(values[row, column])
                number = number + value + 1 if difference == 0 and column > 1 else value
                if number >= vocab_size:
                    return row
                total += np.int64(difference)
                out_logprobs[row, column] = np.float32(-step * np.float64(total))
                out_ids[row, column] = ids_of_class[number] if number < head else rank_to_id[number]
                column += 1
    return SOUND


@numba.njit(cache=True, nogil=True)
def decode_ordered(
    values: _Array,
    logprobs: npt.NDArray[np.float32],
    row_class: npt.NDArray[np.uint16],
    class_ids: npt.NDArray[np.int32],
    rank_to_id: npt.NDArray[np.int32],
    out_ids: npt.NDArray[np.int32],
) -> int:
    """Ids of `lossless` rows, whose log-probabilities float32 [n, k] are read already.

    As `decode_tied`, with values that are the numbers themselves.
    """
    rows, columns = out_ids.shape
    head, vocab_size = class_ids.shape[1], len(rank_to_id)
    for row in range(rows):
        ids_of_class = class_ids[row_class[row]]
        for column in range(columns):
            if logprobs[row, column] == -np.inf:
                out_ids[row, column] = 0
                continue
            number = np.int64(values[row, column])
            if number >= vocab_size:
                return row
            out_ids[row, column] = ids_of_class[number] if number < head else rank_to_id[number]
    return SOUND


@numba.njit(cache=True, nogil=True)
def decode_grid(numbers: _Array, step: float, out: npt.NDArray[np.float32]) -> None:
    """Log-probabilities of grid numbers that are no differences: uint16 [n, k] to float32."""
    for row in range(len(numbers)):
        for column in range(numbers.shape[1]):
            number = numbers[row, column]
            logprob = np.float32(-step * np.float64(number))
            out[row, column] = logprob if number != ABSENT else np.float32(-np.inf)
