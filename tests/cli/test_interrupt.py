"""Ctrl-C at any moment: a word to the user, nothing torn, and the same bytes in the end.

SIGTERM, which schedulers send, does the same while a model is trained.
"""

import json
import random
import shutil
import signal
import sys
import time

import pytest

from cli import app
from fusestore.errors import StorageError
from fusestore.storage.location import Location
from tests.helpers.command import start
from tests.helpers.tiny_job import hashes, run_fusion, write_fusion


def interrupted(arguments, moment, delay, **options):
    """Run, wait for a line of progress that begins with `moment`, and press Ctrl-C after a delay.

    Returns the exit code and what was said on standard error.
    """
    with start(*arguments, **options) as process:
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


@pytest.mark.parametrize(
    "error", [SystemError("returned a result with an exception set"), StorageError("half of it")]
)
def test_libraries_may_answer_it_with_errors_of_their_own(error, monkeypatch, capsys):
    def command():
        error.__cause__ = KeyboardInterrupt()
        raise error

    monkeypatch.setattr(app, "app", command)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit) as ended:
        app.main()
    check_end(ended.value.code, capsys.readouterr().err)


def check_finishes(fusion, store, first_store):
    run_fusion(fusion)
    assert hashes(Location.parse(store)) == hashes(Location.parse(first_store))


ALL = ("caches/wide", "alignments", "models/fused")


@pytest.mark.parametrize(
    ("moment", "stages"),
    [
        pytest.param("Capturing wide", ALL, marks=pytest.mark.slow),
        pytest.param("Training fused", ALL, marks=pytest.mark.slow),
        ("Training fused", ("models/fused",)),
    ],
)
def test_an_interrupted_run_goes_on(moment, stages, job, store, first_store, tmp_path):
    for stage in stages:
        shutil.rmtree(store / stage)
    fusion = write_fusion(tmp_path, job, str(store))
    code, said = interrupted(["run", fusion], moment, delay=0)
    assert code == 1
    check_end(code, said)
    check_finishes(fusion, store, first_store)


@pytest.mark.slow
def test_sigterm_keeps_a_checkpoint(command, job, store, tmp_path):
    """What schedulers send; the same command goes on to the same bytes."""
    work = tmp_path / "work"
    train = ["train", job / "small", "--store", store, "--fused", "mince", "--max-steps", "100"]
    train += ["--precision", "float32", "--batch-size", "2", "--checkpoint-every", "3"]
    stopped = [*train, "--name", "stopped", "--work-dir", work]
    with start(*stopped) as process:
        while not (work / "checkpoint" / "state.json").exists():
            assert process.poll() is None
            time.sleep(0.01)
        process.terminate()
        said = process.stderr.read()
        assert process.wait(timeout=60) == 1
    check_end(1, said)
    assert 3 <= json.loads((work / "checkpoint" / "state.json").read_bytes())["step"] < 100
    assert not (store / "models" / "stopped").exists()
    for arguments in (stopped, [*train, "--name", "whole"]):
        command.succeeds(*arguments)
    names = ("stopped", "whole")
    first, second = (hashes(Location.parse(store / "models" / name)) for name in names)
    assert first == second
    assert not work.exists()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_at_random_moments_of_a_whole_run(seed, job, first_store, tmp_path):
    """Three interruptions in a row, each at another moment, then an uninterrupted run.

    The first may come while modules are imported.
    """
    store = tmp_path / "store"
    fusion = write_fusion(tmp_path, job, str(store))
    moments = random.Random(seed)  # noqa: S311 - no secret
    for interpreter in (sys.executable, None, None):
        delay = moments.uniform(0, 12 if interpreter else 6)
        check_end(*interrupted(["run", fusion], "model", delay, interpreter=interpreter))
    check_finishes(fusion, store, first_store)
