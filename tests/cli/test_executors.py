"""`--executor`: several processes make one artifact, with the bytes of one process."""

import contextlib
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest

from cli.executors import without_options
from fusestore.align.alignment_writer import write_alignment
from fusestore.storage.location import Location
from fusestore.workflows.executors import worker_process
from tests.helpers.command import start
from tests.helpers.tiny_job import hashes
from tests.helpers.workers import worker_program, writers


@pytest.fixture(autouse=True)
def _threads(monkeypatch):
    # Rows of a model may depend on the number of threads in their last bits.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def use(monkeypatch, **choices):
    monkeypatch.setattr(worker_process, "PROGRAM", worker_program(**choices))


def capture_of(job, store):
    small_shards = ("--rows-per-shard", "256", "--rows-per-chunk", "64", "--dtype", "float32")
    place = ("-s", store, "-n", "again", "--corpus", "addresses")
    return ("capture", job / "wide", *place, "-k", "8", *small_shards)


def fuse_of(store):
    sources = ("--source", "small", "--source", "wide", "--target", "small", "--top-k", "8")
    shards = ("--window-length", "64", "--rows-per-shard", "128")
    return ("fuse", "-s", store, "-n", "again", *sources, *shards, "--materialize")


def kill_one(folder, killed):
    """Kill one writer of an artifact when two shards of it are made."""
    while len(list((folder / "receipts").glob("0*.json"))) < 2:
        time.sleep(0.01)
    for process in sorted(writers(folder))[:1]:
        os.kill(process, signal.SIGKILL)
        killed.append(process)


@pytest.mark.slow
def test_capture_by_two_processes_one_killed(command, job, store, tmp_path, monkeypatch):
    whole = Path(shutil.copytree(store, tmp_path / "whole"))
    command.succeeds(*capture_of(job, whole))
    use(monkeypatch, pause=0.1)
    killed = []
    killer = threading.Thread(target=kill_one, args=(store / "caches" / "again", killed))
    killer.start()
    done = command.succeeds(*capture_of(job, store), "--executor", "local:2")
    killer.join()
    assert len(killed) == 1
    assert "was killed by SIGKILL" in done.err
    assert done.err.count("cache/again by 2 workers") >= 1
    assert "Captured cache again" in done.out
    assert hashes(Location.parse(store)) == hashes(Location.parse(whole))


@pytest.mark.slow
def test_fuse_by_two_processes_one_killed(command, store, tmp_path, monkeypatch):
    whole = Path(shutil.copytree(store, tmp_path / "whole"))
    command.succeeds(*fuse_of(whole))
    use(monkeypatch, pause=0.1)
    killed = []
    killer = threading.Thread(target=kill_one, args=(store / "fused" / "again", killed))
    killer.start()
    done = command.succeeds(*fuse_of(store), "--executor=local:2")
    killer.join()
    assert len(killed) == 1
    assert "was killed by SIGKILL" in done.err
    assert "Fused again" in done.out
    assert hashes(Location.parse(store)) == hashes(Location.parse(whole))


@pytest.mark.slow
def test_align_by_two_processes(command, store, first_store, monkeypatch):
    for name in ("alignments", "vocabulary_maps"):
        shutil.rmtree(store / name)
    use(monkeypatch)
    for cache in ("small", "wide"):
        if (first_store / "alignments" / f"{cache}--small").exists():
            done = command.succeeds(
                *("align", cache, "-s", store, "--target", "small", "--executor", "local:2")
            )
            assert f"Aligned {cache}--small" in done.out
    made, first = hashes(Location.parse(store)), hashes(Location.parse(first_store))
    assert made == first


@pytest.mark.slow
def test_two_processes_divide_an_alignment(command, store, tmp_path, monkeypatch):
    """Of so few tokens there would be one shard."""
    for name in ("alignments", "vocabulary_maps"):
        shutil.rmtree(store / name)
    whole = Path(shutil.copytree(store, tmp_path / "whole"))
    use(monkeypatch, alignment_rows=300)
    monkeypatch.setitem(write_alignment.__kwdefaults__, "rows_per_shard", 300)
    align = ("align", "wide", "--target", "small")
    command.succeeds(*align, "-s", whole)
    seen = set()
    ended = threading.Event()
    folder = store / "alignments/wide--small"
    watcher = threading.Thread(target=watch, args=(folder, seen, ended))
    watcher.start()
    try:
        command.succeeds(*align, "-s", store, "--executor", "local:2")
    finally:
        ended.set()
        watcher.join()
    assert len(seen) == 2
    assert len(list((folder / "receipts").glob("0*.json"))) > 4
    assert hashes(Location.parse(store)) == hashes(Location.parse(whole))


