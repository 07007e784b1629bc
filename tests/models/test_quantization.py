"""Quantized weights are loaded as they are said to be, or refused."""

import importlib.util

import numpy as np
import pytest
import torch

from fusestore.errors import IncompatibleError, InvalidInputError, MissingDependencyError
from fusestore.models import quantization as module
from fusestore.models.causality import prove_causal
from fusestore.models.loading import load_model
from fusestore.models.quantization import check_quantization, stored_quantization
from tests.helpers.quantized_folders import (
    as_fp8,
    as_int8,
    as_mxfp4,
    remove_tensor,
    with_method,
)
from tests.helpers.tiny_models import make_llama, make_model, save_model

VOCAB = 300
IDS = torch.arange(40)[None] * 7 % VOCAB


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    model = make_llama(VOCAB, hidden_size=64, intermediate_size=128)
    return save_model(tmp_path_factory.mktemp("plain") / "model", model, None)


def logprobs(model):
    with torch.no_grad():
        return model(IDS).logits.log_softmax(-1, dtype=torch.float32)


def check_weights(model, expected):
    own = dict(model.named_parameters())
    assert expected
    for name, values in expected.items():
        weight = own[name].double()
        if own[name].dtype == torch.int8:
            weight = weight * own[f"{name}_scale"].double()
        torch.testing.assert_close(weight, values, rtol=1e-6, atol=1e-9, msg=name)


def test_fp8_weights_are_dequantized_to_the_numbers_they_stand_for(folder, tmp_path):
    expected = as_fp8(folder, tmp_path / "fp8")
    check_weights(load_model(tmp_path / "fp8", quantization="none"), expected)
    # As before for training and comparisons, which record nothing about it.
    check_weights(load_model(tmp_path / "fp8"), expected)


def test_mxfp4_experts_are_dequantized_to_the_numbers_they_stand_for(tmp_path):
    sizes = {"hidden_size": 64, "intermediate_size": 64, "head_dim": 16}
    experts = {"num_local_experts": 3, "num_experts_per_tok": 2}
    model = make_model("gpt_oss", vocab_size=VOCAB, **sizes, **experts)
    expected = as_mxfp4(save_model(tmp_path / "plain", model, None), tmp_path / "mxfp4")
    check_weights(load_model(tmp_path / "mxfp4", quantization="none"), expected)
    remove_tensor(tmp_path / "mxfp4", "down_proj_scales")
    with pytest.raises(InvalidInputError, match="down_proj"):
        load_model(tmp_path / "mxfp4", quantization="none")


def test_int8_weights_of_compressed_tensors_run_as_they_are(folder, tmp_path):
    expected = as_int8(folder, tmp_path / "int8")
    model = load_model(tmp_path / "int8", quantization="stored")
    check_weights(model, expected)
    # Activations are rounded, too.
    dense = load_model(folder)
    dense.load_state_dict({name: value.float() for name, value in expected.items()}, strict=False)
    moved = (logprobs(model) - logprobs(dense)).abs().max()
    assert 0.001 < moved < 2
    prove_causal(model, IDS[0].numpy().astype(np.int32), 40, "int8")


@pytest.mark.parametrize("write", [as_fp8, as_int8], ids=["fp8", "int8"])
def test_a_weight_without_its_scale_is_refused(folder, tmp_path, write):
    write(folder, tmp_path / "model")
    removed = remove_tensor(tmp_path / "model", "weight_scale_inv", "weight_scale")
    for form in ("none", None) if write is as_fp8 else ("stored",):
        with pytest.raises(InvalidInputError, match=removed.rpartition(".")[0]):
            load_model(tmp_path / "model", quantization=form)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU may have the kernels")
def test_weights_without_kernels_are_not_dequantized_silently(folder, tmp_path):
    as_fp8(folder, tmp_path / "fp8")
    with pytest.raises(IncompatibleError, match=r"no kernels .* fp8 .*--quantization none"):
        load_model(tmp_path / "fp8", quantization="stored")


