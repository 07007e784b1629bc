"""A capture killed at random moments and resumed gives the same bytes as one left alone."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from fusestore.cache.reader import open_cache
from fusestore.cache.verify import verify_cache
from fusestore.errors import NotFoundError
from fusestore.store.layout import Store
from tests.helpers.fork_server import python


class Writer:
    """A process that writes caches in children of its own."""

    def __init__(self):
        script = Path(__file__).parents[1] / "helpers/cache_writer_process.py"
        self.process = subprocess.Popen(
            [python(), str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )

    def write(self, folder, kill_after=None):
        """Whether the cache was finished; seconds it took."""
        self.process.stdin.write(f"{folder}\n")
        self.process.stdin.flush()
        child = int(self.process.stdout.readline())
        begun = time.monotonic()
        if kill_after is not None:
            time.sleep(kill_after)
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        status = int(self.process.stdout.readline())
        assert status in (0, signal.SIGKILL)
        return status == 0, time.monotonic() - begun

    def close(self):
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def nothing_torn(folder, whole):
    """Every visible file is whole, and what opens is right."""
    for name, data in contents(folder).items():
        if not Path(name).name.startswith(".tmp-"):
            assert data == whole[name], name
    try:
        cache = open_cache(folder, "demo")
    except NotFoundError:
        return
    assert verify_cache(cache.location) == []


def crash_many_times(tmp_path, kills):
    writer = Writer()
    finished, seconds = writer.write(tmp_path / "whole")
    assert finished
    whole = contents(tmp_path / "whole")
    choice = random.Random(kills)  # noqa: S311 - the moments only need to differ
    folder = tmp_path / "killed"
    done = 0
    while done < kills:
        finished, _ = writer.write(folder, choice.uniform(0, seconds))
        done += not finished
        nothing_torn(folder, whole)
        if finished:
            assert contents(folder) == whole
            shutil.rmtree(folder)
    finished, _ = writer.write(folder)
    writer.close()
    assert finished
    assert contents(folder) == whole
    assert np.isfinite(open_cache(Store.open(folder), "demo")[:].tail).all()


@pytest.mark.slow
def test_captures_killed_200_times_resume_to_the_same_bytes(tmp_path):
    crash_many_times(tmp_path, 200)
