"""Mutations of every kind of file: 200 by default, 1,000 more in the slow suite.

10,000 take about 15 minutes of one core, so they are run by hand, when readers have changed:
`python -m tests.attacks.fuzz --count 10000`. docs/security.md has the result of the last such run.
Coverage-guided ones of JSON documents alone: `python -m tests.attacks.fuzz_documents 60`.
"""

import pytest

from tests.attacks import fuzz

DEFAULT = 200
SLOW = 1_000


def test_mutations_end_in_errors_of_ours_or_in_numbers(tmp_path):
    tally = fuzz.run(tmp_path, range(DEFAULT), seed=0)
    assert not tally.failures
    assert tally.outcomes["verify: found"] > DEFAULT / 2


@pytest.mark.slow
def test_many_mutations():
    outcomes, failures = fuzz.in_processes(range(DEFAULT, DEFAULT + SLOW), seed=0, jobs=1)
    assert not failures
    assert outcomes["verify: found"] > SLOW / 2


def test_the_same_seed_makes_the_same_mutations(tmp_path):
    tallies = [fuzz.run(tmp_path / str(each), range(5), seed=7) for each in range(2)]
    assert tallies[0].outcomes == tallies[1].outcomes
