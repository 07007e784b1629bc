"""Several processes capture one cache: each shard once, and the same bytes as one process."""

import signal
import time
from collections import Counter

import pytest

from fusestore.cache.reader import open_cache
from fusestore.cache.verify import verify_cache
from fusestore.capture.shard_queue import WRITERS
from tests.helpers.capture_processes import kill
from tests.helpers.store_contents import contents


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.slow)])
def root(request, tmp_path, new_store):
    if request.param == "local":
        return new_store(tmp_path / "store")
    return new_store(request.getfixturevalue("s3_url") + "/store")


@pytest.fixture
def aws(request, root):
    """The server's variables, for processes that were started before they were set."""
    import os

    return {name: value for name, value in os.environ.items() if name.startswith("AWS_")}


def shards_of(log):
    return log.read_text().split() if log.exists() else []


@pytest.mark.parametrize(
    "ranks",
    [
        pytest.param(True, id="torchrun", marks=pytest.mark.slow),
        pytest.param(False, id="by-hand"),
    ],
)
def test_three_writers_capture_every_shard_once(root, aws, captures, whole, tmp_path, ranks):
    logs = [tmp_path / f"log-{number}" for number in range(3)]
    children = [
        captures.start(
            root,
            log,
            0.05,
            **aws,
            **({"RANK": str(rank), "WORLD_SIZE": "3"} if ranks else {}),
        )
        for rank, log in enumerate(logs)
    ]
    assert [captures.wait(child) for child in children] == [0, 0, 0]
    done = Counter(shard for log in logs for shard in shards_of(log))
    assert set(done.values()) == {1}
    assert len(done) == len(open_cache(root, "tiny").fingerprint.plan)
    assert contents(root) == whole


def test_what_a_killed_writer_leaves_is_taken_over(root, aws, captures, whole, tmp_path):
    logs = [tmp_path / f"log-{number}" for number in range(3)]
    children = [captures.start(root, log, 0.05, **aws) for log in logs]
    for _ in range(6000):
        if len(shards_of(logs[1])) >= 2:
            break
        time.sleep(0.01)
    kill(children[1])
    # At once: while nobody has asked for its status, a dead process still has its id.
    assert captures.wait(children[1]) == signal.SIGKILL
    assert [captures.wait(children[0]), captures.wait(children[2])] == [0, 0]
    done = Counter(shard for log in logs for shard in shards_of(log))
    # What the dead one had captured and not yet written, and nothing else, is made twice.
    assert sum(done.values()) - len(done) <= WRITERS + 2
    assert contents(root) == whole
    assert verify_cache(open_cache(root, "tiny").location) == []
