"""Locks end with their block, even when another thread forked this process meanwhile."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

from filelock import FileLock, Timeout

from fusestore.data.shard_cache.cache_folder import ShardFolder
from fusestore.data.shard_cache.flock import lock_shared, locked_alone
from fusestore.fuse.locks import shard_lock
from fusestore.storage.file_lock import is_free, locked
from fusestore.storage.location import Location


@contextlib.contextmanager
def forking():
    """A function that forks this process, as a DataLoader does; the children do nothing."""
    children = []

    def fork(*_):
        child = os.fork()
        if child == 0:
            signal.pause()
            os._exit(0)
        children.append(child)

    try:
        yield fork
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def can_be_locked(path):
    with path.open("ab") as file, locked_alone(file) as held:
        return held


def test_a_lock_ends_with_its_block(tmp_path):
    path = tmp_path / "lock"
    with forking() as fork:
        with locked(path):
            fork()
            assert not can_be_locked(path)
        assert can_be_locked(path)


def test_a_folder_of_locks_that_is_removed_is_made_again(tmp_path, monkeypatch):
    """As when another process finishes a dataset, and removes its locks."""
    acquire, removed = FileLock.acquire, []

    def late(lock):
        if not removed:
            removed.append((tmp_path / "locks").rmdir())
        return acquire(lock)

    monkeypatch.setattr(FileLock, "acquire", late)
    with locked(tmp_path / "locks/000000"):
        assert not can_be_locked(tmp_path / "locks/000000")
    assert removed


def test_the_lock_of_an_open_file_ends_with_its_block(tmp_path):
    path = tmp_path / "lock"
    with forking() as fork:
        with path.open("ab") as file, locked_alone(file) as held:
            assert held
            fork()
            assert not can_be_locked(path)
        assert can_be_locked(path)
        # This is what `unlock` is for: a file that is only closed stays locked by the child.
        with path.open("ab") as file:
            lock_shared(file)
            fork()
        assert not can_be_locked(path)


def test_who_waits_for_a_lock_that_is_removed_holds_another(tmp_path, monkeypatch):
    """`gc` removes locks that nobody holds, and somebody may open one at that moment."""
    path, ended, held = tmp_path / "lock", threading.Event(), threading.Event()

    def hold():
        with locked(path):
            held.set()
            ended.wait(60)

    holder, unlink = threading.Thread(target=hold), Path.unlink

    def late(self, missing_ok=False):
        holder.start()
        assert not held.wait(0.1)
        unlink(self, missing_ok)

    path.touch()
    monkeypatch.setattr(Path, "unlink", late)
    assert is_free(path, remove=True)
    assert held.wait(60)
    assert path.exists()
    assert not is_free(path, remove=True)
    ended.set()
    holder.join()
    assert is_free(path)


def test_a_lock_ends_with_its_process(tmp_path):
    path = tmp_path / "lock"
    code = (
        "import pathlib, sys, time\n"
        "from fusestore.storage.file_lock import locked\n"
        f"with locked(pathlib.Path({str(path)!r})):\n"
        "    print('locked', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "locked\n"
    with contextlib.suppress(Timeout), FileLock(path, timeout=0):
        raise AssertionError("two processes hold one lock")
    holder.kill()
    holder.communicate()
    with locked(path):
        pass


def test_a_shard_can_be_claimed_and_room_made_afterwards(tmp_path, monkeypatch):
    folder = ShardFolder(root=tmp_path, dataset="one", shard_bytes=100, limit=250)
    with forking() as fork:
        allocate = os.posix_fallocate

        def forking_allocate(*arguments):
            fork()
            allocate(*arguments)

        # It is called while the root is locked, and the claimed file is.
        monkeypatch.setattr(os, "posix_fallocate", forking_allocate)
        for shard in range(4):
            with folder.create(shard) as file:
                folder.reserve(file, needed=[])
                folder.publish(shard)
            assert can_be_locked(tmp_path / ".lock")
            assert can_be_locked(folder.path / f"{shard:06d}")
            used = folder.open(shard)
            fork()
            folder.close(used)
        assert not folder.has(0)
        assert not folder.has(1)
        with folder.create(0) as file:
            fork()
        with folder.create(0) as file:
            assert file is not None


def test_the_lock_of_a_shard_that_is_made(tmp_path):
    with forking() as fork:
        with contextlib.suppress(ZeroDivisionError), shard_lock(Location.parse(tmp_path), 3):
            fork()
            1 / 0  # noqa: B018 - the one who made it failed
        (path,) = tmp_path.glob("*/000003")
        assert can_be_locked(path)
