"""A model is loaded with the weights of its files, or not at all."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from fusestore.capture.run import capture
from fusestore.capture.settings import CaptureSettings
from fusestore.corpus.build import write_corpus
from fusestore.errors import InvalidInputError, NotFoundError
from fusestore.merge.run import merge_models
from fusestore.merge.settings import MergeSettings
from fusestore.models.loading import load_model
from fusestore.models.model import Model
from fusestore.store.layout import Store
from fusestore.train.settings import TrainSettings
from fusestore.train.student.model_folder import load_trainable
from fusestore.workflows.comparison import compare
from tests.helpers.command import Command
from tests.helpers.tiny_job import hashes
from tests.helpers.tiny_models import TEXTS, make_llama, make_model, save_model, train_tokenizer

VOCAB = 300


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, VOCAB)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tokenizer):
    """Whole models: two Llamas, of which one has tied weights, a GPT-2, a Gemma and a Mixtral."""
    root = tmp_path_factory.mktemp("whole")
    models = {
        "llama": make_llama(VOCAB),
        "tied": make_llama(VOCAB, tie_word_embeddings=True),
        "gpt2": make_model("gpt2", vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4),
        "gemma": make_model("gemma", vocab_size=VOCAB, head_dim=8),
        "mixtral": make_model("mixtral", vocab_size=VOCAB, num_local_experts=3),
    }
    return {name: save_model(root / name, model, tokenizer) for name, model in models.items()}


@pytest.fixture
def copy(whole, tmp_path):
    """Copies one of these models."""

    def copied(name):
        return shutil.copytree(whole[name], tmp_path / "model")

    return copied


def change_weights(folder, change):
    """Write a model's weights again after a function has changed their dictionary."""
    weights = load_file(folder / "model.safetensors")
    weights = change(weights) or weights
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def without(*names):
    return lambda weights: {k: v for k, v in weights.items() if k not in names}


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | changes))
    return folder


def cut(folder):
    """Write a model again in parts, and return them."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="40KB")
    return sorted(folder.glob("model-*.safetensors"))


def test_whole_models_load(whole):
    for folder in whole.values():
        model = load_model(folder, device="cpu")
        expected = load_file(folder / "model.safetensors")
        held = model.state_dict()
        for name in expected.keys() & held.keys():
            assert torch.equal(held[name], expected[name])


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("llama", without("lm_head.weight"), "1 weight of .* is missing: lm_head.weight"),
        (
            "llama",
            without("model.layers.1.mlp.down_proj.weight"),
            "missing: model.layers.1.mlp.down_proj.weight",
        ),
        (
            "llama",
            lambda weights: {f"base_model.{name}": value for name, value in weights.items()},
            r"21 weights .* are missing: lm_head.weight, .* and 18 more.* prefix 'base_model\.'",
        ),
        (
            "llama",
            lambda weights: weights.update({"lm_head.weight": torch.zeros(290, 32)}),
            r"lm_head.weight is \[290, 32\] in the file and \[300, 32\] in the model",
        ),
        (
            "llama",
            lambda weights: weights.update(
                {"model.layers.2.mlp.up_proj.weight": torch.zeros(64, 32)}
            ),
            "no place in its architecture .*: model.layers.2.mlp.up_proj.weight",
        ),
        (
            "tied",
            without("model.embed_tokens.weight"),
            "missing: .*model.embed_tokens.weight",
        ),
        ("gpt2", without("transformer.h.1.mlp.c_proj.weight"), "transformer.h.1.mlp.c_proj.weight"),
        ("gpt2", without("transformer.wte.weight"), "transformer.wte.weight"),
        ("gemma", without("model.norm.weight"), "missing: model.norm.weight"),
        (
            "mixtral",
            without("model.layers.1.block_sparse_moe.experts.2.w1.weight"),
            "model.layers.1.mlp.experts.gate_up_proj",
        ),
        (
            "mixtral",
            without("model.layers.1.block_sparse_moe.experts.2.w2.weight"),
            "model.layers.1.mlp.experts.down_proj",
        ),
    ],
)
def test_weights_that_do_not_fit(copy, name, change, message):
    folder = change_weights(copy(name), change)
    with pytest.raises(InvalidInputError, match=message) as caught:
        load_model(folder, device="cpu")
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_weights_that_are_stored_twice_or_under_the_other_name(copy):
    folder = copy("tied")
    expected = load_model(folder, device="cpu").lm_head.weight
    change_weights(folder, lambda w: w.update({"lm_head.weight": expected.detach().clone()}))
    assert torch.equal(load_model(folder, device="cpu").lm_head.weight, expected)
    change_weights(folder, without("model.embed_tokens.weight"))
    assert torch.equal(load_model(folder, device="cpu").model.embed_tokens.weight, expected)


def test_buffers_of_older_files_and_layers_that_the_class_leaves_out(whole, tmp_path, tokenizer):
    folder = shutil.copytree(whole["llama"], tmp_path / "older")
    buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4)}
    change_weights(folder, lambda weights: weights.update(buffer))
    assert load_model(folder, device="cpu")
    model = make_model(
        "deepseek_v3",
        vocab_size=VOCAB,
        first_k_dense_replace=2,
        num_key_value_heads=4,
        q_lora_rank=8,
        kv_lora_rank=8,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=8,
    )
    folder = save_model(tmp_path / "deepseek", model, None)
    # The layer that predicts the token after the next.
    change_weights(folder, lambda w: w.update({"model.layers.61.eh_proj.weight": torch.zeros(3)}))
    assert load_model(folder, device="cpu")


def test_the_head_of_a_classifier(tmp_path, whole):
    model = AutoModelForSequenceClassification.from_pretrained(whole["llama"], num_labels=2)
    model.save_pretrained(tmp_path)
    with pytest.raises(InvalidInputError, match=r"classification model \(LlamaForSequenceClass"):
        load_model(tmp_path, device="cpu")
    change_config(tmp_path, architectures=None)
    with pytest.raises(InvalidInputError, match=r"missing: lm_head.weight.* has score.weight"):
        load_model(tmp_path, device="cpu")


REMOTE_CODE = """
from transformers import LlamaConfig, LlamaForCausalLM

