"""A capture whose storage fails: finished, or an error and the rest the next time; never wrong."""

import os
import subprocess

import pytest
import torch

from fusestore.cache.reader import open_cache
from fusestore.cache.verify import verify_cache
from fusestore.capture.run import capture
from fusestore.capture.settings import CaptureSettings
from fusestore.corpus.corpus import open_corpus
from fusestore.errors import FusestoreError, StorageError
from fusestore.models.model import Model
from fusestore.store.layout import Store
from tests.helpers.fault_proxy import FAULTS, FaultProxy
from tests.helpers.small_disk import Disk
from tests.helpers.store_contents import check_nothing_torn, contents


@pytest.fixture
def disk(tmp_path):
    disk = Disk(tmp_path / "disk")
    yield disk
    subprocess.run(["umount", "-l", str(disk.folder)], check=True)


@pytest.fixture
def run(captures):
    """Captures in this process what `captures` does in others."""
    threads = torch.get_num_threads()
    # Sums over several threads round otherwise.
    torch.set_num_threads(1)

    def capture_here(root):
        store = Store.open(root)
        settings = CaptureSettings(**captures.job["settings"])
        capture(
            store, "tiny", Model.open(captures.job["model"]), open_corpus(store, "demo"), settings
        )

    yield capture_here
    torch.set_num_threads(threads)


@pytest.mark.slow
def test_a_full_disk_is_an_error_and_the_rest_is_done_once_there_is_room(
    disk, run, whole, new_store
):
    root = new_store(disk.folder / "store")
    failures = 0
    for _ in range(100):
        # Enough for a few files more each time: it fails at another place.
        disk.leave_free(24 * 1024)
        try:
            run(root)
        except StorageError as error:
            failures += 1
            assert "No space left" in str(error)  # noqa: PT017 - it need not be raised
            check_nothing_torn(root, whole)
            continue
        break
    assert failures >= 5
    assert contents(root) == whole


def test_a_disk_that_turns_read_only_is_an_error(disk, run, whole, new_store):
    root = new_store(disk.folder / "store")
    disk.leave_free(64 * 1024)
    with pytest.raises(StorageError, match="No space left"):
        run(root)
    before = contents(root)
    disk.make_read_only(True)
    with pytest.raises(FusestoreError, match="Read-only"):
        run(root)
    assert contents(root) == before
    disk.make_read_only(False)
    disk.leave_free(2**26)
    run(root)
    assert contents(root) == whole


def capture_behind_faults(captures, new_store, whole, s3_url, proxy):
    """Repeat the capture until it succeeds; what is visible meanwhile is right."""
    root = new_store(f"{s3_url}/store")
    variables = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    for _ in range(5):
        child = captures.start(
            root, first_wait=0.01, **{**variables, "AWS_ENDPOINT_URL": proxy.url}
        )
        if captures.wait(child) == 0:
            break
        check_nothing_torn(root, whole)
    assert contents(root) == whole
    assert verify_cache(open_cache(root, "tiny").location) == []


@pytest.mark.slow
def test_a_capture_behind_a_faulty_network(captures, new_store, whole, s3_url, s3_endpoint):
    with FaultProxy(s3_endpoint, rate=0.1, seed=1) as proxy:
        capture_behind_faults(captures, new_store, whole, s3_url, proxy)
        assert sum(proxy.happened.values()) >= 20


@pytest.mark.slow
@pytest.mark.parametrize("kind", FAULTS)
def test_a_capture_behind_each_fault(captures, new_store, whole, s3_url, s3_endpoint, kind):
    with FaultProxy(s3_endpoint, rate=0.2, seed=2, kinds=(kind,)) as proxy:
        capture_behind_faults(captures, new_store, whole, s3_url, proxy)
        assert proxy.happened[kind] >= 40
