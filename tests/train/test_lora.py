"""LoRA: the same path as full fine-tuning, over fewer weights."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from fusestore.data import collate
from fusestore.errors import IncompatibleError, MissingDependencyError, NonFiniteError
from fusestore.losses import fusion_loss
from fusestore.storage.location import Location
from fusestore.train import TrainSettings, train
from fusestore.train.student.plain_head import plain_head
from tests.helpers.train_runs import LORA, folder_bytes, held_out, lora_settings, run, signal_after

SETTINGS = lora_settings()


def loss_of(model, dataset):
    batch = collate(dataset.__getitems__([0, 1]))
    with torch.no_grad():
        logits = model.eval()(input_ids=batch["input_ids"]).logits
    return float(fusion_loss(logits, batch, 0.5))


def test_learns_and_loads_as_a_plain_model(tiny_model_path, dataset, tmp_path):
    def evaluate(model):
        return {"loss": loss_of(model, dataset)}

    settings = lora_settings(epochs=4)
    manifest = run(tiny_model_path, dataset, settings, tmp_path, evaluation=evaluate).manifest
    before, after = (point.metrics["loss"] for point in manifest.evaluations)
    # The frozen output head is random and small: no update of the rest makes it much better.
    assert after < before - 0.01
    merged = load_file(tmp_path / "model" / "model.safetensors")
    base = load_file(tiny_model_path / "model.safetensors")
    assert merged.keys() == base.keys()
    moved = {name for name in base if not merged[name].equal(base[name])}
    assert moved == {name for name in base if "_proj" in name}
    for name in moved:
        # The update of each matrix has the rank that was asked for.
        assert torch.linalg.matrix_rank(merged[name] - base[name], rtol=1e-4) <= 4
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert loss_of(model, dataset) == pytest.approx(after, rel=1e-6)
    for content in folder_bytes(tmp_path / "model").values():
        assert str(tmp_path).encode() not in content


def test_the_adapter_alone_is_the_merged_model_with_its_base(tiny_model_path, dataset, tmp_path):
    alone = LORA.model_copy(update={"adapter_only": True})
    run(tiny_model_path, dataset, lora_settings(), tmp_path / "merged")
    run(tiny_model_path, dataset, lora_settings(alone), tmp_path / "alone")
    folder = tmp_path / "alone" / "model"
    names = {"adapter_config.json", "adapter_model.safetensors"}
    names |= {"fingerprint.json", "manifest.json"}
    assert {path.name for path in folder.iterdir()} == {
        *names,
        "generation_config.json",
        "tokenizer_config.json",
    }
    base = AutoModelForCausalLM.from_pretrained(tiny_model_path)
    adapted = PeftModel.from_pretrained(base, folder)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged" / "model")
    ids = torch.arange(20)[None]
    with torch.no_grad():
        found, expected = (m.eval()(input_ids=ids).logits for m in (adapted, merged))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    config = json.loads((folder / "adapter_config.json").read_bytes())
    assert config["target_modules"] == sorted(config["target_modules"])
    for content in folder_bytes(folder).values():
        assert str(tmp_path).encode() not in content
        assert str(tiny_model_path).encode() not in content


@pytest.mark.parametrize("precision", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_an_interrupted_run_ends_like_an_uninterrupted_one(
    tiny_model_path, dataset, tmp_path, precision
):
    settings = lora_settings(precision=precision, result="best", eval_every=2)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run(tiny_model_path, dataset, settings, whole, evaluation=held_out())

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run(
                tiny_model_path,
                dataset,
                settings,
                broken,
                evaluation=held_out(),
                progress=signal_after(2, 4, number=signal.SIGTERM),
            )
    kept = load_file(broken / "work" / "checkpoint" / "model.safetensors")
    assert all("lora_" in name for name in kept)
    run(tiny_model_path, dataset, settings, broken, evaluation=held_out())
    assert folder_bytes(whole / "model") == folder_bytes(broken / "model")


def test_pieces_and_gradient_checkpointing_follow_the_plain_run(tiny_model_path, dataset, tmp_path):
    gentle = {"learning_rate": 1e-3}
    plain = run(tiny_model_path, dataset, lora_settings(**gentle), tmp_path / "plain").manifest
    pieces = lora_settings(logits="chunked", gradient_checkpointing=True, **gentle)
    other = run(tiny_model_path, dataset, pieces, tmp_path / "chunked").manifest
    assert [point.loss for point in other.loss_curve] == pytest.approx(
        [point.loss for point in plain.loss_curve], rel=1e-5
    )


def test_named_layers_alone_are_adapted(tiny_model_path, dataset, tmp_path):
    lora = LORA.model_copy(update={"target_modules": ("q_proj", "layers.1.mlp.up_proj")})
    run(tiny_model_path, dataset, lora_settings(lora), tmp_path)
    merged = load_file(tmp_path / "model" / "model.safetensors")
    base = load_file(tiny_model_path / "model.safetensors")
    moved = {name for name in base if not merged[name].equal(base[name])}
    assert moved == {
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.1.self_attn.q_proj.weight",
        "model.layers.1.mlp.up_proj.weight",
    }


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (("q_prj",), r"\['q_prj'\] of this model .*called down_proj, gate_proj, k_proj, lm_head"),
        (("q_proj", "w1"), r"'w1' is not among them.*called down_proj"),
        (("lm_head",), r"names \['lm_head'\]: embeddings and the output head"),
        (("q_proj", "embed_tokens"), r"names \['model.embed_tokens'\]"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_layers_that_cannot_be_adapted(tiny_model_path, dataset, tmp_path, targets, message):
    lora = LORA.model_copy(update={"target_modules": targets})
    with pytest.raises(IncompatibleError, match=message):
        run(tiny_model_path, dataset, lora_settings(lora), tmp_path)
    assert not (tmp_path / "model").exists()


def test_without_peft(tiny_model_path, dataset, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'fusestore\[lora\]'"):
        run(tiny_model_path, dataset, SETTINGS, tmp_path)
    run(tiny_model_path, dataset, lora_settings(None, max_steps=1), tmp_path)


def test_the_guards_see_adapters(tiny_model_path, dataset, tmp_path):
    settings = lora_settings(learning_rate=3e38, max_steps=1, warmup=0.0, weight_decay=10.0)
    with pytest.raises(NonFiniteError, match=r"After step 1 the weights \S+lora_\S+ are not"):
        run(tiny_model_path, dataset, settings, tmp_path)
    assert not (tmp_path / "model").exists()


@pytest.mark.slow
def test_the_adapters_bytes_do_not_hang_on_the_hash_seed(tiny_model_path, fused_folder, tmp_path):
    code = """
