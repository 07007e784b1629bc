"""Models on several devices: where their inputs and logits lie, and that rows stay the same."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate.hooks import SequentialHook

from fusestore.errors import IncompatibleError, InvalidInputError
from fusestore.models.causality import prove_causal
from fusestore.models.loading import load_model, output_width
from fusestore.models.logits import logit_chunks, pad_batch
from fusestore.models.placement import (
    Placement,
    check_plan,
    describe_placement,
    io_device,
    loading_options,
    parse_memory,
)
from tests.helpers.placements import SPREADS
from tests.helpers.tiny_models import make_llama, make_model, save_model

VOCAB = 300


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("plain") / "model", make_llama(VOCAB), None)


def rows(model):
    ids = [np.arange(length, dtype=np.int32) for length in (40, 17)]
    batch = pad_batch(ids, io_device(model))
    return torch.cat([logits for _, logits in logit_chunks(model, *batch)], 1)


def test_memory_limits():
    assert parse_memory([]) == {}
    assert parse_memory(["0=70GiB", "12=1.5KB", "cpu=200MB"]) == {
        "0": 70 * 2**30,
        "12": 1500,
        "cpu": 200 * 10**6,
    }
    assert parse_memory(["cpu=5", "01=7B"]) == {"cpu": 5, "1": 7}


@pytest.mark.parametrize(
    "limit", ["", "0", "0=", "=1GiB", "0=1gib", "-1=1GiB", "disk=1GiB", "0=1GiB,1=1GiB", "0=1e9"]
)
def test_memory_limits_of_another_form_are_refused(limit):
    with pytest.raises(ValueError, match=r"is no memory limit.*0=70GiB or cpu=200GB"):
        parse_memory([limit])


def test_a_device_has_one_limit():
    with pytest.raises(ValueError, match="device 1 has two"):
        parse_memory(["1=1GiB", "01=2GiB"])


@SPREADS
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_that_stay_on_disk_give_the_same_rows(folder, dtype):
    whole = load_model(folder, dtype=dtype, device="cpu")
    # As much as the embeddings and one layer take.
    limit = {"cpu": 30_000 if dtype == "bfloat16" else 60_000}
    placement = Placement(device_map="sequential", max_memory=limit)
    spread = load_model(folder, dtype=dtype, placement=placement)
    assert {parameter.device.type for parameter in spread.parameters()} >= {"meta"}
    assert "disk" in describe_placement(spread)
    assert describe_placement(whole) is None
    assert io_device(spread) == torch.device("cpu")
    assert output_width(spread) == VOCAB
    assert torch.equal(rows(spread), rows(whole))
    proof = prove_causal(spread, np.arange(40, dtype=np.int32), 40, "spread")
    assert proof == prove_causal(whole, np.arange(40, dtype=np.int32), 40, "whole")


@SPREADS
def test_a_map_without_enough_devices_is_an_error_of_the_model(folder):
    placement = Placement(device_map="auto", max_memory={"7": 2**30})
    with pytest.raises(InvalidInputError, match="No causal language model loads"):
        load_model(folder, placement=placement)


@pytest.mark.parametrize(
    ("placement", "package", "found"),
    [
        (Placement(device_map="auto"), "accelerate", "1.14.2"),
        (Placement(tensor_parallel=True), "transformers", "5.16.0"),
    ],
)
def test_a_version_that_cannot_place_it_is_refused(monkeypatch, placement, package, found):
    monkeypatch.setattr("fusestore.models.placement.version", lambda _: found)
    with pytest.raises(IncompatibleError, match=f"needs {package} .* and {found} is installed"):
        loading_options(placement, "")


def test_logits_lie_on_the_device_of_the_output_head():
    """As hooks of accelerate say it: weights may lie elsewhere than they are used."""
    last = torch.device("cuda", 3)
    hook = SimpleNamespace(execution_device=last)
    model = make_llama(VOCAB)
    model._hf_hook = SimpleNamespace(execution_device=torch.device("cuda", 0))
    model.lm_head._hf_hook = hook
    assert io_device(model) == last
    model.lm_head._hf_hook = SequentialHook(SimpleNamespace(execution_device=None), hook)
    assert io_device(model) == last
    del model.lm_head._hf_hook
    assert io_device(model) == torch.device("cuda", 0)


@SPREADS
def test_a_spread_model_gives_logits_where_its_inputs_lie(folder):
    """What `io_device` relies on: else logits would be moved from the last GPU to the first."""
    spread = load_model(
        folder, placement=Placement(device_map="sequential", max_memory={"cpu": 60_000})
    )
    assert spread._hf_hook.io_same_device
    assert not spread.lm_head._hf_hook.io_same_device


def test_an_architecture_without_a_plan_has_no_parts():
    check_plan(make_llama(VOCAB).config, "llama")
    with pytest.raises(IncompatibleError, match=r"\(gpt2\).*--device-map auto"):
        check_plan(make_model("gpt2").config, "tiny")
