"""A real Ray cluster of two nodes makes a cache; one node is killed midway."""

import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from fusestore.errors import MissingDependencyError
from fusestore.progress import SilentReporter
from fusestore.storage.location import Location
from fusestore.workflows.executors.ray_pool import run_on_ray
from fusestore.workflows.executors.shared_job import Job
from tests.helpers.finished_job import _own_home, first_store, job, store
from tests.helpers.tiny_job import hashes
from tests.helpers.workers import writers

__all__ = ["_own_home", "first_store", "job", "store"]

SLOW_SHARDS = """
import time
from fusestore.capture.shard_queue import ShardQueue

put = ShardQueue.put

def slow(self, shard, rows):
    time.sleep(0.5)
    put(self, shard, rows)

ShardQueue.put = slow
"""


def test_without_ray(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    job = Job(("capture",), "cache", Location.parse(tmp_path))
    with pytest.raises(MissingDependencyError, match=r"fusestore\[ray\]"):
        run_on_ray(job, SilentReporter())


@pytest.fixture
def cluster(monkeypatch, tmp_path):
    """The cluster and its second node; each has one core."""
    # The nodes inherit these; a plugin of this name makes shards slow enough to be interrupted.
    (tmp_path / "slow_shards.py").write_text(SLOW_SHARDS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_raylet_start_wait_time_s", "150")
    Cluster = pytest.importorskip("ray.cluster_utils").Cluster

    node = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args=node)
    try:
        second = made.add_node(**node)
        made.wait_for_nodes()
        yield made, second
    finally:
        made.shutdown()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_two_nodes_one_killed(cluster, job, store, tmp_path):
    made, second = cluster
    whole = Path(shutil.copytree(store, tmp_path / "whole"))
    shards = ("--rows-per-shard", "256", "--rows-per-chunk", "64", "--dtype", "float32", "-k", "8")
    fusestore = (sys.executable, "-c", "from fusestore_cli.app import main; main()")

    def capture(place, *more):
        names = ("-s", place, "-n", "again", "--corpus", "addresses")
        return (*fusestore, *more[:2], "capture", job / "wide", *names, *shards, *more[2:])

    subprocess.run(capture(whole), check=True, capture_output=True)
    folder = store / "caches" / "again"

    def remove_node():
        while len(writers(folder)) < 2 or len(list((folder / "receipts").glob("0*.json"))) < 2:
            time.sleep(0.05)
        made.remove_node(second, allow_graceful=False)

    remover = threading.Thread(target=remove_node, daemon=True)
    remover.start()
    executor = ("--executor", f"ray:{made.address}")
    done = subprocess.run(
        capture(store, "--plugin", "slow_shards", *executor),
        capture_output=True,
        text=True,
        check=False,
        env=os.environ,
    )
    assert done.returncode == 0, done.stderr
    remover.join(10)
    assert "of 2 was lost" in done.stderr
    assert "Captured cache again" in done.stdout
    assert hashes(Location.parse(store)) == hashes(Location.parse(whole))