import sys
from pathlib import Path
from fusestore.data import FusedDataset
from tests.helpers.train_runs import LORA, lora_settings, run
settings = lora_settings(LORA.model_copy(update={"adapter_only": True}), max_steps=1)
run(Path(sys.argv[1]), FusedDataset(sys.argv[2]), settings, Path(sys.argv[3]))
"""
    for seed in ("1", "2"):
        subprocess.run(
            [sys.executable, "-c", code, tiny_model_path, fused_folder, tmp_path / seed],
            env={**os.environ, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"},
            check=True,
        )
    assert folder_bytes(tmp_path / "1" / "model") == folder_bytes(tmp_path / "2" / "model")


@pytest.mark.slow
def test_smollm2(smollm2_path, tmp_path):
    """A real model: the loss falls, and the head stays plain under LoRA."""
    from fusestore.data import FusedDataset
    from tests.helpers.fused_folder import random_arrays, write_fused

    arrays = random_arrays(400, vocab_size=2000)
    folder = write_fused(tmp_path / "f", arrays, window_length=64, chunk_rows=128, vocab_size=49152)
    settings = TrainSettings(
        batch_size=4, max_steps=6, learning_rate=2e-4, warmup=0.0, lora=LORA, logits="chunked"
    )
    output = Location.parse(tmp_path / "model")
    trained = train(smollm2_path, FusedDataset(folder), settings, output, tmp_path / "work")
    curve = trained.artifact.manifest.loss_curve
    assert curve[-1].loss < curve[0].loss - 0.05
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert plain_head(model).softcap is None
