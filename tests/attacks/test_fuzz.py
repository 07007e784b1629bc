"""Mutations of every kind of file: 200 by default, 10,000 more in the slow suite.

Others: `python -m tests.attacks.fuzz /dev/shm --count 10000 --seed 1`. Coverage-guided ones of JSON
documents alone: `python -m tests.attacks.fuzz_documents 60`.
"""

import pytest

from tests.attacks import fuzz

DEFAULT = 200
SLOW, AT_ONCE = 10_000, 2_000


def test_mutations_end_in_errors_of_ours_or_in_numbers(tmp_path):
    tally = fuzz.run(tmp_path, range(DEFAULT), seed=0)
    assert not tally.failures
    assert tally.outcomes["verify: found"] > DEFAULT / 2


@pytest.mark.slow
@pytest.mark.parametrize("first", range(DEFAULT, DEFAULT + SLOW, AT_ONCE))
def test_many_mutations(tmp_path, first):
    outcomes, failures = fuzz.in_processes(tmp_path, range(first, first + AT_ONCE), seed=0, jobs=1)
    assert not failures
    assert outcomes["verify: found"] > AT_ONCE / 2


def test_the_same_seed_makes_the_same_mutations(tmp_path):
    tallies = [fuzz.run(tmp_path / str(each), range(5), seed=7) for each in range(2)]
    assert tallies[0].outcomes == tallies[1].outcomes
