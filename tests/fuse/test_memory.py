"""Memory while a fused dataset is filled: set by the shard, not by the corpus or the vocabulary."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import resource, shutil, sys, tempfile
from pathlib import Path
sys.path.insert(0, "benchmarks")
import fusion as synthetic
from fusestore.fuse.folder import FusedFolder
from fusestore.fuse.materialize import materialize
from fusestore.storage.location import Location

folder = FusedFolder(
    Location.parse(tempfile.mkdtemp()), synthetic.make_fusion(int(sys.argv[1]) * synthetic.SHARD)
)
folder.begin()
folder.make_shard(0)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for shard in range(1, folder.num_shards):
    folder.make_shard(shard)
    # What is written is not read again, and need not lie on the disk.
    shutil.rmtree(folder.location.path / "ids")
    shutil.rmtree(folder.location.path / "logprobs")
print(before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def peak(num_shards):
    """Peak memory in MiB after the first shard, and after all of them."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(num_shards)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
        timeout=900,
    )
    return [int(number) / 1024 for number in done.stdout.split()]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_corpus():
    _, few = peak(4)
    first, many = peak(40)  # 2.6 million tokens: 0.7 GB of values
    assert many - few < 60
    assert many - first < 150
