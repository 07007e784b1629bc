"""Ctrl-C at any moment: a word to the user, nothing torn, and the same bytes in the end."""

import random
import shutil
import signal
import time

import pytest

from fusestore.storage.urls import Location
from tests.cli.command import start
from tests.pipeline.tiny_job import hashes, run_fusion, write_fusion


def interrupted(arguments, moment, delay):
    """Run, wait for a line of progress that begins with `moment`, and press Ctrl-C after a delay.

    Returns the exit code and what was said on standard error.
    """
    with start(*arguments) as process:
        said = ""
        for line in process.stderr:
            said += line
            if line.startswith(moment):
                break
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
        said += process.stderr.read()
        return process.wait(timeout=60), said


def check_end(code, said):
    # A signal that comes after the last step finds nothing to interrupt.
    if code == 0:
        assert "model fused: " in said
        return
    assert code == 1, said
    assert "Traceback" not in said
    assert "Interrupted" in said.splitlines()[-1]
    assert "run the same command again" in said.splitlines()[-1]


def check_finishes(fusion, store, first_store):
    run_fusion(fusion)
    assert hashes(Location.parse(store)) == hashes(Location.parse(first_store))


@pytest.mark.parametrize(
    "moment", [pytest.param("Capturing wide", marks=pytest.mark.slow), "Training fused"]
)
def test_an_interrupted_run_goes_on(moment, job, store, first_store, tmp_path):
    for stage in ("caches/wide", "alignments", "models/fused"):
        shutil.rmtree(store / stage)
    fusion = write_fusion(tmp_path, job, str(store))
    code, said = interrupted(["run", fusion], moment, delay=0)
    assert code == 1
    check_end(code, said)
    check_finishes(fusion, store, first_store)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_at_random_moments_of_a_whole_run(seed, job, first_store, tmp_path):
    """Three interruptions in a row, each at another moment, then an uninterrupted run."""
    store = tmp_path / "store"
    fusion = write_fusion(tmp_path, job, str(store))
    moments = random.Random(seed)  # noqa: S311 - no secret
    for _ in range(3):
        check_end(*interrupted(["run", fusion], "model", moments.uniform(0, 12)))
    check_finishes(fusion, store, first_store)
