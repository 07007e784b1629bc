"""A file that is cut while it is mapped is an error, and does not kill its reader."""

import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from fusestore.store.layout import Store
from tests.helpers.fork_server import python
from tests.helpers.fused_folder import random_arrays, write_fused
from tests.helpers.kept_copy import first_store

__all__ = ["first_store"]

READ_DATASET = """
import os, sys, time
from pathlib import Path
from fusestore.data import FusedDataset, dataset as module
from fusestore.errors import CorruptionError

module.SECONDS_BETWEEN_LOOKS = float(sys.argv[2])
dataset = FusedDataset(sys.argv[1])
dataset[0]
for path in Path(sys.argv[1]).glob("ids/c/*/0"):
    os.truncate(path, 0)
time.sleep(0.01)
try:
    dataset[1]
except CorruptionError as error:
    print(error)
"""

READ_CACHE = """
import os, sys
from pathlib import Path
from fusestore import open_cache
from fusestore.errors import CorruptionError

cache = open_cache(sys.argv[1], "small")
cache[0:1]
for path in Path(sys.argv[1]).glob("caches/small/*/c/*"):
    if path.is_file():
        os.truncate(path, 0)
try:
    # Another chunk of the same file.
    cache[70:71]
except CorruptionError as error:
    print(error)
"""


def ended(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python(), "-c", program, *map(str, arguments)], capture_output=True, text=True, check=False
    )


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return write_fused(tmp_path / "data", random_arrays(300), window_length=32, chunk_rows=512)


def test_a_dataset_that_is_cut_while_it_is_read(dataset: Path) -> None:
    done = ended(READ_DATASET, dataset, 0.001)
    assert done.returncode == 0, done.stderr
    assert "ids/c/0/0 was cut to 0 of its" in done.stdout
    assert "copy it again" in done.stdout


@pytest.mark.slow
def test_what_would_happen_without_a_look_at_the_sizes(dataset: Path) -> None:
    assert ended(READ_DATASET, dataset, 3600).returncode == -signal.SIGBUS


def test_a_cache_that_is_cut_while_it_is_read(first_store: Path, tmp_path: Path) -> None:
    store = Store.open(shutil.copytree(first_store, tmp_path / "store"))
    done = ended(READ_CACHE, store.location.path)
    assert done.returncode == 0, done.stderr
    assert "was cut to 0 bytes" in done.stdout
