"""Projection against its definition, dense and in float64."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusestore.errors import IncompatibleError, InvalidInputError, NonFiniteError
from fusestore.fuse.project import project, project_and_measure


def test_colliding_tokens_are_summed_and_lost_mass_joins_the_tail():
    # Source tokens 0 and 2 are target token 5, token 1 is target token 3, token 3 is nothing.
    target_id = np.array([5, 3, 5, -1], np.int32)
    logprobs = np.log([[0.4, 0.3, 0.2, 0.1]]).astype(np.float32)
    ids = np.array([[1, 0, 2, 3]], np.int32)
    ids, logprobs, tail, unmapped = project_and_measure(
        ids, logprobs, np.array([-np.inf], np.float32), target_id, 3
    )
    assert ids.tolist() == [[5, 3, 0]]
    np.testing.assert_allclose(np.exp(logprobs), [[0.5, 0.4, 0.0]], rtol=1e-6)
    np.testing.assert_allclose(np.exp(tail), [0.1], rtol=1e-6)
    np.testing.assert_allclose(unmapped, [0.1], rtol=1e-6)


def test_entries_beyond_k_out_join_the_tail():
    logprobs = np.log([[0.5, 0.25, 0.125]]).astype(np.float32)
    ids, logprobs, tail = project(
        np.array([[2, 1, 0]], np.int32),
        logprobs,
        np.log([0.125]).astype(np.float32),
        np.arange(3, dtype=np.int32),
        1,
    )
    assert ids.tolist() == [[2]]
    np.testing.assert_allclose(np.exp(tail), [0.5], rtol=1e-6)


def test_a_row_is_rescaled_to_mass_one_keeping_its_ratios():
    logprobs = np.log([[0.6, 0.3]]).astype(np.float32)
    _, logprobs, tail = project(
        np.array([[0, 1]], np.int32),
        logprobs,
        np.log([0.3]).astype(np.float32),
        np.arange(2, dtype=np.int32),
        2,
    )
    np.testing.assert_allclose(np.exp(logprobs), [[0.5, 0.25]], rtol=1e-6)
    np.testing.assert_allclose(np.exp(tail), [0.25], rtol=1e-6)


def test_equal_logprobs_are_ordered_by_id():
    logprobs = np.full((1, 4), np.log(0.25), np.float32)
    ids, _, _ = project(
        np.array([[7, 1, 9, 4]], np.int32),
        logprobs,
        np.array([-np.inf], np.float32),
        np.arange(10, dtype=np.int32),
        3,
    )
    assert ids.tolist() == [[1, 4, 7]]


def test_a_row_without_mass_says_nothing():
    nothing = np.full((1, 2), -np.inf, np.float32)
    ids, logprobs, tail = project(
        np.zeros((1, 2), np.int32), nothing, nothing[0, :1], np.arange(2, dtype=np.int32), 2
    )
    assert ids.tolist() == [[0, 0]]
    assert np.all(logprobs == -np.inf)
    assert tail.tolist() == [0.0]


def test_entries_that_are_not_there_may_hold_any_id():
    ids, _, tail = project(
        np.array([[1, 99]], np.int32),
        np.array([[0.0, -np.inf]], np.float32),
        np.array([-np.inf], np.float32),
        np.arange(2, dtype=np.int32),
        2,
    )
    assert ids.tolist() == [[1, 0]]
    assert tail.tolist() == [-np.inf]


@pytest.mark.parametrize("bad_id", [-1, 2, 99])
def test_an_id_outside_the_map_is_refused(bad_id):
    with pytest.raises(IncompatibleError, match=f"token id {bad_id}.*2 source tokens"):
        project(
            np.array([[bad_id]], np.int32),
            np.zeros((1, 1), np.float32),
            np.array([-np.inf], np.float32),
            np.arange(2, dtype=np.int32),
            1,
        )


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("in_tail", [False, True])
def test_nan_and_infinite_mass_are_refused(bad, in_tail):
    logprobs = np.array([[-1.0 if in_tail else bad]], np.float32)
    tail = np.array([bad if in_tail else -1.0], np.float32)
    with pytest.raises(NonFiniteError, match="Row 0"):
        project(np.zeros((1, 1), np.int32), logprobs, tail, np.arange(2, dtype=np.int32), 1)


def test_shapes_that_disagree_are_refused():
    with pytest.raises(InvalidInputError, match=r"\(1, 2\)"):
        project(
            np.zeros((1, 2), np.int32),
            np.zeros((1, 1), np.float32),
            np.zeros(1, np.float32),
            np.arange(2, dtype=np.int32),
            1,
        )
    with pytest.raises(InvalidInputError, match="k_out is 0"):
        project(
            np.zeros((1, 1), np.int32),
            np.zeros((1, 1), np.float32),
            np.zeros(1, np.float32),
            np.arange(2, dtype=np.int32),
            0,
        )


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_rows=st.integers(0, 6),
    width=st.integers(1, 8),
    extra=st.integers(0, 12),
    target_size=st.integers(1, 10),
    k_out=st.integers(1, 10),
)
def test_projection_equals_the_dense_definition(
    helpers, seed, num_rows, width, extra, target_size, k_out
):
    rng = np.random.default_rng(seed)
    rows = helpers.random_rows(rng, num_rows, width, width + extra, [])
    target_id = rng.integers(-1, target_size, width + extra).astype(np.int32)
    full = helpers.project_dense(rows.ids, rows.logprobs, rows.tail, target_id, target_size)
    ids, logprobs, tail, unmapped = project_and_measure(
        rows.ids, rows.logprobs, rows.tail, target_id, k_out
    )
    helpers.assert_sparse_form(ids, logprobs, tail, full, k_out)
    identity = np.arange(width + extra, dtype=np.int32)
    kept = helpers.project_dense(rows.ids, rows.logprobs, rows.tail, identity, width + extra)
    np.testing.assert_allclose(unmapped, kept[:, :-1][:, target_id < 0].sum(axis=1), atol=1e-9)
