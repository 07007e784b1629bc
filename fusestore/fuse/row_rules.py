"""Whether fused rows are distributions that a model can be trained on: one compiled pass.

`fusestore verify` looks at every row of a dataset by this, and training at every row of a batch.
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from fusestore.cache.rows import NO_LABEL, NOT_TRAINED_ON
from fusestore.store.codec import POSITIVE_TOLERANCE

MASS_TOLERANCE = 2e-3
"""How far entries and tail may be from 1 in sum, by float32 and the grids of the caches."""

PROBLEMS = (
    "",
    "input_ids holds token id {input_id}, but the target has ids 0 to {last}",
    "next_ids holds token id {next_id}, but the target has ids 0 to {last}",
    "kind {kind} is none of the {num_kinds} there are",
    "an entry has the log-probability {value:g}, which is none",
    "the log-probabilities rise",
    "ids holds token id {value:.0f}, but the target has ids 0 to {last}",
    "the token id {value:.0f} occurs twice among the entries",
    "the tail {value:g} is no log of a mass",
    "entries and tail add up to a mass of {value:.4g}",
    "it has a distribution, and its kind is none",
)
"""By the code that the kernel returns; 0 is no problem."""

_FOREIGN_IDS = (1, 2, 6)

_Ints = npt.NDArray[np.int32]
_Floats = npt.NDArray[np.float32]


class BadRow(NamedTuple):
    """The first row that breaks a rule, how, and whether by an id that the target does not have."""

    row: int
    problem: str
    is_foreign_id: bool


def first_bad_row(
    input_ids: _Ints,
    next_ids: _Ints,
    ids: _Ints,
    logprobs: _Floats,
    tail: _Floats,
    kind: npt.NDArray[np.uint8],
    vocab_size: int,
    num_kinds: int,
    *,
    unused_is_empty: bool = True,
) -> BadRow | None:
    """The first of n positions that is no row of a fused dataset; see `FusedRows`.

    Args:
        input_ids: int32 [n] tokens.
        next_ids: int32 [n] what follows, as stored.
        ids: int32 [n, k].
        logprobs: float32 [n, k], −inf for unused entries.
        tail: float32 [n].
        kind: uint8 [n].
        vocab_size: V, of the target.
        num_kinds: kinds are below it.
        unused_is_empty: whether a position of kind 0 must have no entries.
    """
    row, code, value = _first_bad(
        input_ids,
        next_ids,
        ids,
        logprobs,
        tail,
        kind,
        min(vocab_size, 2**31),
        num_kinds,
        unused_is_empty,
    )
    if code == 0:
        return None
    problem = PROBLEMS[code].format(
        input_id=input_ids[row],
        next_id=next_ids[row],
        kind=kind[row],
        value=value,
        last=vocab_size - 1,
        num_kinds=num_kinds,
    )
    return BadRow(int(row), problem, code in _FOREIGN_IDS)


@numba.njit(cache=True, nogil=True)
def _first_bad(
    input_ids: _Ints,
    next_ids: _Ints,
    ids: _Ints,
    logprobs: _Floats,
    tail: _Floats,
    kind: npt.NDArray[np.uint8],
    vocab_size: int,
    num_kinds: int,
    unused_is_empty: bool,
) -> tuple[int, int, float]:
    """The row, the index of its problem in `PROBLEMS`, and a value for the message."""
    for row in range(len(input_ids)):
        if not 0 <= input_ids[row] < vocab_size:
            return row, 1, 0.0
        following = next_ids[row]
        if following >= vocab_size or (
            following < 0 and following != NO_LABEL and following != NOT_TRAINED_ON
        ):
            return row, 2, 0.0
        if kind[row] >= num_kinds:
            return row, 3, 0.0
        code, value = _distribution(ids[row], logprobs[row], tail[row], kind[row], vocab_size)
        if code == 10 and not unused_is_empty:
            code = 0
        if code != 0:
            return row, code, value
    return 0, 0, 0.0


@numba.njit(cache=True, nogil=True)
def _distribution(
    ids: _Ints, logprobs: _Floats, tail: float, kind: int, vocab_size: int
) -> tuple[int, float]:
    if not tail <= POSITIVE_TOLERANCE:
        return 8, tail
    mass, above, used = np.exp(np.float64(tail)), np.float32(np.inf), 0
    for entry in range(len(ids)):
        logprob = logprobs[entry]
        if not logprob <= POSITIVE_TOLERANCE:
            return 4, logprob
        if logprob > above:
            return 5, 0.0
        if not 0 <= ids[entry] < vocab_size:
            return 6, ids[entry]
        above = logprob
        if logprob > -np.inf:
            mass += np.exp(np.float64(logprob))
            used += 1
    if kind == 0:
        return (10, 0.0) if used else (0, 0.0)
    for entry in range(used):
        # A loop without a branch, which compiles to vector instructions.
        same = 0
        for other in range(entry):
            same += ids[other] == ids[entry]
        if same:
            return 7, ids[entry]
    if abs(mass - 1.0) > MASS_TOLERANCE:
        return 9, mass
    return 0, 0.0