class OwnConfig(LlamaConfig):
    model_type = "own"

class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
    _keys_to_ignore_on_load_missing = ["lm_head.weight"]
"""


def test_code_of_the_folder_that_lets_weights_be_missing(copy):
    folder = copy("llama")
    (folder / "own.py").write_text(REMOTE_CODE)
    code = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}
    change_config(folder, model_type="own", architectures=["OwnForCausalLM"], auto_map=code)
    assert load_model(folder, device="cpu", trust_remote_code=True)
    change_weights(folder, without("lm_head.weight"))
    with pytest.raises(InvalidInputError, match=r"OwnForCausalLM.* missing: lm_head.weight"):
        load_model(folder, device="cpu", trust_remote_code=True)


LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 1234\n"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(LFS_POINTER), "Git LFS pointer.*`git lfs pull`"),
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), "may be cut off"),
        (lambda path: path.write_bytes(path.read_bytes()[:5]), "may be cut off"),
        (lambda path: path.write_bytes(b""), "is empty"),
    ],
)
@pytest.mark.parametrize("in_parts", [False, True])
def test_damaged_files(copy, damage, message, in_parts):
    folder, name = copy("tied"), "model.safetensors"
    if in_parts:
        name = cut(folder)[1].name
    damage(folder / name)
    with pytest.raises(InvalidInputError, match=message) as caught:
        load_model(folder, device="cpu")
    assert str(folder / name) in str(caught.value)


def test_a_part_that_is_not_there(copy):
    folder = copy("tied")
    first = cut(folder)[0]
    first.unlink()
    with pytest.raises(NotFoundError, match=rf"{first.name} is missing, but .* index names it"):
        load_model(folder, device="cpu")
    assert Model.open(folder).digest


def test_files_of_torch(copy):
    folder = copy("tied")
    model = load_model(folder, device="cpu")
    (folder / "model.safetensors").unlink()
    with pytest.raises(NotFoundError, match="There are no weights in"):
        load_model(folder, device="cpu")
    state = model.state_dict()
    torch.save(state, folder / "pytorch_model.bin")
    assert torch.equal(load_model(folder, device="cpu").lm_head.weight, model.lm_head.weight)
    del state["model.norm.weight"]
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(InvalidInputError, match=r"missing: model.norm.weight"):
        load_model(folder, device="cpu")
    (folder / "pytorch_model.bin").write_bytes(LFS_POINTER)
    with pytest.raises(InvalidInputError, match="Git LFS pointer"):
        load_model(folder, device="cpu")
    (folder / "pytorch_model.bin").write_bytes(b"PK" + bytes(50))
    with pytest.raises(InvalidInputError, match="No causal language model loads from"):
        load_model(folder, device="cpu")


# The stages


@pytest.fixture
def store(tmp_path, tokenizer, whole):
    """A store with a corpus and its tokens."""
    store = Store.open(tmp_path / "store")
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": text, "split": "x"}) + "\n" for text in TEXTS))
    corpus = write_corpus(store, "corpus", texts, split_column="split")
    capture(store, "whole", Model.open(whole["tied"]), corpus, CaptureSettings(device="cpu"))
    return store


def test_each_stage_refuses_it_and_leaves_the_store_as_it_was(store, whole, copy, tokenizer):
    folder = change_weights(copy("llama"), without("lm_head.weight"))
    before = hashes(store.location)
    with pytest.raises(InvalidInputError, match=r"missing: lm_head.weight"):
        merge_models(store, "merged", [whole["llama"], folder], MergeSettings())
    with pytest.raises(InvalidInputError, match=r"missing: lm_head.weight"):
        merge_models(store, "merged", [folder, folder], MergeSettings())
    with pytest.raises(InvalidInputError, match=r"missing: lm_head.weight"):
        compare(store, "corpus", "x", [folder], precision="float32")
    with pytest.raises(InvalidInputError, match=r"missing: lm_head.weight"):
        load_trainable(Model.open(folder), TrainSettings())
    assert hashes(store.location) == before


def test_capture_refuses_it_and_leaves_the_store_as_it_was(store, copy, capsys, monkeypatch):
    folder = change_weights(copy("llama"), without("model.layers.1.mlp.down_proj.weight"))
    before = hashes(store.location)
    command = Command(capsys, monkeypatch)
    message = command.fails(
        *("capture", folder, "--store", store.location.path, "--corpus", "corpus"),
        *("--name", "new", "--top-k", "4", "--device", "cpu"),
    )
    assert "model.layers.1.mlp.down_proj.weight" in message
    assert hashes(store.location) == before


def test_models_merge_that_store_tied_weights_under_the_other_name(copy, store, tokenizer):
    folder = copy("tied")
    change_weights(
        folder, lambda w: {k.replace("model.embed_tokens", "lm_head"): v for k, v in w.items()}
    )
    merge_models(store, "merged", [folder, folder], MergeSettings())
    merged = load_model(store.model("merged").path, device="cpu")
    assert torch.equal(merged.lm_head.weight, load_model(folder, device="cpu").lm_head.weight)
