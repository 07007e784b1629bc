"""The compiled loops against plain Python, which does one entry at a time."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusestore.cache.id_order import IdOrder
from fusestore.cache.kernels import (
    SOUND,
    code_ties,
    decode_gaps,
    decode_grid,
    decode_numbers,
    number_ids,
)
from fusestore.store.codec import ABSENT, quantize_logprobs


def make_order(generator, vocab_size, classes, head):
    return IdOrder(
        generator.permutation(vocab_size).astype(np.int32),
        generator.integers(0, classes, vocab_size).astype(np.uint16),
        np.stack([generator.permutation(head) for _ in range(classes)]).astype(np.uint16),
    )


@st.composite
def cases(draw):
    """An order of ids, the class of each row, and rows of distinct ids with many equal values."""
    vocab_size = draw(st.sampled_from([1, 7, 40, 70_000]))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    order = make_order(
        generator,
        vocab_size,
        draw(st.integers(1, 3)),
        draw(st.integers(1, min(vocab_size, 4096))),
    )
    n, k = draw(st.integers(0, 6)), draw(st.integers(1, min(vocab_size, 100)))
    ids = np.stack([generator.permutation(vocab_size)[:k] for _ in range(n)] or [np.zeros(k)])[:n]
    logprobs = -np.sort(
        generator.exponential(1, (n, k)).round(draw(st.integers(0, 1))), axis=1
    ).astype(np.float32)
    logprobs[np.arange(k) >= generator.integers(0, 2 * k + 1, n)[:, None]] = -np.inf
    row_class = order.token_class[generator.integers(0, vocab_size, n)]
    return order, row_class, ids.astype(np.int32), logprobs


def plain_numbers(order, row_class, ids, logprobs):
    """What stands for each entry in the profile lossless: docs/format.md the other way round."""
    numbers = np.zeros(ids.shape, np.uint32)
    for row in range(len(ids)):
        own = order.class_order[row_class[row]].tolist()
        for column, token_id in enumerate(ids[row]):
            if logprobs[row, column] > -np.inf:
                rank = order.rank_to_id.tolist().index(token_id)
                numbers[row, column] = own.index(rank) if rank < len(own) else rank
    return numbers


def plain_gaps(numbers, differences):
    """What stands for each entry in the profile compact."""
    values = np.zeros_like(numbers)
    for row in range(len(numbers)):
        run = []
        for column in range(numbers.shape[1]):
            if differences[row, column] == ABSENT:
                break
            if column < 2 or differences[row, column] != 0:
                run = []
            run.append(int(numbers[row, column]))
            ordered = sorted(run)
            at = column - len(run) + 1
            for j, number in enumerate(ordered):
                values[row, at + j] = number if j == 0 else number - ordered[j - 1] - 1
    return values


def plain_ids(order, row_class, numbers, logprobs):
    ids = np.zeros(numbers.shape, np.int32)
    for row, column in zip(*np.nonzero(logprobs > -np.inf), strict=True):
        number = int(numbers[row, column])
        own = order.class_order[row_class[row]]
        ids[row, column] = order.rank_to_id[own[number] if number < len(own) else number]
    return ids


def grouped(values, width):
    """[n, k] cut into groups of columns, as `ArrayReader.chunks` gives them."""
    n, k = values.shape
    groups = -(-k // width)
    padded = np.zeros((n, groups * width), values.dtype)
    padded[:, :k] = values
    return np.ascontiguousarray(padded.reshape(n, groups, width).transpose(1, 0, 2))


@pytest.mark.slow
@settings(deadline=None)
@given(
    case=cases(),
    width=st.sampled_from([1, 3, 16]),
    first=st.integers(0, 2),
    step=st.sampled_from([1 / 16, 0.1]),
)
def test_the_loops_do_what_plain_python_does(case, width, first, step):
    order, row_class, ids, logprobs = case
    numbers = number_ids(ids, logprobs, row_class, order.class_numbers, order.id_to_rank)
    assert np.array_equal(numbers, plain_numbers(order, row_class, ids, logprobs))

    differences = quantize_logprobs(logprobs, step)
    values = numbers.copy()
    assert code_ties(values, differences) == SOUND
    assert np.array_equal(values, plain_gaps(numbers, differences))

    first = min(first, len(ids))
    here, exact = logprobs[first:], np.ascontiguousarray(logprobs[first:])
    got_ids, got_logprobs = np.empty(here.shape, np.int32), np.empty(here.shape, np.float32)
    decode = (row_class[first:], order.table, order.head, order.vocab_size)
    assert decode_numbers(grouped(numbers, width), first, exact, *decode, got_ids) == SOUND
    assert np.array_equal(got_ids, plain_ids(order, row_class, numbers, logprobs)[first:])
    assert np.array_equal(got_ids, np.where(np.isneginf(here), 0, ids[first:]))

    steps = grouped(differences, width)
    values = grouped(values, width)
    assert decode_gaps(values, steps, first, *decode, step, got_ids, got_logprobs) == SOUND
    expected = np.where(
        differences == ABSENT,
        -np.inf,
        differences.astype(np.float64).cumsum(axis=1) * -step,
    )
    assert np.array_equal(got_logprobs, expected[first:].astype(np.float32))
    for row, stored in enumerate(got_logprobs):
        for logprob in np.unique(stored[np.isfinite(stored)]):
            run = np.flatnonzero(stored == logprob)
            assert set(got_ids[row, run]) == set(ids[first + row, run])
        if np.isfinite(stored[:1]).all():
            assert got_ids[row, 0] == ids[first + row, 0]


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_a_number_outside_the_vocabulary_is_found(dtype):
    order = make_order(np.random.default_rng(0), 9, 1, 4)
    decode = (np.zeros(3, np.uint16), order.table, order.head, order.vocab_size)
    largest = np.iinfo(dtype).max
    ids, logprobs = np.empty((3, 4), np.int32), np.zeros((3, 4), np.float32)
    for bad in (9, largest - 1, largest):
        values = np.zeros((1, 3, 4), dtype)
        values[0, 1, 2] = bad
        differences = np.ones((1, 3, 4), np.uint16)
        assert decode_numbers(values, 0, logprobs, *decode, ids) == 1
        assert decode_gaps(values, differences, 0, *decode, 1.0, ids, logprobs) == 1
    # Each gap is small, their sum is not.
    values, differences = np.full((1, 3, 4), 4, dtype), np.zeros((1, 3, 4), np.uint16)
    assert decode_gaps(values, differences, 0, *decode, 1.0, ids, logprobs) == 0


def test_one_number_twice_in_a_run_is_found():
    differences = np.array([[1, 1, 0, 0], [1, 1, 0, 1]], np.uint16)
    numbers = np.array([[1, 2, 3, 4], [5, 6, 6, 7]], np.uint32)
    assert code_ties(numbers, differences) == 1


@pytest.mark.parametrize("step", [1 / 16, 0.1])
def test_grid_numbers_are_multiplied_in_float64(step):
    numbers = np.arange(2**16, dtype=np.uint16).reshape(-1, 8)
    out = np.empty(numbers.shape, np.float32)
    decode_grid(numbers, step, out)
    expected = np.where(numbers == ABSENT, -np.inf, numbers.astype(np.float64) * -step)
    assert np.array_equal(out, expected.astype(np.float32))
