"""A real Slurm runs the script that `--executor slurm` writes."""

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fusestore.errors import EngineError, NotFoundError
from fusestore.storage.location import Location
from fusestore.store.layout import Store
from fusestore.workflows.executors.run import write_script
from fusestore.workflows.executors.settings import ExecutorSettings
from fusestore.workflows.executors.shared_job import Job
from fusestore.workflows.executors.slurm import slurm_script
from tests.helpers.finished_job import _own_home, first_store, job, store
from tests.helpers.lines import Lines
from tests.helpers.slurm_cluster import SlurmCluster, is_installed
from tests.helpers.tiny_job import hashes
from tests.helpers.workers import writers

__all__ = ["_own_home", "first_store", "job", "store"]


@pytest.fixture(autouse=True)
def _threads(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def capture_job(job, store):
    place = ("-s", store, "-n", "again", "--corpus", "addresses", "--dtype", "float32")
    shards = ("-k", "8", "--rows-per-shard", "256", "--rows-per-chunk", "64")
    arguments = ("capture", job / "wide", *place, *shards)
    return Job(tuple(map(str, arguments)), "cache", Store.open(str(store)).cache("again"))


def test_the_script_is_bash_and_its_options_are_sbatchs(tmp_path):
    made = slurm_script(
        Job(("capture", "a b", "-n", "x"), "cache", Location.parse(tmp_path) / "x"),
        tasks=8,
        cores=4,
        gpus=1,
        options={"time": "04:00:00", "array": "0-7%2", "exclusive": ""},
        folder=tmp_path,
    )
    lines = made.splitlines()
    options = [line for line in lines if line.startswith("#SBATCH ")]
    assert {"#SBATCH --array=0-7%2", "#SBATCH --time=04:00:00", "#SBATCH --exclusive"} < {*options}
    assert {"#SBATCH --cpus-per-task=4", "#SBATCH --gpus-per-task=1"} < {*options}
    assert "fusestore capture 'a b' -n x" in lines
    subprocess.run(["bash", "-n"], input=made, text=True, check=True)


@pytest.mark.parametrize(("code", "restarts", "requeued"), [(1, 0, 1), (1, 3, 0), (2, 0, 0)])
def test_a_failed_task_is_requeued(tmp_path, code, restarts, requeued):
    """The script's own logic, with programs of these names that note that they were called."""
    made = slurm_script(
        Job(("capture",), "cache", Location.parse(tmp_path) / "x"), folder=tmp_path
    ).replace("export PATH", "#")
    for name, text in {"fusestore": f"exit {code}", "scontrol": "echo $* >> calls"}.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    ended = subprocess.run(
        ["bash", "-c", made],
        cwd=tmp_path,
        env={
            "PATH": f"{tmp_path}:/usr/bin:/bin",
            "SLURM_JOB_ID": "7",
            "SLURM_RESTART_COUNT": str(restarts),
        },
        check=False,
    )
    assert ended.returncode == code
    calls = tmp_path / "calls"
    assert (calls.read_text() if calls.exists() else "") == "requeue 7\n" * requeued


def test_submit(tmp_path, monkeypatch):
    """With a program of sbatch's name; a real one runs the script below."""
    job = Job(("capture",), "cache", Location.parse(tmp_path) / "x")
    script = tmp_path / "x.sbatch"
    chosen = ExecutorSettings(executor="slurm:3", submit=True, script=script)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotFoundError, match=r"run `sbatch x\.sbatch` there"):
        write_script(job, chosen, Lines())
    sbatch = tmp_path / "sbatch"
    sbatch.write_text('#!/bin/sh\necho "Submitted $1"\n')
    sbatch.chmod(0o755)
    lines = Lines()
    write_script(job, chosen, lines)
    assert lines.said[-1] == f"Submitted {script}"
    assert "#SBATCH --array=0-2" in script.read_text()
    sbatch.write_text("#!/bin/sh\necho no such partition >&2\nexit 1\n")
    with pytest.raises(EngineError, match=r"refused .*x\.sbatch: no such partition"):
        write_script(job, chosen, Lines())


@pytest.mark.slow
@pytest.mark.skipif(not is_installed(), reason="needs Debian's slurm-wlm and munge, and root")
def test_three_tasks_one_killed(job, store, tmp_path):
    whole = Path(shutil.copytree(store, tmp_path / "whole"))
    alone = capture_job(job, whole)
    fusestore = Path(sys.executable).parent / "fusestore"
    subprocess.run([fusestore, *alone.arguments], check=True, capture_output=True)
    shared = capture_job(job, store)
    script = tmp_path / "again.sbatch"
    script.write_text(slurm_script(shared, tasks=3, folder=tmp_path))
    place = tmp_path / "slurm"
    place.mkdir(mode=0o755)
    cluster = SlurmCluster(place)
    try:
        said = cluster.ask("sbatch", str(script))
        assert "Submitted batch job" in said
        number = said.split()[-1]
        while not writers(store / "caches" / "again"):
            assert cluster.ask("squeue", "-h")
            time.sleep(0.1)
        cluster.ask("scancel", f"--signal={signal.SIGKILL.name}", "--full", f"{number}_1")
        while cluster.ask("squeue", "-h"):
            time.sleep(0.5)
    finally:
        cluster.close()
    logs = sorted(tmp_path.glob("*.log"))
    assert len(logs) == 3, said
    assert hashes(Location.parse(store)) == hashes(Location.parse(whole)), [
        log.read_text() for log in logs
    ]
