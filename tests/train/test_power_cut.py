"""A training run whose power fails goes on from a checkpoint, with the same bits in the end."""

import hashlib
import json
import random

import pytest

from fusestore.data import FusedDataset
from fusestore.train.settings import TrainSettings
from tests.helpers.disk_operations import watched
from tests.helpers.fused_folder import random_arrays, write_fused
from tests.helpers.power_cut import cuts
from tests.helpers.small_fusion import files_below, write_files
from tests.helpers.train_runs import run

SETTINGS = TrainSettings(
    batch_size=4, precision="float32", epochs=1, checkpoint_every=1, max_steps=3
)


@pytest.mark.slow
def test_a_run_goes_on_after_any_cut(tiny_model_path, tmp_path):
    folder = write_fused(tmp_path / "data", random_arrays(300), window_length=32, chunk_rows=64)
    dataset = FusedDataset(folder)
    root = tmp_path / "run"
    root.mkdir()
    with watched(root) as watch:
        whole = run(tiny_model_path, dataset, SETTINGS, root)
    after = files_below(root)
    states = cuts({}, watch.operations, seed=1)
    assert any("work/checkpoint/state.json" in files for _, files in states)
    for number, files in states:
        if "model/manifest.json" in files:
            for name, record in json.loads(files["model/manifest.json"])["files"].items():
                found = hashlib.sha256(files.get(f"model/{name}", b"")).hexdigest()
                assert found == record["sha256"], (number, name)
    chance = random.Random(1)  # noqa: S311 - no secret
    for number, files in chance.sample(states, 8):
        cut = write_files(tmp_path / f"cut-{number}", files)
        resumed = run(tiny_model_path, dataset, SETTINGS, cut)
        assert resumed.manifest.files == whole.manifest.files, number
        left = files_below(cut)
        assert {path: left.get(path) for path in after} == after
        assert "work/checkpoint/state.json" not in left


def test_a_finished_run_leaves_no_checkpoint_even_if_it_was_killed(tiny_model_path, tmp_path):
    """It may be killed between its manifest and the end of its checkpoint."""
    folder = write_fused(tmp_path / "data", random_arrays(200), window_length=32, chunk_rows=64)
    dataset = FusedDataset(folder)
    kept = {}

    def keep(report):
        if report.step == 2:
            kept.update(files_below(tmp_path / "work"))

    run(tiny_model_path, dataset, SETTINGS, tmp_path, progress=keep)
    assert "checkpoint/state.json" in kept
    write_files(tmp_path / "work", kept)
    run(tiny_model_path, dataset, SETTINGS, tmp_path)
    assert not (tmp_path / "work").exists()
