"""Turns of datasets: every prefix in proportion, the same forever."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fusestore.data import MixtureOrder
from fusestore.data.mixture_order import integer_weights, interleaving
from fusestore.errors import InvalidInputError

all_weights = st.lists(st.integers(1, 40), min_size=1, max_size=7)
orders = st.integers(1, 4).flatmap(
    lambda count: st.builds(
        MixtureOrder,
        sizes=st.tuples(*[st.integers(1, 30)] * count),
        weights=st.tuples(*[st.integers(1, 9)] * count),
    )
)


def test_the_order_never_changes():
    assert interleaving([5, 3, 2]).tolist() == PINNED
    order = MixtureOrder((4, 3), (2, 1))
    turn, number = order.turns(1)
    assert turn.tolist() == TURN
    assert number.tolist() == NUMBER


PINNED = [0, 1, 0, 2, 0, 1, 0, 1, 0, 2]
TURN = [0, 1, 0, 0, 1, 0, 0]
NUMBER = [5, 2, 6, 7, 3, 8, 9]


@given(all_weights)
@example([1])
@example([40, 1, 1, 1, 1, 1, 1])
@example([7, 7, 7, 1, 1, 2, 40])
def test_every_prefix_has_every_datasets_share_to_less_than_one(weights):
    places, total = interleaving(weights), sum(weights)
    assert len(places) == total
    for index, weight in enumerate(weights):
        came = 0
        for length in range(1, total + 1):
            came += int(places[length - 1] == index)
            assert abs(came - Fraction(length * weight, total)) < 1
        assert came == weight


@given(orders, st.integers(0, 6))
def test_epochs_go_on_where_the_one_before_stopped(order, epochs):
    """Over all epochs together every prefix is in proportion; nothing begins anew."""
    came = [0] * len(order.sizes)
    length, total = 0, sum(order.weights)
    for epoch in range(epochs):
        turns, numbers = order.turns(epoch)
        assert turns.dtype == numbers.dtype == np.int64
        assert len(turns) == len(numbers) == sum(order.sizes)
        for turn, number in zip(turns.tolist(), numbers.tolist(), strict=True):
            assert number == came[turn]
            came[turn] += 1
            length += 1
            for index, weight in enumerate(order.weights):
                assert abs(came[index] * total - length * weight) < total


@given(st.lists(st.integers(1, 500), min_size=1, max_size=4))
def test_by_size_an_epoch_has_every_window_once(sizes):
    order = MixtureOrder(tuple(sizes), integer_weights(None, sizes))
    for epoch in (0, 3):
        turns, numbers = order.turns(epoch)
        for index, size in enumerate(sizes):
            mine = numbers[turns == index]
            assert mine.tolist() == list(range(epoch * size, (epoch + 1) * size))


def test_weights_are_the_decimals_they_are_written_as():
    assert integer_weights([0.7, 0.2, 0.1], [1, 1, 1]) == (7, 2, 1)
    assert integer_weights([1, 2.5], [9, 9]) == (2, 5)
    assert integer_weights([np.float64(0.25), np.int64(1)], [3, 3]) == (1, 4)
    assert integer_weights(None, [40, 60]) == (2, 3)


def test_bad_weights():
    for weights in ([1], [1, 0], [1, -2], [1, float("nan")], [1, float("inf")], [1, "x"], []):
        with pytest.raises(InvalidInputError, match="weights"):
            integer_weights(weights, [4, 4])  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="fewer digits"):
        integer_weights([0.123456789, 1], [4, 4])
    with pytest.raises(InvalidInputError):
        MixtureOrder((3,), (1,)).turns(-1)
