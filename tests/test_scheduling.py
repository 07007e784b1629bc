"""A test that ends its process is a failure, and no other test is lost for it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = """
from tests.helpers.scheduling import FilesTogether

def pytest_xdist_make_scheduler(config, log):
    return FilesTogether(config, log)
"""
FILE = """
import os
import pytest

@pytest.mark.parametrize("number", range({count}))
def test_it(number):
    if number in {deadly}:
        os._exit(1)
"""


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 3])
@pytest.mark.parametrize(
    "files",
    [
        [(4, ()), (1, ()), (4, (1,)), (1, ()), (3, ()), (3, ())],
        [(1, (0,)), (1, ()), (2, (0, 1)), (1, ())],
        [(5, ()), (5, ()), (5, ()), (5, ()), (5, (4,))],
    ],
)
def test_every_other_test_runs(tmp_path, files, processes):
    (tmp_path / "conftest.py").write_text(CONFTEST)
    for number, (count, deadly) in enumerate(files):
        (tmp_path / f"test_{number}.py").write_text(FILE.format(count=count, deadly=deadly))
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-c", os.devnull),
            *("--rootdir", str(tmp_path), "--numprocesses", str(processes), "--dist", "loadfile"),
            *("--no-loadscope-reorder", str(tmp_path)),
        ],
        env={**environment, "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    failed = sum(len(deadly) for _, deadly in files)
    passed = sum(count for count, _ in files) - failed
    assert f"{failed} failed, {passed} passed" in ended.stdout, ended.stdout[-3000:]