@pytest.mark.parametrize(("form", "limit"), [("bnb-8bit", 0.1), ("bnb-4bit", 0.5)])
def test_bitsandbytes_quantizes_while_loading(folder, tmp_path, form, limit):
    plain, model = load_model(folder), load_model(folder, quantization=form)
    expected, rows = logprobs(plain), logprobs(model)
    spread = expected.amax(-1) - expected.median(-1).values
    assert 0 < ((rows - expected).abs().mean(-1) / spread).mean() < limit
    prove_causal(model, IDS[0].numpy().astype(np.int32), 40, form)
    # The same weights from a folder that holds them in this form.
    model.save_pretrained(tmp_path / "stored")
    assert stored_quantization(tmp_path / "stored") == "bitsandbytes"
    stored = load_model(tmp_path / "stored", quantization="stored")
    assert torch.equal(logprobs(stored), rows)


def test_4_bit_weights_compute_in_the_dtype(folder):
    """Also on processors whose bfloat16 instructions bitsandbytes would use."""
    from bitsandbytes.functional import dequantize_4bit

    model, dense = load_model(folder, quantization="bnb-4bit"), load_model(folder)
    rows = logprobs(model)
    for name, layer in model.named_modules():
        if hasattr(layer, "quant_state"):
            weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
            dense.get_submodule(name).weight.data = weight
    torch.testing.assert_close(rows, logprobs(dense), atol=1e-5, rtol=0)


def test_rows_of_8_bit_weights_do_not_depend_on_later_tokens(folder, tmp_path):
    """As they do with the outliers of LLM.int8(), by 3 nats in SmolLM2."""
    model = load_model(folder, quantization="bnb-8bit")
    model.save_pretrained(tmp_path / "stored")
    with torch.no_grad():
        for loaded in (model, load_model(tmp_path / "stored", quantization="stored")):
            changed = IDS.clone()
            changed[0, 20:] = IDS[0, 20:].flip(0)
            rows, others = loaded(IDS).logits[:, :20], loaded(changed).logits[:, :20]
            assert torch.equal(rows, others)
            assert {
                layer.state.threshold for layer in loaded.modules() if hasattr(layer, "state")
            } == {0.0}


def test_a_4_bit_weight_without_its_scale_is_refused(folder, tmp_path):
    load_model(folder, quantization="bnb-4bit").save_pretrained(tmp_path / "stored")
    remove_tensor(tmp_path / "stored", "weight.absmax")
    with pytest.raises(InvalidInputError, match=r"down_proj|absmax"):
        load_model(tmp_path / "stored", quantization="stored")


def test_forms_that_a_folder_cannot_have_are_refused(folder, tmp_path):
    as_fp8(folder, tmp_path / "fp8")
    with pytest.raises(InvalidInputError, match=r"not quantized\. Leave it out"):
        check_quantization(folder, "none", "tiny")
    with pytest.raises(InvalidInputError, match=r"bnb-4bit.*quantized already \(fp8\)"):
        check_quantization(tmp_path / "fp8", "bnb-4bit", "tiny")
    for form in ("stored", "none"):
        check_quantization(tmp_path / "fp8", form, "tiny")


@pytest.mark.parametrize(
    ("method", "packages"),
    [("gptq", "gptqmodel"), ("awq", "gptqmodel"), ("bitsandbytes", "fusestore.quantized")],
)
def test_a_missing_package_is_named_with_its_installation(
    folder, tmp_path, monkeypatch, method, packages
):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    path = with_method(folder, tmp_path / "model", quant_method=method, bits=4)
    with pytest.raises(
        MissingDependencyError, match=rf"{method} weights.*pip install '?{packages}"
    ):
        check_quantization(path, "stored", "tiny")


@pytest.mark.skipif(
    importlib.util.find_spec("gptqmodel") is not None, reason="gptqmodel is installed"
)
@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_weights_of_a_missing_package_do_not_load(folder, tmp_path, method):
    path = with_method(folder, tmp_path / "model", quant_method=method, bits=4, group_size=128)
    with pytest.raises(MissingDependencyError, match=method):
        load_model(path, quantization="stored")
    with pytest.raises(InvalidInputError, match=f"does not dequantize {method}"):
        load_model(path, quantization="none")


def test_an_unknown_method_is_no_plain_model(folder, tmp_path):
    """As transformers would take it for."""
    path = with_method(folder, tmp_path / "model", quant_method="newest")
    with pytest.raises(InvalidInputError, match="'newest', which transformers does not have"):
        load_model(path)


def test_a_quantization_without_a_method_is_refused(folder, tmp_path):
    path = with_method(folder, tmp_path / "model", bits=4)
    with pytest.raises(InvalidInputError, match="without a quant_method"):
        stored_quantization(path)
