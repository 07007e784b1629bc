"""`fusestore train`: its losses, and what ends a run before it does harm."""

import json
import os
import re
import shutil
import subprocess

import pytest

from fusestore import open_fused, open_recipe
from fusestore.data import FusedMixture
from fusestore.losses import divergence_registry as registry
from fusestore.storage.location import Location
from tests.helpers.command import PROGRAM
from tests.helpers.fork_server import python
from tests.helpers.tiny_job import hashes


def train(job, store, *options, model="small"):
    arguments = ["train", f"{job}/{model}", "--name", "new", "--fused", "mince", "--store", store]
    return [*arguments, "--batch-size", "4", "--precision", "float32", *options]


def test_other_losses(command, job, store):
    options = ["--divergence", "reverse_kl", "--tail", "ghost", "--temperature", "2"]
    options += ["--logits", "chunked", "--loss-spike", "0", "--max-steps", "2"]
    options += ["--attend-within", "document"]
    told = command.succeeds(*train(job, store, *options, "--json")).json
    settings = told["plan"]["settings"]
    assert (settings["divergence"], settings["tail"]) == ("reverse_kl", "ghost")
    assert (settings["temperature"], settings["temperature_squared"]) == (2.0, True)
    assert (settings["logits"], settings["loss_spike"]) == ("chunked", 0.0)
    assert settings["attend_within"] == "document"
    assert all(point["fused"] >= 0 for point in told["loss_curve"])


def test_the_best_of_a_distillation_with_logs(command, job, store, tmp_path):
    options = ["--objective", "kd", "--result", "best", "--evaluate", "addresses/held_out"]
    options += ["--eval-every", "1", "--max-steps", "2", "--log-dir", tmp_path / "logs"]
    outcome = command.succeeds(*train(job, store, *options))
    assert sum("(published)" in line for line in outcome.out.splitlines()) == 1
    assert "bits/byte after 1" in outcome.err
    assert len(list((tmp_path / "logs").iterdir())) == 1
    told = command.succeeds(*train(job, store, *options, "--json")).json
    assert not told["built"]
    assert all(point["loss"] == point["fused"] for point in told["loss_curve"])
    scores = {point["step"]: point["metrics"]["bits_per_byte"] for point in told["evaluations"]}
    assert told["result_step"] == min(scores, key=scores.get)


def test_lora(command, job, store):
    options = ["--lora-rank", "2", "--lora-alpha", "4", "--max-steps", "1", "--lora-target-modules"]
    message = command.fails(*train(job, store, *options, "wrong"))
    assert "Its linear layers are called" in " ".join(message.split())
    told = command.succeeds(*train(job, store, *options, "q_proj", "--json")).json
    assert told["plan"]["settings"]["lora"] == {
        "rank": 2,
        "alpha": 4.0,
        "dropout": 0.0,
        "target_modules": ["q_proj"],
        "adapter_only": False,
    }


def test_an_option_of_lora_alone_is_wrong_usage(command, job, store):
    outcome = command(*train(job, store, "--lora-adapter-only"))
    assert outcome.code == 2
    assert "--lora-rank" in outcome.err


def test_an_adapter_alone_is_no_model_to_go_on_with(command, job, store):
    options = ["--lora-rank", "2", "--lora-adapter-only", "--max-steps", "1"]
    command.succeeds(*train(job, store, *options))
    command.succeeds("verify", "--store", store)
    assert "LoRA adapter alone of rank 2" in command.succeeds("ls", "--store", store).out
    message = command.fails(
        "train", store / "models" / "new", "--store", store, "--fused", "mince", "--name", "next"
    )
    assert "config.json" in message
    message = command.fails(
        "merge", store / "models" / "new", store / "models" / "fused", "--store", store
    )
    assert message
    message = command.fails("compare", "--store", store, "--evaluate", "addresses/held_out")
    assert "new" in message


def test_settings_of_the_optimizer_and_the_memory(command, job, store):
    options = ["--weight-decay", "0.01", "--betas", "0.8", "0.99", "--eps", "1e-6"]
    options += ["--max-grad-norm", "0", "--save-dtype", "bfloat16"]
    options += ["--attn-implementation", "eager", "--no-temperature-squared", "--max-steps", "1"]
    settings = command.succeeds(*train(job, store, *options, "--json")).json["plan"]["settings"]
    assert (settings["weight_decay"], settings["betas"]) == (0.01, [0.8, 0.99])
    assert (settings["eps"], settings["max_grad_norm"]) == (1e-6, 0.0)
    assert (settings["save_dtype"], settings["attn_implementation"]) == ("bfloat16", "eager")
    assert not settings["temperature_squared"]
    message = command.fails(*train(job, store, "--max-steps", "1"))
    assert "other settings" in " ".join(message.split())


PLUGIN = """
import torch
from fusestore.losses import register_divergence

@register_divergence("squared")
def squared(target, student):
    q = torch.softmax(student, -1)
    difference = q - target.exp()
    inner = (difference * q).sum(-1, keepdim=True)
    return difference.square().sum(-1) / 2, q * (difference - inner)
"""


