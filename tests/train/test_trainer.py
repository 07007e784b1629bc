"""The trainer: it learns, it is deterministic, and it resumes bit for bit."""

import itertools
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from fusestore.data import FusedDataset, FusedMixture, collate
from fusestore.errors import (
    AlreadyExistsError,
    CorruptionError,
    FingerprintMismatchError,
    InvalidInputError,
    NotFoundError,
)
from fusestore.losses import fusion_loss
from fusestore.storage.location import Location
from fusestore.train import TrainSettings, train
from fusestore.train.optimizer import learning_rate_at
from tests.helpers.fused_folder import random_arrays, write_fused
from tests.helpers.train_runs import (
    SETTINGS,
    folder_bytes,
    held_out,
    model_files,
    run,
    signal_after,
)
from tests.helpers.whole_dataset import write_dataset


def test_learns_and_publishes_a_model_folder(tiny_model_path, dataset, tmp_path):
    seen = []
    settings = SETTINGS.model_copy(update={"epochs": 8, "eval_every": 9, "save_dtype": "bfloat16"})
    result = run(
        tiny_model_path,
        dataset,
        settings,
        tmp_path,
        evaluation=held_out(),
        progress=seen.append,
    )
    curve = result.manifest.loss_curve
    assert [point.step for point in curve] == list(range(1, 25))
    assert [report.step for report in seen] == list(range(1, 25))
    assert curve[-1].loss < curve[0].loss - 0.5
    assert curve[0].loss == pytest.approx(0.5 * curve[0].lm + 0.5 * curve[0].fused)
    assert [point.step for point in result.manifest.evaluations] == [0, 9, 18, 24]
    assert result.manifest.num_tokens == 8 * 500 == sum(report.num_tokens for report in seen)
    folder = tmp_path / "model"
    assert result.location.path == folder
    assert not (tmp_path / "work").exists()
    assert set(result.manifest.files) | {"manifest.json"} == set(folder_bytes(folder))
    assert {"config.json", "model.safetensors", "tokenizer_config.json"} <= set(
        result.manifest.files
    )
    assert len(load_file(folder / "model.safetensors")) == len(
        load_file(tiny_model_path / "model.safetensors")
    )
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    assert model.dtype == torch.bfloat16
    batch = collate(dataset.__getitems__([0, 1]))
    with torch.no_grad():
        loss = fusion_loss(model(input_ids=batch["input_ids"]).logits, batch, 0.5)
    assert float(loss) < curve[0].loss - 0.3
    for content in folder_bytes(folder).values():
        assert str(tmp_path).encode() not in content


def test_first_step_is_the_loss_of_its_windows(tiny_model_path, dataset, tmp_path):
    settings = SETTINGS.model_copy(update={"max_steps": 1, "gradient_accumulation": 1})
    path = tmp_path / "no_dropout"
    shutil.copytree(tiny_model_path, path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "attention_dropout": 0.0}))
    result = run(path, dataset, settings, tmp_path)
    from fusestore.data import permutation

    windows = permutation(len(dataset), 5, 0)[:3]
    batch = collate([dataset[int(window)] for window in windows])
    model = AutoModelForCausalLM.from_pretrained(path)
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    expected = fusion_loss(logits, batch, 0.5).detach()
    assert result.manifest.loss_curve[0].loss == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_interrupted_run_ends_like_an_uninterrupted_one(
    tiny_model_path, dataset, tmp_path, precision
):
    settings = SETTINGS.model_copy(update={"precision": precision})
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run(tiny_model_path, dataset, settings, whole, evaluation=held_out())

    # Step 3 ends the first epoch (16 windows, 3 · 2 per step): one stop inside each epoch.
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt, match="resumes the run"):
            run(
                tiny_model_path,
                dataset,
                settings,
                broken,
                evaluation=held_out(),
                progress=signal_after(2, 4),
            )
        assert (broken / "work" / "checkpoint").is_dir()
        assert not (broken / "model").exists()
    run(tiny_model_path, dataset, settings, broken, evaluation=held_out())
    assert folder_bytes(whole / "model") == folder_bytes(broken / "model")
    assert not (broken / "work").exists()


def test_a_mixture_is_resumed_exactly_and_only_with_its_weights(tiny_model_path, dataset, tmp_path):
    other, _ = write_dataset(
        tmp_path / "other", num_tokens=300, window_length=32, rows_per_shard=128, seed=3
    )
    mixed = FusedMixture([dataset, FusedDataset(other)], [0.7, 0.3])
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run(tiny_model_path, mixed, SETTINGS, whole)

    with pytest.raises(KeyboardInterrupt):
        run(tiny_model_path, mixed, SETTINGS, broken, progress=signal_after(5))
    with pytest.raises(FingerprintMismatchError, match="dataset_digest"):
        run(tiny_model_path, FusedMixture(mixed.datasets, [0.6, 0.4]), SETTINGS, broken)
    run(tiny_model_path, mixed, SETTINGS, broken)
    assert folder_bytes(whole / "model") == folder_bytes(broken / "model")


def test_gradient_checkpointing_and_workers_change_nothing(tiny_model_path, dataset, tmp_path):
    plain = run(tiny_model_path, dataset, SETTINGS, tmp_path / "plain")
    settings = SETTINGS.model_copy(update={"gradient_checkpointing": True, "checkpoint_every": 1})
    other = run(tiny_model_path, dataset, settings, tmp_path / "other")
    assert other.manifest.files["model.safetensors"] == plain.manifest.files["model.safetensors"]


