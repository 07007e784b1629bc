"""Strategies by hand and by their definitions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fusestore.errors import InvalidInputError
from fusestore.fuse.strategies import get_strategy, register_strategy, strategy_names

NAN, INF = np.nan, np.inf


def weights(name, scores, fixed=None):
    scores = np.array(scores, np.float64)
    fixed = np.ones(scores.shape[1]) if fixed is None else np.array(fixed, np.float64)
    return get_strategy(name)(scores, fixed)


def test_mince_takes_the_lowest_and_the_first_of_equals():
    assert weights("mince", [[2.0, 1.0, 3.0], [1.0, 1.0, 1.0], [NAN, 2.0, 2.0]]).tolist() == [
        [0, 1, 0],
        [1, 0, 0],
        [0, 1, 0],
    ]


def test_mince_prefers_an_unscored_source_to_an_absent_one_and_none_when_all_are_absent():
    assert weights("mince", [[NAN, INF], [NAN, NAN]]).tolist() == [[0, 1], [0, 0]]


def test_avgce_is_the_softmax_of_the_rewards():
    # Rewards exp(−0) = 1 and exp(−ln 2) = 1/2, so the odds are e^1 : e^(1/2).
    expected = [np.e / (np.e + np.sqrt(np.e)), np.sqrt(np.e) / (np.e + np.sqrt(np.e))]
    np.testing.assert_allclose(weights("avgce", [[0.0, np.log(2.0)]]), [expected], rtol=1e-12)
    np.testing.assert_allclose(weights("avgce", [[0.0, NAN], [NAN, NAN]]), [[1, 0], [0, 0]])


def test_packllm_weighs_by_the_inverse_of_perplexity():
    # Perplexities 2 and 4: weights 1/2 : 1/4.
    got = weights("packllm", [[np.log(2.0), np.log(4.0)]])
    np.testing.assert_allclose(got, [[2 / 3, 1 / 3]], rtol=1e-12)
    # However bad all are, only differences count, and nothing underflows.
    got = weights(
        "packllm", [[5000.0, 5000.0 + np.log(3.0), NAN], [INF, NAN, 1.0], [INF, INF, NAN]]
    )
    np.testing.assert_allclose(
        got, [[0.75, 0.25, 0.0], [0.0, 0.0, 1.0], [0.5, 0.5, 0.0]], rtol=1e-9
    )


@given(
    scores=arrays.arrays(
        np.float64, st.tuples(st.integers(1, 4), st.integers(1, 4)), elements=st.floats(0, 20)
    )
)
def test_packllm_is_the_softmax_of_minus_the_losses(scores):
    """The rule of the paper's code, `softmax(-losses / tau)` with tau 1, row by row."""
    expected = [[np.exp(-c) / sum(np.exp(-d) for d in row) for c in row] for row in scores]
    np.testing.assert_allclose(weights("packllm", scores), expected, rtol=1e-9)


def test_fixed_weights_are_shared_by_those_who_take_part():
    got = weights("weighted", [[5.0, 1.0, 1.0], [NAN, 1.0, 1.0]], fixed=[2.0, 1.0, 1.0])
    np.testing.assert_allclose(got, [[0.5, 0.25, 0.25], [0, 0.5, 0.5]])


def test_uniform_and_single():
    np.testing.assert_allclose(weights("uniform", [[9.0, NAN, 1.0]]), [[0.5, 0, 0.5]])
    assert weights("single", [[9.0], [NAN]]).tolist() == [[1], [0]]


def test_a_strategy_of_ones_own_and_its_name_taken():
    name = "second_of_two_in_this_test"
    if name not in strategy_names():

        @register_strategy(name)
        def second(scores, fixed_weights):
            return np.tile([0.0, 1.0], (len(scores), 1))

    assert weights(name, [[1.0, 2.0]]).tolist() == [[0, 1]]
    with pytest.raises(InvalidInputError, match="registered already"):
        register_strategy("mince")(get_strategy("mince"))
    with pytest.raises(InvalidInputError, match=r"'maxce'.*avgce, em"):
        get_strategy("maxce")


@pytest.mark.parametrize("name", ["mince", "avgce", "packllm", "weighted", "uniform"])
@given(
    scores=arrays.arrays(
        np.float64,
        st.tuples(st.integers(0, 5), st.integers(1, 4)),
        elements=st.one_of(st.floats(0, 50), st.just(INF), st.just(NAN)),
    )
)
def test_weights_sum_to_one_over_those_who_take_part(name, scores):
    got = weights(name, scores, fixed=np.arange(1, scores.shape[1] + 1))
    takes_part = ~np.isnan(scores)
    assert np.all(got >= 0)
    assert np.all(got[~takes_part] == 0)
    np.testing.assert_allclose(got.sum(axis=1), takes_part.any(axis=1).astype(float))
