"""The codec against plain float64 arithmetic."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fusestore.errors import CorruptionError, InvalidInputError, NonFiniteError
from fusestore.store.codec import (
    ABSENT,
    LARGEST,
    MAX_DRAWS,
    MIN_STEP,
    TAIL_STEP,
    counts_of,
    logprobs_of_counts,
    quantize_logprobs,
    to_grid,
)


def dequantize_logprobs(differences, step):
    """Plainly what the compiled kernels decode."""
    absent = differences == ABSENT
    numbers = np.cumsum(differences, axis=1, dtype=np.uint32)
    logprobs = (numbers * -step).astype(np.float32)
    logprobs[absent] = -np.inf
    return logprobs


def from_grid(numbers, step):
    values = (numbers.astype(np.uint32) * -step).astype(np.float32)
    values[numbers == ABSENT] = -np.inf
    return values


steps = st.sampled_from([1 / 16, 1 / 32, 1 / 512, 1.0, 0.1, 0.0371])
logprob = st.one_of(
    st.floats(-20, 0, width=32),
    st.just(-math.inf),
    st.floats(-(2.0**100), 0, width=32),
    st.just(5e-7),
)


@st.composite
def falling_rows(draw):
    shape = draw(st.tuples(st.integers(0, 5), st.integers(1, 9)))
    values = draw(hnp.arrays(np.float32, shape, elements=logprob.map(np.float32)))
    return -np.sort(-values, axis=1)


@given(rows=falling_rows(), step=steps)
def test_logprobs_round_trip_within_half_a_step(rows, step):
    back = dequantize_logprobs(quantize_logprobs(rows, step), step)
    assert back.dtype == np.float32
    for stored, captured in zip(back.ravel().tolist(), rows.ravel().tolist(), strict=True):
        if captured == -math.inf:
            assert stored == -math.inf
        else:
            expected = max(captured, -LARGEST * step)
            assert abs(stored - expected) <= step / 2 * (1 + 1e-6) + 1e-6 * abs(expected)
    assert np.all(back[:, 1:] <= back[:, :-1])


def test_what_is_stored_is_what_the_format_says():
    rows = np.array([[-0.5, -0.52, -3.0, -np.inf]], np.float32)
    assert quantize_logprobs(rows, 1 / 16).tolist() == [[8, 0, 40, ABSENT]]


def test_values_below_the_grid_have_no_probability_left():
    rows = np.array([[0.0, -1e6]], np.float32)
    back = dequantize_logprobs(quantize_logprobs(rows, MIN_STEP), MIN_STEP)
    assert np.exp(back[0, 1]) == 0.0


@given(hnp.arrays(np.float32, st.integers(0, 20), elements=logprob.map(np.float32)))
def test_tail_round_trips_within_half_a_step(tail):
    back = from_grid(to_grid(tail, TAIL_STEP), TAIL_STEP)
    expected = np.maximum(tail, -LARGEST * TAIL_STEP, where=np.isfinite(tail), out=tail.copy())
    finite = np.isfinite(tail)
    assert np.array_equal(np.isneginf(back), np.isneginf(tail))
    assert np.all(np.abs(back[finite] - expected[finite]) <= TAIL_STEP / 2 * (1 + 1e-5))


@pytest.mark.parametrize(
    ("row", "error"),
    [
        ([0.0, np.nan], NonFiniteError),
        ([np.nan, np.nan], NonFiniteError),
        ([np.inf, 0.0], NonFiniteError),
        ([-2.0, -1.0], InvalidInputError),
        ([1.5, -1.0], InvalidInputError),
    ],
)
def test_what_is_no_row_is_refused_and_named(row, error):
    rows = np.array([[-1.0, -2.0], row], np.float32)
    with pytest.raises(error, match=r"[Rr]ow 1"):
        quantize_logprobs(rows, 1 / 16)


@pytest.mark.parametrize("step", [0.0, 1 / 1024, 2.0, -1.0, math.nan])
def test_a_step_outside_the_range_is_refused(step):
    with pytest.raises(InvalidInputError, match="step"):
        quantize_logprobs(np.zeros((1, 1), np.float32), step)


@given(
    draws=st.one_of(st.integers(1, 200), st.just(MAX_DRAWS)),
    cuts=st.lists(st.lists(st.floats(0, 1), max_size=6), min_size=1, max_size=4),
)
def test_counts_of_draws_come_back_exactly(draws, cuts):
    counts = np.zeros((len(cuts) + 1, 7), np.uint16)
    for row, places in enumerate(cuts):
        bounds = np.rint(np.sort([0, *places, 1]) * draws).astype(int)
        counts[row, : len(bounds) - 1] = np.diff(bounds)
    # The last row is a skipped document's: nothing was drawn.
    counts = -np.sort(-counts.astype(int), axis=1).astype(np.uint16)
    logprobs = logprobs_of_counts(counts, draws)
    assert logprobs.dtype == np.float32
    with np.errstate(divide="ignore"):
        np.testing.assert_array_equal(logprobs, np.log(counts / draws).astype(np.float32))
    np.testing.assert_array_equal(counts_of(logprobs, draws), counts)


def test_what_is_no_share_of_the_draws_is_refused():
    good = np.log(np.array([[3, 2, 1]], np.float32) / 6)
    assert counts_of(good, 6).tolist() == [[3, 2, 1]]
    for wrong, match in (
        (good[:, :2], "Row 0 does not hold the shares of 6 draws: they add up to 5"),
        (good - 0.1, "Row 0 does not hold the shares"),
        (good[:, ::-1], "rise along the row"),
    ):
        with pytest.raises(InvalidInputError, match=match):
            counts_of(np.ascontiguousarray(wrong), 6)
    with pytest.raises(NonFiniteError):
        counts_of(np.array([[np.nan]], np.float32), 6)


def test_a_count_above_the_draws_is_damage():
    with pytest.raises(CorruptionError, match="a count of 7 among 6 draws"):
        logprobs_of_counts(np.array([[7, 0]], np.uint16), 6)
