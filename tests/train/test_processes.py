"""Two processes over gloo make the steps of one with twice the batch, and stop together."""

import json
import shutil

import numpy as np
import pytest

from fusestore.data import FusedDataset
from fusestore.storage.location import Location
from fusestore.train import TrainSettings, train
from tests.helpers.fused_folder import random_arrays, write_fused
from tests.helpers.train_processes import two_processes


@pytest.mark.slow
def test_two_processes_follow_one(tiny_model_path, fused_folder, tmp_path):
    """Logits in pieces there and whole here, which are equal but for rounding too."""
    model_path = tmp_path / "no_dropout"
    shutil.copytree(tiny_model_path, model_path)
    config = json.loads((model_path / "config.json").read_text())
    (model_path / "config.json").write_text(json.dumps({**config, "attention_dropout": 0.0}))
    # 16 windows of 32 tokens; the last one is shorter.
    settings = TrainSettings(
        batch_size=2, precision="float32", learning_rate=1e-3, epochs=2, logits="chunked"
    )
    codes, errors = two_processes(model_path, fused_folder, tmp_path / "two", settings)
    assert codes == [0, 0], errors
    alone = train(
        model_path,
        FusedDataset(fused_folder),
        settings.model_copy(update={"batch_size": 4, "logits": "whole"}),
        Location.parse(tmp_path / "one" / "model"),
        tmp_path / "one" / "work",
    ).artifact
    found = json.loads((tmp_path / "two" / "model" / "manifest.json").read_text())
    assert found["plan"]["world_size"] == 2
    assert found["num_tokens"] == alone.manifest.num_tokens
    for two, one in zip(found["loss_curve"], alone.manifest.loss_curve, strict=True):
        assert two["loss"] == pytest.approx(one.loss, rel=1e-5)


@pytest.mark.slow
def test_nan_in_one_process_stops_both_and_one_names_the_documents(tiny_model_path, tmp_path):
    arrays = random_arrays(500)
    arrays["kind"][:] = 1
    arrays["next_ids"][100] = 0
    arrays["logprobs"][100] = np.nan
    folder = write_fused(tmp_path / "bad", arrays, window_length=32, chunk_rows=64)
    settings = TrainSettings(batch_size=2, precision="float32", epochs=1)
    codes, errors = two_processes(tiny_model_path, folder, tmp_path / "two", settings)
    assert all(codes), errors
    messages = sorted(
        error[error.rindex("CorruptionError: ") :].strip().splitlines()[0] for error in errors
    )
    document = int(arrays["document"][100])
    assert sum("another process" in message for message in messages) == 1
    [names] = [message for message in messages if "documents [" in message]
    assert str(document) in names.partition("documents")[2]
    assert not (tmp_path / "two" / "model").exists()


@pytest.mark.slow
def test_an_evaluation_that_fails_in_the_main_process_ends_both(
    tiny_model_path, fused_folder, tmp_path
):
    settings = TrainSettings(batch_size=2, precision="float32", epochs=1)
    codes, errors = two_processes(
        tiny_model_path, fused_folder, tmp_path / "two", settings, FAIL_EVALUATION="true"
    )
    assert all(codes), errors
    assert sum("LookupError: no such text" in error for error in errors) == 1
    assert (
        sum("FusestoreError: The evaluation after step 0 failed" in error for error in errors) == 1
    )
    assert not (tmp_path / "two" / "model").exists()