def test_a_divergence_of_a_plugin(command, job, store, tmp_path, monkeypatch):
    (tmp_path / "squared_divergence.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    divergence = train(job, store, "--divergence", "squared", "--max-steps", "1", "--json")
    outcome = command(*divergence)
    assert outcome.code == 2
    assert "No divergence is named 'squared'" in " ".join(outcome.err.split())
    monkeypatch.setattr(registry, "_ENTRIES", dict(registry._ENTRIES))
    manifest = command.succeeds("--plugin", "squared_divergence", *divergence).json
    assert manifest["plan"]["settings"]["divergence"] == "squared"
    assert manifest["loss_curve"][0]["fused"] <= 1.0


CODE = """
from transformers import LlamaConfig, LlamaForCausalLM

class OwnConfig(LlamaConfig):
    model_type = "own_llama"

class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


def test_code_of_the_model_folder_runs_only_if_it_is_trusted(command, job, store, tmp_path):
    own = tmp_path / "own"
    shutil.copytree(job / "small", own)
    config = json.loads((own / "config.json").read_bytes())
    config |= {"model_type": "own_llama", "architectures": ["OwnForCausalLM"]}
    config["auto_map"] = {
        "AutoConfig": "own_code.OwnConfig",
        "AutoModelForCausalLM": "own_code.OwnForCausalLM",
    }
    (own / "config.json").write_text(json.dumps(config))
    (own / "own_code.py").write_text(CODE)
    arguments = ["train", own, "--name", "new", "--fused", "mince", "--store", store]
    arguments += ["--precision", "float32", "--max-steps", "1"]
    assert "add --trust-remote-code" in " ".join(command.fails(*arguments).split())
    command.succeeds(*arguments, "--trust-remote-code")
    assert (store / "models/new/own_code.py").read_text() == CODE
    merge = ["merge", store / "models/new", own, "--store", store, "--name", "mean"]
    assert "add --trust-remote-code" in " ".join(command.fails(*merge).split())
    command.succeeds(*merge, "--trust-remote-code", "--evaluate", "addresses/held_out")
    assert (store / "models/mean/own_code.py").read_text() == CODE


def test_logs_do_not_go_into_the_store(command, job, store):
    before = hashes(Location.parse(store))
    message = command.fails(*train(job, store, "--log-dir", store / "logs"))
    assert "every byte is accounted for" in " ".join(message.split())
    assert hashes(Location.parse(store)) == before


def test_a_run_that_goes_wrong(command, job, store):
    before = hashes(Location.parse(store))
    message = command.fails(*train(job, store, "--lr", "100", "--max-steps", "30"))
    message = " ".join(message.split())
    assert re.search(r"Step \d+: the loss is [\d.e+]+, [\d.e+]+ above the median", message)
    assert re.search(r"windows \[\d.*\] \(documents \[\d.*\]\) of mince", message)
    assert "no checkpoint was kept yet" in message
    assert hashes(Location.parse(store)) == before


def test_a_model_with_another_tokenizer_whose_ids_would_fit(command, job, store):
    before = hashes(Location.parse(store))
    message = command.fails(*train(job, store, model="wide"))
    assert "the same ids would stand for other text" in " ".join(message.split())
    assert hashes(Location.parse(store)) == before


def test_a_mixture(command, job, store):
    recipe = json.loads((store / "fused/mince/fingerprint.json").read_text())["recipe"]
    open_recipe(store, {**recipe, "strategy": "uniform"}, "mean")
    base = ["train", f"{job}/small", "--store", store, "--precision", "float32", "--max-steps", "2"]
    several = ["--fused", "mince=0.75", "--fused", "mean=0.25"]
    told = command.succeeds(*base, "--name", "mixed", *several, "--json").json
    mixed = FusedMixture([open_fused(store, "mince"), open_fused(store, "mean")], [3, 1])
    assert told["plan"]["dataset_digest"] == mixed.digest
    command.succeeds(*base, "--name", "sizes", "--fused", "mince", "--fused", "mean")
    before = hashes(Location.parse(store))
    message = command.fails(*base, "--fused", "mince=1", "--fused", "mean")
    assert "Give all of them weights, as in NAME=0.7, or none" in " ".join(message.split())
    message = command.fails(*base, "--fused", "mince=1", "--fused", "mean=-1")
    assert "above 0" in message
    assert command(*base, "--fused", "mince=much").code == 2
    assert command(*base, "--fused", "mince", "--fused", "mince=2").code == 2
    assert hashes(Location.parse(store)) == before


@pytest.mark.parametrize("option", ["--divergence", "--tail", "--logits", "--loss-spike"])
def test_a_value_that_is_none(command, job, store, option):
    outcome = command(*train(job, store, option, "-1"))
    assert outcome.code == 2
    assert option in outcome.err
    assert "Traceback" not in outcome.err


@pytest.mark.slow
def test_two_processes_of_a_launcher_speak_once(job, store, tmp_path):
    (tmp_path / "fusestore").write_text(PROGRAM)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    arguments = train(job, store, "--max-steps", "1", "--evaluate", "addresses/held_out")
    ended = subprocess.run(
        [python(), *launcher, tmp_path / "fusestore", *arguments],
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "PYTHON_EXEC": python()},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("Trained new in") == 1
    assert ended.stderr.count("Training new …") == 1
    assert ended.stderr.count("Evaluating new …") == 2
    manifest = json.loads((store / "models/new/manifest.json").read_bytes())
    assert manifest["plan"]["world_size"] == 2
