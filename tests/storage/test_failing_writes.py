"""Every command, when a write fails: see `tests/helpers/failing_writes.py`."""

import os

import pytest

from tests.helpers.failing_writes import STAGES, run_stages


@pytest.fixture(autouse=True)
def _scratch(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))


SEED = int(os.environ.get("FAILING_WRITES_SEED", "1"))
"""Chooses among stages and operations: each number tries others."""


def check(tmp_path, names, most):
    chosen = [word for name in names for word in ("--stage", name)]
    found = run_stages(tmp_path, *chosen, "--most", str(most), "--seed", str(SEED))
    if found is None:
        pytest.skip("no compiler of C, or no Linux: writes of libraries cannot be made to fail")
    assert {each["stage"] for each in found} == set(names)
    assert [problem for each in found for problem in each["problems"]] == []


def test_a_command_ends_with_what_to_do_and_continues(tmp_path):
    check(tmp_path, ["align"], 2)


@pytest.mark.slow
@pytest.mark.parametrize("needs_torch", [False, True])
def test_a_third_of_all_commands(tmp_path, needs_torch):
    names = [name for name, stage in STAGES.items() if stage.needs_torch == needs_torch]
    check(tmp_path, names[SEED % 3 :: 3], 2)
