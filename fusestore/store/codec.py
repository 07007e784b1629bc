"""Log-probabilities as small integers and back: pure functions of arrays.

Log-probabilities are rounded to a grid of `step` nats: `n = rint(-logprob / step)`, with an error
of at most `step / 2`. Along a row, falling log-probabilities give rising `n`; the differences
`n[0], n[1] - n[0], …` are stored. `docs/format.md` says the same for readers in other languages.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fusestore.errors import CorruptionError, InvalidInputError, NonFiniteError

ABSENT = 65535
"""Stored in place of −inf."""

LARGEST = 65534
"""The largest grid number: log-probabilities below `-LARGEST * step` are stored as this one."""

MIN_STEP = 1 / 512
"""With this step the grid ends at −128 nats, below the log of the smallest float32 (−103.3)."""

MAX_STEP = 1.0

TAIL_STEP = 1 / 256
"""Grid of the tail in caches with log-probabilities on a grid: an error of at most 1/512 nat."""

MAX_DRAWS = 65535
"""The largest count of an entry, a uint16."""

POSITIVE_TOLERANCE = 1e-3
"""A log-probability may exceed 0 by float32 rounding of the softmax, not by more."""

_Floats = npt.NDArray[np.float32]


def quantize_logprobs(logprobs: _Floats, step: float) -> npt.NDArray[np.uint16]:
    """Grid numbers of rows of falling log-probabilities, as differences down the row.

    Args:
        logprobs: float32 [n, k] in nats, falling along each row; −inf for absent entries.
        step: the grid in nats, from `MIN_STEP` to `MAX_STEP`.

    Returns:
        uint16 [n, k]; `ABSENT` where the log-probability is −inf.

    Raises:
        NonFiniteError: NaN or +inf among the values.
        InvalidInputError: a row that rises, a log-probability above 0, a step out of range.
    """
    check_step(step)
    check_rows(logprobs)
    absent = np.isneginf(logprobs)
    numbers = _to_grid(logprobs, step)
    differences = numbers.copy()
    differences[:, 1:] -= numbers[:, :-1]
    differences[absent] = ABSENT
    return differences.astype(np.uint16)


def to_grid(values: _Floats, step: float) -> npt.NDArray[np.uint16]:
    """Grid numbers of logs, not differences: float32 to uint16 of one shape; `ABSENT` for −inf.

    The values must have passed `check_rows` or `check_tail`.
    """
    numbers = _to_grid(values, step)
    numbers[np.isneginf(values)] = ABSENT
    return numbers.astype(np.uint16)


def counts_of(logprobs: _Floats, draws: int) -> npt.NDArray[np.uint16]:
    """The number of draws that fell on each entry of sampled rows.

    Args:
        logprobs: float32 [n, k] log(count / draws), falling along each row; −inf where none fell.
        draws: the number of draws per row, at most `MAX_DRAWS`.

    Returns:
        uint16 [n, k], 0 for −inf.

    Raises:
        NonFiniteError: NaN or +inf among the values.
        InvalidInputError: a row that rises, or with entries that are no shares of `draws`.
    """
    check_rows(logprobs)
    shares = np.exp(logprobs.astype(np.float64)) * draws
    counts: npt.NDArray[np.float64] = np.rint(shares)
    off = np.abs(shares - counts) > 1e-6 * draws
    total = counts.sum(axis=1)
    wrong = off.any(axis=1) | ((total != draws) & (total != 0))
    if wrong.any():
        row = int(np.argmax(wrong))
        raise InvalidInputError(
            f"Row {row} does not hold the shares of {draws} draws: they add up to "
            f"{shares[row].sum():g}. Store log(count / draws) of every id that was drawn."
        )
    return counts.astype(np.uint16)


def logprobs_of_counts(counts: npt.NDArray[np.uint16], draws: int) -> _Floats:
    """Inverse of `counts_of`: uint16 [n, k] to float32 [n, k], exact.

    Raises:
        CorruptionError: a count above the number of draws.
    """
    if counts.size and int(counts.max()) > draws:
        raise CorruptionError(
            f"A stored row has a count of {counts.max()} among {draws} draws. "
            "Run `fusestore verify`."
        )
    with np.errstate(divide="ignore"):
        table = np.log(np.arange(draws + 1) / draws).astype(np.float32)
    logprobs: _Floats = table[counts]
    return logprobs


def check_step(step: float) -> None:
    """Refuse a grid that is too coarse to be useful or too fine for 16 bits."""
    if not MIN_STEP <= step <= MAX_STEP:
        raise InvalidInputError(
            f"A log-probability step of {step:g} nats is outside {MIN_STEP:g} to {MAX_STEP:g}. "
            "Choose a step inside, or the profile `lossless`, which keeps exact log-probabilities."
        )


def check_rows(logprobs: _Floats) -> None:
    """Refuse rows that are not falling log-probabilities; the message names the row.

    Raises:
        NonFiniteError: NaN or +inf among the values.
        InvalidInputError: a row that rises, a log-probability above 0.
    """
    invalid = ~(logprobs < np.inf)
    if invalid.any():
        row = int(np.argmax(invalid.any(axis=1)))
        raise NonFiniteError(
            f"Row {row} holds {logprobs[row][invalid[row]][0]} among its log-probabilities."
        )
    rising = logprobs[:, 1:] > logprobs[:, :-1]
    if rising.any():
        row = int(np.argmax(rising.any(axis=1)))
        raise InvalidInputError(
            f"The log-probabilities of row {row} rise along the row; they must fall. "
            "Sort the entries of each row by falling log-probability."
        )
    if logprobs.size and logprobs[:, 0].max() > POSITIVE_TOLERANCE:
        row = int(np.argmax(logprobs[:, 0]))
        raise InvalidInputError(
            f"Row {row} holds the log-probability {logprobs[row, 0]:g}, above 0. "
            "Store natural logs of the full softmax, not logits."
        )


def check_tail(tail: _Floats) -> None:
    """Refuse tails that are not logs of a mass; the message names the row.

    Raises:
        NonFiniteError: NaN or +inf among the values.
        InvalidInputError: a value above 0.
    """
    invalid = ~(tail < np.inf)
    if invalid.any():
        raise NonFiniteError(
            f"Row {int(np.argmax(invalid))} has the tail {tail[np.argmax(invalid)]}."
        )
    if tail.size and tail.max() > POSITIVE_TOLERANCE:
        row = int(np.argmax(tail))
        raise InvalidInputError(
            f"Row {row} has the tail {tail[row]:g}, above 0: it must be the log of the mass "
            "outside the kept entries."
        )


def _to_grid(values: _Floats, step: float) -> npt.NDArray[np.int64]:
    """rint(-value / step) within 0..LARGEST; −inf becomes LARGEST, for the caller to mark."""
    scaled = np.rint(values.astype(np.float64) / -step)
    return np.clip(scaled, 0, LARGEST).astype(np.int64)
