"""Leases: each shard to one living writer, whatever happens to the others."""

import itertools
import subprocess
import sys
import threading

import pytest

from fusestore.storage import objects
from fusestore.storage.location import Location
from fusestore.storage.publish import MACHINE, publish
from fusestore.store import leases
from fusestore.store.leases import Leases, remove_leases, share_shards
from fusestore.store.receipts import receipt_path, shard_part


@pytest.fixture(params=["local", "s3"])
def folder(request, tmp_path):
    if request.param == "local":
        return Location.parse(tmp_path / "leases")
    return Location.parse(request.getfixturevalue("s3_url")) / "leases"


@pytest.fixture
def local(tmp_path):
    return Location.parse(tmp_path / "leases")


def never(count):
    pytest.fail(f"waited for {count} shards")


class Clock:
    """`time` as the leases see it: every wait is a second."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(leases, "time", self)

    def monotonic(self):
        return self.now

    def wait(self, _count):
        self.now += 1


def test_writers_share_and_none_is_left_out(folder):
    done = set()
    with Leases(folder, lambda: done, 7) as one, Leases(folder, lambda: done, 7, first=3) as two:
        orders = ([], [])
        for order, shard in itertools.cycle(
            zip(orders, (one.shards(never), two.shards(never)), strict=True)
        ):
            number = next(shard, None)
            if number is None:
                break
            order.append(number)
            done.add(number)
    assert orders == ([0, 1, 2, 6], [3, 4, 5])
    remove_leases(folder)
    assert folder.list() == []
    assert not folder.exists()


def test_threads_never_get_the_same_shard(local):
    done, taken, lock = set(), [], threading.Lock()

    def write():
        with Leases(local, lambda: done, 30) as own:
            for shard in own.shards(lambda _count: None):
                with lock:
                    taken.append(shard)
                done.add(shard)

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == list(range(30))


def test_a_writer_that_ends_leaves_its_shards_at_once(folder):
    with Leases(folder, set, 2) as one:
        assert next(one.shards(never)) == 0
    with Leases(folder, set, 2) as two:
        assert list(itertools.islice(two.shards(never), 2)) == [1, 0]


def test_a_finished_shard_is_not_made_again_by_a_late_lease(local):
    """The other writer finishes shard 0 between this one's look and its lease."""
    looks = iter([set(), {0}, {0}, {0}, {0, 1}])
    with Leases(local, lambda: next(looks), 2) as own:
        assert list(own.shards(never)) == [1]


def test_looks_do_not_grow_with_the_shards(tmp_path):
    """A look lists everything: one for each shard would take the square of their number."""
    artifact, looks = Location.parse(tmp_path), []

    def finished():
        looks.append(len(made))
        return made

    made: set[int] = set()
    with share_shards(artifact, finished, 300, first=0) as shards:
        for shard in shards:
            publish(artifact / receipt_path(shard_part(shard)), b"")
            made.add(shard)
    assert made == set(range(300))
    assert len(looks) <= 5


def test_a_missing_receipt_is_found_missing_without_a_listing(folder, monkeypatch):
    publish(folder / "a", b"")
    monkeypatch.setattr(objects, "names", lambda *_: pytest.fail("listed"))
    assert (folder / "a").has_file()
    assert not (folder / "b").has_file()


def test_a_killed_writer_of_this_machine_is_dead_at_once(local):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    publish(local / "000000-0", b"0123456789abcdef")
    heartbeat = f"{MACHINE} {dead.pid} 3\n".encode()
    publish(local / "writer-0123456789abcdef", heartbeat)
    with Leases(local, set, 1) as own:
        assert next(own.shards(never)) == 0


def test_a_silent_writer_of_another_machine_loses_its_shard_after_the_lease(local, monkeypatch):
    clock = Clock(monkeypatch)
    publish(local / "000000-0", b"0123456789abcdef")
    publish(local / "writer-0123456789abcdef", b"0123456789ab 1 3\n")
    with Leases(local, set, 1, lease_s=60) as own:
        assert next(own.shards(clock.wait)) == 0
    assert 160 <= clock.now <= 161
    assert (local / "000000-1").exists()


def test_a_writer_that_sends_heartbeats_keeps_its_shard(local, monkeypatch):
    clock = Clock(monkeypatch)
    publish(local / "000000-0", b"0123456789abcdef")
    done = set()

    def wait(count):
        assert count == 1
        clock.now += 50
        publish(local / "writer-0123456789abcdef", b"0123456789ab 1 %d\n" % clock.now)
        if clock.now > 1000:
            done.add(0)

    wait(1)
    with Leases(local, lambda: done, 1, lease_s=60) as own:
        assert list(own.shards(wait)) == []


def test_two_that_take_over_get_one_shard_between_them(local):
    publish(local / "000000-4", b"0123456789abcdef")
    done = set()
    with Leases(local, lambda: done, 1) as one, Leases(local, lambda: done, 1) as two:
        assert next(one.shards(never)) == 0
        assert list(two.shards(lambda _count: done.add(0))) == []


def test_heartbeats_are_rewritten(local):
    with Leases(local, set, 1, heartbeat_s=0.01):
        (heartbeat,) = local.list()
        first = (local / heartbeat).read_bytes()
        changed = threading.Event()
        for _ in range(500):
            if (local / heartbeat).read_bytes() != first or changed.wait(0.01):
                break
        assert (local / heartbeat).read_bytes() != first
    assert local.list() == []


@pytest.mark.parametrize("owner", [b"", b"../../etc", b"\xff" * 16, b"0" * 5000])
def test_leases_of_nobody_are_free(local, owner):
    publish(local / "000000-0", owner)
    publish(local / "nonsense", b"")
    publish(local / "writer-0123456789abcdef", b"no heartbeat")
    with Leases(local, set, 1) as own:
        assert next(own.shards(never)) == 0
