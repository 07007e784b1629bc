"""Parameters of a test of which a usual run takes a few."""

import pytest


def some(values, *quick):
    """All values; those that are not among the quick ones are for slow runs."""
    return [
        pytest.param(value, marks=() if value in quick else pytest.mark.slow) for value in values
    ]


def first(count, values):
    """All values; those after the first `count` are for slow runs."""
    return [
        pytest.param(*value, marks=() if place < count else pytest.mark.slow)
        for place, value in enumerate(values)
    ]
