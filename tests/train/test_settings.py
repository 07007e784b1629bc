"""Every training setting has an effect, and a checkpoint is resumed only with the same settings."""

import json

import pytest
import torch
from safetensors.torch import load_file

from fusestore.errors import FingerprintMismatchError, InvalidInputError
from fusestore.models.model import Model
from fusestore.store.settings_file import parse_settings
from fusestore.train import TrainSettings
from fusestore.train.optimizer import adamw
from fusestore.train.student.model_folder import load_trainable
from tests.helpers.train_runs import SETTINGS, run, signal_after

SHORT = SETTINGS.model_copy(update={"max_steps": 3, "gradient_accumulation": 1})

OPTIMIZER = {
    "weight_decay": 0.5,
    "betas": (0.5, 0.6),
    "eps": 1e-2,
    "max_grad_norm": 0.05,
}
OTHERS = {"save_dtype": "float16", "attn_implementation": "eager"}


def weights(folder):
    return load_file(folder / "model" / "model.safetensors")


@pytest.fixture(scope="module")
def model(tiny_model_path):
    return Model.open(tiny_model_path)


@pytest.mark.parametrize("name", OPTIMIZER)
def test_an_optimizer_setting_changes_the_course(name, tiny_model_path, dataset, tmp_path):
    changed = SHORT.model_copy(update={name: OPTIMIZER[name]})
    before = run(tiny_model_path, dataset, SHORT, tmp_path / "before")
    after = run(tiny_model_path, dataset, changed, tmp_path / "after")
    first, second = (result.manifest.loss_curve for result in (before, after))
    assert first[0].loss == second[0].loss
    assert first[-1].loss != second[-1].loss
    assert after.manifest.plan.settings == changed.model_copy(update={"attend_within": "window"})
    others = weights(tmp_path / "after")
    assert any(
        not torch.equal(value, others[key]) for key, value in weights(tmp_path / "before").items()
    )


def test_adamw_receives_the_settings(model):
    settings = SHORT.model_copy(update=OPTIMIZER)
    names, optimizer = adamw(load_trainable(model, settings), settings)
    decayed, others = optimizer.param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.5, 0.0)
    assert all(value.dim() >= 2 for value in decayed["params"])
    assert all(value.dim() < 2 for value in others["params"])
    assert {group["betas"] for group in optimizer.param_groups} == {(0.5, 0.6)}
    assert {group["eps"] for group in optimizer.param_groups} == {1e-2}
    assert len(names) == len(decayed["params"]) + len(others["params"])


def test_a_plain_adamw_has_the_same_defaults_but_for_those_of_language_models():
    settings = TrainSettings()
    assert settings.eps == torch.optim.AdamW([torch.zeros(1)]).defaults["eps"]
    assert (settings.betas, settings.weight_decay) == ((0.9, 0.95), 0.1)


def test_gradients_are_clipped_to_the_norm_and_0_clips_none(tiny_model_path, dataset, tmp_path):
    """AdamW's first mean of the gradient is (1 − β₁) times the clipped gradient."""
    norms = {}
    for limit in (0.0, 0.05):
        settings = SHORT.model_copy(update={"max_grad_norm": limit, "max_steps": 2})
        with pytest.raises(KeyboardInterrupt):
            run(tiny_model_path, dataset, settings, tmp_path / str(limit), progress=signal_after(1))
        checkpoint = tmp_path / str(limit) / "work" / "checkpoint"
        state = load_file(checkpoint / "optimizer.safetensors")
        means = [value.flatten() for name, value in state.items() if name.startswith("exp_avg/")]
        norms[limit] = float(torch.cat(means).norm()) / (1 - settings.betas[0])
        point = json.loads((checkpoint / "state.json").read_bytes())["loss_curve"][0]
        unclipped = point["grad_norm"]
    assert norms[0.0] == pytest.approx(unclipped, rel=1e-4)
    assert norms[0.05] == pytest.approx(0.05, rel=1e-4)
    assert unclipped > 0.05


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_published_weights_are_rounded_to_save_dtype(dtype, tiny_model_path, dataset, tmp_path):
    settings = SHORT.model_copy(update={"max_steps": 1})
    run(tiny_model_path, dataset, settings, tmp_path / "exact")
    run(tiny_model_path, dataset, settings.model_copy(update={"save_dtype": dtype}), tmp_path)
    exact = weights(tmp_path / "exact")
    for name, value in weights(tmp_path).items():
        assert value.dtype == getattr(torch, dtype)
        assert torch.equal(value, exact[name].to(value.dtype))
    config = json.loads((tmp_path / "model" / "config.json").read_bytes())
    assert config["dtype"] == dtype


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_attention_implementation_is_that_of_the_settings(attention, model):
    settings = SHORT.model_copy(update={"attn_implementation": attention})
    assert load_trainable(model, settings).config._attn_implementation == attention


def test_an_attention_implementation_that_does_not_exist(tiny_model_path, dataset, tmp_path):
    settings = SHORT.model_copy(update={"attn_implementation": "imagined"})
    with pytest.raises(InvalidInputError, match="imagined"):
        run(tiny_model_path, dataset, settings, tmp_path)


def test_a_checkpoint_is_not_resumed_with_other_settings(tiny_model_path, dataset, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tiny_model_path, dataset, SHORT, tmp_path, progress=signal_after(1))
    for name, value in {**OPTIMIZER, **OTHERS}.items():
        with pytest.raises(FingerprintMismatchError, match=rf"{name}: .* in the checkpoint"):
            run(tiny_model_path, dataset, SHORT.model_copy(update={name: value}), tmp_path)
    run(tiny_model_path, dataset, SHORT, tmp_path)


def test_a_toml_table_has_the_names_of_the_settings():
    table = {"betas": [0.8, 0.9], "eps": 1e-6, "lora": {"rank": 4, "adapter_only": True}}
    settings = parse_settings(TrainSettings, table, "[train]")
    assert settings.betas == (0.8, 0.9)
    assert settings.lora.adapter_only
    with pytest.raises(InvalidInputError, match=r"lora\.rank"):
        parse_settings(TrainSettings, {"lora": {"adapter_only": True}}, "[train]")
    with pytest.raises(InvalidInputError, match="Did you mean 'max_grad_norm'"):
        parse_settings(TrainSettings, {"max_gradient_norm": 1.0}, "[train]")


def test_a_misspelt_divergence_is_refused_when_the_settings_are_made():
    with pytest.raises(InvalidInputError, match="Did you mean 'reverse_kl'"):
        parse_settings(TrainSettings, {"divergence": "revers_kl"}, "[train]")
