"""One code path for `clm`, `kd` and `fuse`: they differ by λ alone, which may change on its way."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from fusestore.data import FusedDataset, collate, permutation
from fusestore.errors import IncompatibleError
from fusestore.losses import fusion_loss
from fusestore.train import TrainSettings
from fusestore.train.optimizer import lm_weight_at
from tests.helpers.fused_folder import random_arrays, write_fused
from tests.helpers.train_runs import SETTINGS, model_files, run


def changed(**fields):
    return SETTINGS.model_copy(update=fields)


def test_kd_is_fuse_without_the_text(tiny_model_path, dataset, tmp_path):
    kd = run(tiny_model_path, dataset, changed(objective="kd"), tmp_path / "kd")
    fuse = run(tiny_model_path, dataset, changed(lm_weight=0.0), tmp_path / "fuse")
    assert model_files(kd) == model_files(fuse)
    assert kd.manifest.loss_curve == fuse.manifest.loss_curve
    for point in kd.manifest.loss_curve:
        assert (point.loss, point.lm_weight) == (point.fused, 0.0)
        assert point.lm > 0


def test_kd_learns_nothing_from_labels(tiny_model_path, tmp_path):
    """Other next tokens where there are some, the same distributions: the same model."""
    arrays, models = random_arrays(500), []
    for name in ("a", "b"):
        folder = write_fused(tmp_path / name, arrays, window_length=32, chunk_rows=64)
        models.append(
            run(
                tiny_model_path,
                FusedDataset(folder),
                changed(objective="kd"),
                tmp_path / f"m{name}",
            )
        )
        labelled = arrays["next_ids"] >= 0
        arrays["next_ids"] = np.where(labelled, (arrays["next_ids"] + 7) % 100, -100).astype("i4")
    assert models[0].manifest.files == models[1].manifest.files
    assert models[0].manifest.loss_curve[0].lm != models[1].manifest.loss_curve[0].lm


def test_lambda_moves_in_a_straight_line():
    settings = TrainSettings(lm_weight=0.9, final_lm_weight=1.0)
    found = [lm_weight_at(settings, step, 4) for step in range(4)]
    # FuseLLM: lm_loss_weight + (1 − lm_loss_weight) · global_step / max_steps
    assert found == pytest.approx([0.9, 0.925, 0.95, 0.975])
    constant = TrainSettings(lm_weight=0.3)
    assert {lm_weight_at(constant, step, 4) for step in range(4)} == {0.3}
    assert lm_weight_at(TrainSettings(objective="kd", final_lm_weight=1.0), 3, 4) == 0.0
    assert lm_weight_at(TrainSettings(objective="clm", lm_weight=0.1), 3, 4) == 1.0


def test_each_step_is_minimised_under_its_own_lambda(tiny_model_path, dataset, tmp_path):
    settings = changed(lm_weight=1.0, final_lm_weight=0.0, learning_rate=1e-3)
    assert settings.fuses
    curve = run(tiny_model_path, dataset, settings, tmp_path).manifest.loss_curve
    assert [point.lm_weight for point in curve] == pytest.approx(
        [1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]
    )
    assert curve[0].fused is None
    assert curve[0].loss == curve[0].lm
    for point in curve[1:]:
        mixed = point.lm_weight * point.lm + (1 - point.lm_weight) * point.fused
        assert point.loss == pytest.approx(mixed, rel=1e-6)


def test_a_changing_lambda_resumes_to_the_same_bytes(tiny_model_path, dataset, tmp_path):
    settings = changed(lm_weight=0.2, final_lm_weight=1.0, checkpoint_every=1)
    whole = run(tiny_model_path, dataset, settings, tmp_path / "whole")

    def fail(report):
        if report.step == 3:
            raise RuntimeError

    with pytest.raises(RuntimeError):
        run(tiny_model_path, dataset, settings, tmp_path / "broken", progress=fail)
    assert run(tiny_model_path, dataset, settings, tmp_path / "broken").manifest == whole.manifest


def test_the_first_step_of_kd_by_hand(tiny_model_path, dataset, tmp_path):
    settings = changed(objective="kd", max_steps=1, gradient_accumulation=1, tail="ghost")
    model = AutoModelForCausalLM.from_pretrained(tiny_model_path)
    model.config.attention_dropout = 0.0
    model.save_pretrained(tmp_path / "no_dropout")
    result = run(tmp_path / "no_dropout", dataset, settings, tmp_path)
    batch = collate([dataset[int(window)] for window in permutation(len(dataset), 5, 0)[:3]])
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    expected = float(fusion_loss(logits, batch, 0.0, tail="ghost"))
    assert result.manifest.loss_curve[0].loss == pytest.approx(expected, rel=1e-5)


def test_samples_are_checked_for_every_lambda_of_the_run(tiny_model_path, tmp_path):
    folder = write_fused(
        tmp_path / "fused", random_arrays(200), window_length=32, chunk_rows=64, sampled=True
    )
    dataset = FusedDataset(folder)
    for fields in ({"objective": "kd"}, {"lm_weight": 1.0, "final_lm_weight": 0.5}):
        settings = changed(temperature=2.0, **fields)
        with pytest.raises(IncompatibleError, match=r"temperature is 2\.0"):
            run(tiny_model_path, dataset, settings, tmp_path)