def watch(folder, seen, ended):
    """Gather the writers of an artifact."""
    while not ended.wait(0.01):
        # A lease may be gone before it is read.
        with contextlib.suppress(OSError):
            seen |= writers(folder)


@pytest.mark.slow
def test_if_all_fail_the_message_of_each_is_shown(command, job, store, monkeypatch):
    use(monkeypatch)
    command.succeeds(*fuse_of(store)[:-1])
    chunk = next((store / "caches" / "wide" / "ids" / "c").glob("*"))
    damaged = chunk if chunk.is_file() else next(p for p in chunk.rglob("*") if p.is_file())
    damaged.write_bytes(bytes(damaged.stat().st_size))
    message = command.fails(*fuse_of(store), "--executor", "local:2")
    assert "All 2 workers of fused/again ended before it was complete." in message
    assert "Workers 0, 1 ended with exit code 1:" in message
    assert "fusestore verify" in message


@pytest.mark.slow
def test_verify_by_two_processes_one_killed(command, store, monkeypatch):
    alone = command("verify", "-s", store, "--json")
    use(monkeypatch)
    assert command("verify", "-s", store, "--json", "--executor", "local:2") == alone
    # One of them is killed before it has checked anything.
    *interpreter, code = worker_program()
    dying = "import os; os.environ['RANK'] == '1' and os.kill(os.getpid(), 9)"
    monkeypatch.setattr(worker_process, "PROGRAM", (*interpreter, f"{dying}; {code}"))
    done = command("verify", "-s", store, "--json", "--executor", "local:2")
    assert "Worker 1 of 2 was killed by SIGKILL" in done.err
    assert (done.code, done.json) == (0, alone.json)


@pytest.mark.slow
def test_a_signal_reaches_the_workers(command, job, store, tmp_path):
    whole = Path(shutil.copytree(store, tmp_path / "whole"))
    arguments = capture_of(job, store)
    command.succeeds(*capture_of(job, whole))
    folder = store / "caches" / "again"
    with start(*arguments, "--executor", "local:2") as process:
        while not writers(folder):
            assert process.poll() is None
            time.sleep(0.001)
        running = writers(folder)
        process.terminate()
        said = process.stderr.read()
        assert process.wait(timeout=60) == 1
    assert "Interrupted" in said.splitlines()[-1]
    for worker in running:
        with pytest.raises(ProcessLookupError):
            os.kill(worker, 0)
    command.succeeds(*arguments)
    assert hashes(Location.parse(store)) == hashes(Location.parse(whole))


@pytest.mark.slow
def test_workers_end_with_the_process_that_started_them(job, store):
    folder = store / "caches" / "again"
    with start(*capture_of(job, store), "--executor", "local:1") as process:
        while not writers(folder):
            assert process.poll() is None
            time.sleep(0.001)
        process.kill()
    running = writers(folder)
    deadline = time.monotonic() + 30
    while running and time.monotonic() < deadline:
        for worker in list(running):
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker, 0)
                continue
            running.remove(worker)
    assert not running


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--executor", "kubernetes"), "expected local[:N], slurm[:N] or ray[:ADDRESS]"),
        (("--executor", "local:x"), "expected a number of processes after local:"),
        (("--executor", "local:2", "--submit"), "needs executor slurm, not local"),
        (("--workers", "2"), "needs executor"),
        (("--executor", "local", "--tensor-parallel"), "each load their own"),
    ],
)
def test_what_excludes_each_other(command, job, store, arguments, said):
    outcome = command(*capture_of(job, store), *arguments)
    assert outcome.code == 2
    assert said in " ".join(outcome.err.split())


def test_the_command_of_a_worker():
    given = ["capture", "m", "--executor", "slurm:3", "-s", "x", "--slurm-option=time=1", "-k", "8"]
    given += ["-o", "a b", "--submit", "--workers=2", "-ofile", "--only", "all"]
    assert without_options(given) == ("capture", "m", "-s", "x", "-k", "8", "--only", "all")
