"""`fusestore train`: its losses, and what ends a run before it does harm."""

import json
import re

import pytest

from fusestore import open_fused, open_recipe
from fusestore.data import FusedMixture
from fusestore.storage.urls import Location
from tests.pipeline.tiny_job import hashes


def train(job, store, *options, model="small"):
    arguments = ["train", f"{job}/{model}", "--name", "new", "--fused", "mince", "--store", store]
    return [*arguments, "--batch-size", "4", "--precision", "no", *options]


def test_other_losses(command, job, store):
    options = ["--divergence", "reverse_kl", "--tail", "ghost", "--temperature", "2"]
    options += ["--logits", "pieces", "--loss-spike", "0", "--max-steps", "2"]
    options += ["--attend-within", "document"]
    told = command.succeeds(*train(job, store, *options, "--json")).json
    settings = told["plan"]["settings"]
    assert (settings["divergence"], settings["tail"]) == ("reverse_kl", "ghost")
    assert (settings["temperature"], settings["temperature_squared"]) == (2.0, True)
    assert (settings["logits"], settings["loss_spike"]) == ("pieces", None)
    assert settings["attend_within"] == "document"
    assert all(point["fused"] >= 0 for point in told["loss_curve"])


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
    recipe = json.loads((store / "fused/mince/recipe.json").read_text())["recipe"]
    open_recipe(store, {**recipe, "strategy": "uniform"}, "mean")
    base = ["train", f"{job}/small", "--store", store, "--precision", "no", "--max-steps", "2"]
    several = ["--fused", "mince=0.75", "--fused", "mean=0.25"]
    told = command.succeeds(*base, "--name", "mixed", *several, "--json").json
    mixed = FusedMixture([open_fused(store, "mince"), open_fused(store, "mean")], [3, 1])
    assert told["plan"]["dataset_digest"] == mixed.digest
    command.succeeds(*base, "--name", "sizes", "--fused", "mince", "--fused", "mean")
    before = hashes(Location.parse(store))
    message = command.fails(*base, "--fused", "mince=1", "--fused", "mean")
    assert "give each a weight, as in NAME=0.7" in " ".join(message.split())
    message = command.fails(*base, "--fused", "mince=1", "--fused", "mean=-1")
    assert "above 0" in message
    assert command(*base, "--fused", "mince=much").code == 2
    assert command(*base, "--fused", "mince", "--fused", "mince=2").code == 2
    assert hashes(Location.parse(store)) == before


@pytest.mark.parametrize("option", ["--divergence", "--tail", "--logits", "--loss-spike"])
def test_a_value_that_is_none(command, job, store, option):
    message = command.fails(*train(job, store, option, "-1"))
    assert option.removeprefix("--").replace("-", "_") in message
