"""`ShardQueue`: bounded, prompt to tell of a failed write, and losing nothing that was computed."""

import threading

import pytest

from fusestore.cache.rows import blank_rows
from fusestore.capture.shard_queue import ShardQueue
from fusestore.errors import StorageError

ROWS = blank_rows(1, 1)


class Gate:
    """A writer that lets shards through one by one."""

    def __init__(self):
        self.open = threading.Semaphore(0)
        self.begun = threading.Semaphore(0)
        self.written = []

    def __call__(self, shard, rows):
        assert rows is ROWS
        self.begun.release()
        assert self.open.acquire(timeout=60)
        self.written.append(shard)


def test_writes_everything():
    written = []
    with ShardQueue(lambda shard, _: written.append(shard)) as queue:
        for shard in range(20):
            queue.put(shard, ROWS)
    assert sorted(written) == list(range(20))


def test_order_is_kept_by_one_writer():
    written = []
    with ShardQueue(lambda shard, _: written.append(shard), writers=1) as queue:
        for shard in range(20):
            queue.put(shard, ROWS)
    assert written == list(range(20))


def test_computing_goes_on_while_shards_are_written_until_the_queue_is_full():
    gate = Gate()
    third = threading.Event()

    def compute():
        with ShardQueue(gate, writers=1) as queue:
            queue.put(0, ROWS)
            queue.put(1, ROWS)
            queue.check()
            third.set()
            queue.put(2, ROWS)

    thread = threading.Thread(target=compute)
    thread.start()
    assert third.wait(60), "two shards did not fit although none is written yet"
    assert gate.begun.acquire(timeout=60)
    assert gate.written == []
    assert thread.is_alive()
    for _ in range(3):
        gate.open.release()
    thread.join(60)
    assert gate.written == [0, 1, 2]


def failing(shard, _):
    raise StorageError(f"shard {shard} could not be written: the disk is full")


def test_a_failed_write_is_raised_where_the_run_looks():
    done = threading.Event()

    def write(shard, rows):
        try:
            failing(shard, rows)
        finally:
            done.set()

    computed = []

    def run():
        with ShardQueue(write) as queue:
            queue.put(7, ROWS)
            assert done.wait(60)
            for step in range(1_000_000):
                computed.append(step)
                queue.check()

    with pytest.raises(StorageError, match=r"shard 7 .* disk is full"):
        run()
    assert len(computed) < 1_000_000


def test_a_failed_write_of_the_last_shard_is_raised_at_the_end():
    with pytest.raises(StorageError, match="shard 3"), ShardQueue(failing) as queue:
        queue.put(3, ROWS)


def test_nothing_is_written_after_a_failed_write():
    gate, written = threading.Event(), []

    def write(shard, rows):
        if shard == 0:
            assert gate.wait(60)
            failing(shard, rows)
        written.append(shard)

    def run():
        with ShardQueue(write, writers=1) as queue:
            queue.put(0, ROWS)
            queue.put(1, ROWS)
            gate.set()
            queue.put(2, ROWS)

    with pytest.raises(StorageError, match="shard 0"):
        run()
    assert written == []


def test_what_was_computed_before_the_model_failed_is_written():
    written = []

    def run():
        with ShardQueue(lambda shard, _: written.append(shard), writers=1) as queue:
            queue.put(0, ROWS)
            queue.put(1, ROWS)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run()
    assert written == [0, 1]