@pytest.mark.slow
def test_workers_change_nothing(tiny_model_path, dataset, tmp_path):
    plain = run(tiny_model_path, dataset, SETTINGS, tmp_path / "plain")
    settings = SETTINGS.model_copy(update={"num_workers": 2})
    other = run(tiny_model_path, dataset, settings, tmp_path / "other")
    assert other.manifest.files["model.safetensors"] == plain.manifest.files["model.safetensors"]


def test_clm_sees_the_same_text_and_no_distribution(tiny_model_path, fused_folder, tmp_path):
    settings = SETTINGS.model_copy(update={"objective": "clm"})
    first = run(tiny_model_path, FusedDataset(fused_folder), settings, tmp_path / "a")
    changed = random_arrays(500)
    changed["logprobs"] = np.full_like(changed["logprobs"], np.nan)
    folder = write_fused(tmp_path / "changed", changed, window_length=32, chunk_rows=64)
    second = run(tiny_model_path, FusedDataset(folder), settings, tmp_path / "b")
    assert first.manifest.files == second.manifest.files
    assert first.manifest.loss_curve[0].fused is None
    only_text = SETTINGS.model_copy(update={"lm_weight": 1.0})
    third = run(tiny_model_path, FusedDataset(fused_folder), only_text, tmp_path / "c")
    assert model_files(first) == model_files(third)


def test_other_plans_are_refused(tiny_model_path, dataset, tmp_path):
    settings = SETTINGS.model_copy(update={"checkpoint_every": 1})

    def fail(report):
        raise RuntimeError

    def fail_later(report):
        if report.step == 2:
            raise RuntimeError

    with pytest.raises(RuntimeError):
        run(tiny_model_path, dataset, settings, tmp_path, progress=fail_later)
    other = settings.model_copy(update={"seed": 6})
    with pytest.raises(FingerprintMismatchError, match="seed: 5 in the checkpoint, 6 now"):
        run(tiny_model_path, dataset, other, tmp_path)
    weights = tmp_path / "work" / "checkpoint" / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:100])
    with pytest.raises(CorruptionError, match="start over"):
        run(tiny_model_path, dataset, settings, tmp_path)
    weights.write_bytes(content)
    done = run(tiny_model_path, dataset, settings, tmp_path)
    again = run(tiny_model_path, dataset, settings, tmp_path, progress=fail)
    assert again == done
    with pytest.raises(AlreadyExistsError, match="other settings"):
        run(tiny_model_path, dataset, other, tmp_path)


def test_no_model(dataset, tmp_path):
    with pytest.raises(NotFoundError, match="does not exist"):
        run(tmp_path / "none", dataset, SETTINGS, tmp_path)


def test_publishes_to_object_storage(tiny_model_path, dataset, tmp_path, s3_url):
    output = Location.parse(s3_url) / "models" / "tiny"
    settings = SETTINGS.model_copy(update={"max_steps": 1})
    result = train(tiny_model_path, dataset, settings, output, tmp_path / "work").artifact
    local = run(tiny_model_path, dataset, settings, tmp_path)
    assert result.manifest == local.manifest
    for name, content in folder_bytes(tmp_path / "model").items():
        assert (output / name).read_bytes() == content


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_schedules(schedule):
    settings = TrainSettings(
        schedule=schedule, learning_rate=2.0, warmup=0.2, final_learning_rate=0.1
    )
    rates = [learning_rate_at(settings, step, 50) for step in range(51)]
    assert rates[:10] == pytest.approx([0.2 * (i + 1) for i in range(10)])
    assert rates[10] == 2.0
    middle = {"cosine": 1.1, "linear": 1.1, "constant": 2.0}[schedule]
    assert rates[30] == pytest.approx(middle)
    assert rates[50] == pytest.approx(2.0 if schedule == "constant" else 0.2)
    assert all(a >= b for a, b in itertools.pairwise(rates[9:]))


def test_settings_are_checked():
    with pytest.raises(ValueError, match="betas"):
        TrainSettings(betas=(0.9, 1.0))
    with pytest.raises(ValueError, match="less than or equal to 1"):
        TrainSettings(lm_weight=1.1)
    with pytest.raises(ValueError, match="lambda"):
        TrainSettings.model_validate({"lambda": 0.5})


def test_too_few_windows_for_the_processes(dataset, tiny_model_path):
    from fusestore.models.model import Model
    from fusestore.train.trainer import _plan

    with pytest.raises(InvalidInputError, match="too few"):
        _plan(Model.open(tiny_model_path), dataset, SETTINGS, 100)


@pytest.mark.slow
def test_smollm2_twice_gives_the_same_bytes(smollm2_path, tmp_path):
    arrays = random_arrays(400, vocab_size=2000)
    folder = write_fused(tmp_path / "f", arrays, window_length=64, chunk_rows=128, vocab_size=49152)
    settings = TrainSettings(batch_size=2, max_steps=3, learning_rate=1e-4, lm_weight=0.5)
    first, second = (
        run(smollm2_path, FusedDataset(folder), settings, tmp_path / name) for name in ("a", "b")
    )
    assert first.manifest == second.manifest
    assert first.manifest.loss_curve[-1].loss < first.manifest.loss_curve[0].loss
    for name in first.manifest.files:
        one, other = (tmp_path / part / "model" / name for part in ("a", "b"))
        assert one.read_bytes() == other.read_bytes()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "a" / "model")
    assert model.config.vocab_size == 49152
    assert "tokenizer.json" in first.manifest.files
