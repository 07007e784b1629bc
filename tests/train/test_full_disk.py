"""A disk that is full, or turns read-only, while a run writes its checkpoint."""

import subprocess

import pytest

from fusestore.data import FusedDataset
from fusestore.errors import FusestoreError
from fusestore.train.settings import TrainSettings
from tests.helpers.fused_folder import random_arrays, write_fused
from tests.helpers.small_disk import Disk
from tests.helpers.train_runs import run

SETTINGS = TrainSettings(batch_size=4, precision="float32", epochs=1, checkpoint_every=1)


@pytest.fixture
def disk(tmp_path):
    disk = Disk(tmp_path / "disk")
    yield disk
    subprocess.run(["umount", disk.folder], check=True)


@pytest.mark.parametrize("fault", ["full", "read-only"])
def test_a_run_ends_with_what_to_do_and_is_resumed(tiny_model_path, tmp_path, disk, fault):
    folder = write_fused(tmp_path / "data", random_arrays(300), window_length=32, chunk_rows=64)
    dataset = FusedDataset(folder)
    whole = run(tiny_model_path, dataset, SETTINGS, tmp_path / "whole")

    def fail_after_the_first(report):
        if report.step == 2:
            disk.leave_free(4_096) if fault == "full" else disk.make_read_only(True)

    with pytest.raises(
        FusestoreError, match=r"could not be written: .* run the same command again"
    ):
        run(tiny_model_path, dataset, SETTINGS, disk.folder, progress=fail_after_the_first)
    if fault == "full":
        disk.leave_free(32 * 2**20)
    else:
        disk.make_read_only(False)
    resumed = run(tiny_model_path, dataset, SETTINGS, disk.folder)
    assert resumed.manifest.files == whole.manifest.files
