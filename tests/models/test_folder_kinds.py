"""A folder that holds no causal language model: one sentence says what it is."""

import json

import pytest
import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForTokenClassification,
)

from fusestore.errors import InvalidInputError, NotFoundError
from fusestore.models.loading import load_model, local_model_folder
from fusestore.models.model import Model
from tests.helpers.command import Command
from tests.helpers.tiny_models import SHAPE, make_llama, make_model

T5 = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
BART = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "max_position_embeddings": 32}


@pytest.mark.parametrize(
    ("family", "auto", "changes", "message"),
    [
        ("t5", AutoModelForSeq2SeqLM, T5, r"encoder-decoder \(T5ForCond"),
        ("bart", AutoModelForSeq2SeqLM, BART, r"encoder-decoder \(BartForCond"),
        ("bert", AutoModelForMaskedLM, {}, r"masked language model \(BertForMaskedLM"),
        ("bert", AutoModelForTokenClassification, {}, r"classification model \(BertForToken"),
        ("llama", AutoModel, {}, r"without an output head \(LlamaModel"),
    ],
)
def test_models_of_another_kind(family, auto, changes, message, tmp_path):
    config = AutoConfig.for_model(family, **{**SHAPE, **changes})
    auto.from_config(config).save_pretrained(tmp_path)
    for load in (lambda: local_model_folder(str(tmp_path)), lambda: load_model(tmp_path)):
        with pytest.raises(InvalidInputError, match=message) as caught:
            load()
        assert str(tmp_path) in str(caught.value)
        assert "Give " in str(caught.value)


def test_an_encoder_decoder_that_config_json_does_not_name(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    (tmp_path / "model.safetensors").write_bytes(make_file())
    with pytest.raises(InvalidInputError, match="is an encoder-decoder"):
        load_model(tmp_path, device="cpu")


def make_file():
    from safetensors.torch import save

    return save({"x": torch.zeros(1)})


def test_text_and_images(tmp_path):
    config = {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "text_config": {"model_type": "llama"},
        "vision_config": {"model_type": "clip_vision_model"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(make_file())
    with pytest.raises(InvalidInputError, match=r"LlavaForConditionalG.* \(model_type 'llama'\)"):
        load_model(tmp_path, device="cpu")


def test_text_and_images_that_transformers_loads_as_a_language_model(tmp_path):
    text = {**SHAPE, "head_dim": 8, "layer_types": ["full_attention"] * 2}
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    config = AutoConfig.for_model(
        "gemma3", text_config=text, vision_config=vision, mm_tokens_per_image=4
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    model = load_model(tmp_path, device="cpu")
    assert model(torch.tensor([[3, 4]])).logits.shape == (1, 2, 100)
    assert Model.open(tmp_path).vocab_size == 100


@pytest.mark.xfail(
    transformers.__version__.startswith(("5.2.", "5.3.")),
    reason="finds no weights of the text model in such a folder; fusestore says so",
)
def test_the_text_model_of_a_folder_with_images(tmp_path):
    """The class leaves out the tower of images, and its own layers must all be there."""
    from safetensors.torch import load_file, save_file

    text = make_model("qwen3_5_text", head_dim=8, layer_types=["full_attention"] * 2)
    text.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_bytes())
    vision = {"hidden_size": 16, "depth": 1, "num_heads": 2, "out_hidden_size": 32}
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "qwen3_5", "text_config": config, "vision_config": vision})
    )
    weights = load_file(tmp_path / "model.safetensors")
    weights = {k.replace("model.", "model.language_model."): v for k, v in weights.items()}
    weights["model.visual.blocks.0.norm1.weight"] = torch.zeros(16)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    ids = torch.tensor([[3, 4, 5]])
    with torch.no_grad():
        torch.testing.assert_close(load_model(tmp_path, device="cpu")(ids).logits, text(ids).logits)
    del weights["model.language_model.layers.1.mlp.down_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InvalidInputError, match=r"missing: .*layers\.1\.mlp\.down_proj\.weight"):
        load_model(tmp_path, device="cpu")


@pytest.mark.parametrize(
    ("files", "error", "message"),
    [
        ({}, NotFoundError, "is empty"),
        ({"README.md": ""}, NotFoundError, r"no config\.json .*save_pretrained"),
        ({"pytorch_model.bin": ""}, NotFoundError, r"weights \(pytorch_model\.bin\), but no conf"),
        ({"x.safetensors": ""}, NotFoundError, r"weights \(x\.safetensors\), but no config"),
        ({"m-Q4.gguf": "", "README.md": ""}, NotFoundError, r"Give its GGUF file: .*/m-Q4\.gguf"),
        ({"model_index.json": "{}"}, NotFoundError, r"diffusers pipeline"),
        (
            {"adapter_config.json": '{"base_model_name_or_path": "org/base"}'},
            NotFoundError,
            r"PEFT adapter \(adapter_config.json, no config.json\) of org/base.*Merge it into",
        ),
        (
            {"adapter_config.json": "{}", "config.json": '{"model_type": "llama"}'},
            NotFoundError,
            r"PEFT adapter \(adapter_config.json\), not a whole model",
        ),
        (
            {"config.json": "{}", "config_sentence_transformers.json": "{}"},
            InvalidInputError,
            "sentence-transformers",
        ),
        ({"config.json": "{"}, InvalidInputError, r"config\.json is not valid JSON"),
        ({"config.json": "[]"}, InvalidInputError, r"config\.json holds no JSON object"),
        (
            {"config.json": "version https://git-lfs.github.com/spec/v1"},
            InvalidInputError,
            r"config\.json is a Git LFS pointer",
        ),
    ],
)
def test_folders_with_other_files(files, error, message, tmp_path):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(error, match=message) as caught:
        local_model_folder(str(tmp_path))
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "pytorch_model.bin"])
def test_a_file_of_a_model(name, tmp_path):
    make_llama(50).save_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(InvalidInputError, match=f"Give the folder of the model: {tmp_path}"):
        local_model_folder(str(tmp_path / name))


def test_a_class_that_code_of_the_folder_names(tmp_path):
    """ChatGLM's base class is the architecture that its config.json names."""
    config = {"architectures": ["OwnModel"], "auto_map": {"AutoModelForCausalLM": "own.OwnModel"}}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "own", **config}))
    assert local_model_folder(str(tmp_path)) == tmp_path


@pytest.mark.parametrize("name", ["GPT2LMHeadModel", "XLMWithLMHeadModel", "LlamaForCausalLM"])
def test_causal_models_by_their_class(name, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [name]}))
    assert local_model_folder(str(tmp_path)) == tmp_path


def test_the_command_line_says_it_in_one_paragraph(tmp_path, capsys, monkeypatch):
    (tmp_path / "t5").mkdir()
    config = {"architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True}
    (tmp_path / "t5" / "config.json").write_text(json.dumps(config))
    (tmp_path / "a.txt").write_text("Some text.")
    command = Command(capsys, monkeypatch)
    message = command.fails(
        *("corpus", tmp_path / "a.txt", "--store", tmp_path / "store", "--name", "c"),
        *("--tokenizer", tmp_path / "t5"),
    )
    assert "is an encoder-decoder (T5ForConditionalGeneration)" in message
