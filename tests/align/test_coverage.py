"""Nearly every position of an ordinary text has a row that has read the same bytes."""

from __future__ import annotations

import pytest

from tests.helpers.real_tokenizers import MAKERS, PACKAGED, real_tokenizer
from tests.helpers.row_coverage import NUM_CHARACTERS, coverage, speeches

QUICK = [("mistral", "smollm2")]
STEP = 3
"""Neighbors in `PACKAGED` are alike. No divisor of their number, so the cycle has all of them."""
CYCLE = [(name, PACKAGED[(place + STEP) % len(PACKAGED)]) for place, name in enumerate(PACKAGED)]
OTHERS = [
    pair
    for source, target in CYCLE
    for pair in ((source, target), (target, source))
    if pair not in QUICK
]
"""Each tokenizer is a source and a target twice; `benchmarks/row_coverage.py` has all pairs."""

LEAST = 0.995


@pytest.fixture(scope="module")
def text():
    return speeches()


@pytest.fixture(scope="module")
def made(request):
    def make(name):
        if name in MAKERS:
            return MAKERS[name]()
        return real_tokenizer(request.getfixturevalue(f"{name}_tokenizer_path"))

    return make


@pytest.mark.parametrize(
    ("source", "target"),
    [*QUICK, *(pytest.param(*pair, marks=pytest.mark.slow) for pair in OTHERS)],
)
def test_nearly_every_position_has_a_row(made, text, source, target):
    found = coverage(made(source), made(target), text)
    assert found.total > NUM_CHARACTERS / 8
    assert found.span + found.inside >= LEAST * found.total
