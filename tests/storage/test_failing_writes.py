"""Every command, when a write fails: see `tests/helpers/failing_writes.py`."""

import os

import pytest

from tests.helpers.failing_writes import STAGES, run_stages


@pytest.fixture(autouse=True)
def _scratch(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))


def check(tmp_path, names, most):
    """Try some of the operations of each stage; a number in the environment chooses others."""
    seed = os.environ.get("FAILING_WRITES_SEED", "1")
    chosen = [word for name in names for word in ("--stage", name)]
    found = run_stages(tmp_path, *chosen, "--most", str(most), "--seed", seed)
    if found is None:
        pytest.skip("no compiler of C, or no Linux: writes of libraries cannot be made to fail")
    assert {each["stage"] for each in found} == set(names)
    assert [problem for each in found for problem in each["problems"]] == []


def test_a_command_ends_with_what_to_do_and_continues(tmp_path):
    check(tmp_path, ["init", "align"], 2)


@pytest.mark.slow
def test_commands_that_only_read_and_write(tmp_path):
    check(tmp_path, [name for name, stage in STAGES.items() if not stage.needs_torch], 1)


@pytest.mark.slow
def test_commands_that_run_models(tmp_path):
    check(tmp_path, [name for name, stage in STAGES.items() if stage.needs_torch], 2)
