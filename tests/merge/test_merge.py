"""Merging whole model folders."""

import json
import shutil
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from fusestore.corpus.build import write_corpus
from fusestore.errors import (
    AlreadyExistsError,
    IncompatibleError,
    InvalidInputError,
    NonFiniteError,
    NotFoundError,
)
from fusestore.merge import write
from fusestore.merge.rules import sce, varm
from fusestore.merge.run import merge_models
from fusestore.merge.settings import MergeSettings
from fusestore.models.loading import model_digest
from fusestore.storage.location import Location
from fusestore.store.inventory import describe, find_artifact
from fusestore.store.layout import Store
from fusestore.store.result import StageResult
from fusestore.tokenizers.tokenizer import load_tokenizer
from fusestore.train.held_out import bits_per_byte, held_out_tokens
from fusestore.workflows.verification import verify_store
from tests.helpers.tiny_job import hashes
from tests.helpers.tiny_models import TEXTS, make_llama, save_model, train_tokenizer

VOCAB = 300


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, VOCAB)


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tokenizer):
    """A base and two models that differ from it a little, as fine-tuned ones do."""
    root = tmp_path_factory.mktemp("models")
    made = {"base": save_model(root / "base", make_llama(VOCAB, seed=0), tokenizer)}
    for seed, name in enumerate("ab", start=1):
        model = make_llama(VOCAB, seed=0)
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        made[name] = save_model(root / name, model, tokenizer)
    return {name: str(path) for name, path in made.items()}


@pytest.fixture
def store(tmp_path):
    return Store.open(tmp_path / "store")


def weights_of(folder):
    return load_file(f"{folder}/model.safetensors")


def merged_weights(store, name):
    return weights_of(store.model(name).path)


def settings_of(**values):
    return MergeSettings(**values)


def test_linear_is_the_weighted_mean_and_loads(store, folders):
    result = merge_models(
        store, "mean", [folders["a"], folders["b"]], settings_of(weights=(3.0, 1.0))
    )
    manifest = result.artifact.manifest
    assert result.created
    a, b, merged = weights_of(folders["a"]), weights_of(folders["b"]), merged_weights(store, "mean")
    assert merged.keys() == a.keys()
    for key, tensor in merged.items():
        expected = (3 * a[key].double() + b[key].double()) / 4
        np.testing.assert_allclose(tensor.double(), expected, rtol=1e-5, atol=1e-7)
    assert manifest.num_parameters == sum(tensor.numel() for tensor in merged.values())
    folder = store.model("mean").path
    model = AutoModelForCausalLM.from_pretrained(folder)
    by_hand = AutoModelForCausalLM.from_pretrained(folders["a"])
    by_hand.load_state_dict(merged)
    ids = torch.arange(10)[None]
    with torch.no_grad():
        assert torch.equal(model(ids).logits, by_hand(ids).logits)
    assert load_tokenizer(folder).digest == load_tokenizer(folders["a"]).digest


def test_the_other_methods_are_those_of_the_rules(store, folders):
    both = [folders["a"], folders["b"]]
    base, a, b = (weights_of(folders[name]) for name in ("base", "a", "b"))

    def merged(name, **values):
        merge_models(
            store,
            name,
            both,
            settings_of(**values),
            base=folders["base"] if settings_of(**values).needs_base else None,
        )
        return merged_weights(store, name)

    for key, tensor in merged("tasks", method="task_arithmetic", scale=0.5).items():
        expected = base[key] + 0.5 * (a[key] - base[key]) + 0.5 * (b[key] - base[key])
        np.testing.assert_allclose(tensor, expected, rtol=1e-4, atol=1e-6)
    for key, tensor in merged("sphere", method="slerp", weights=(1.0, 0.0)).items():
        np.testing.assert_allclose(tensor, a[key], rtol=1e-5, atol=1e-6)
    changes = {"varm": varm, "sce": partial(sce, density=0.3)}
    for method, rule in changes.items():
        values = {"density": 0.3} if method == "sce" else {}
        for key, tensor in merged(method, method=method, **values).items():
            assert torch.equal(tensor, rule(base[key], [a[key], b[key]]))
    # The whole task vectors are trimmed together, so a small tensor may lose all it learned.
    flat_a = torch.cat([(a[key] - base[key]).flatten() for key in a])
    flat_b = torch.cat([(b[key] - base[key]).flatten() for key in b])
    trimmed = []
    for flat in (flat_a.double(), flat_b.double()):
        wanted = int(len(flat) * 0.3)
        smallest = flat.abs().sort(descending=True).values[wanted - 1]
        trimmed.append(torch.where(flat.abs() >= smallest, flat, 0.0))
    total = sum(trimmed)
    agree = [(part.sign() == total.sign()) & (total != 0) for part in trimmed]
    mean = sum(p * g for p, g in zip(trimmed, agree, strict=True)) / sum(agree).clamp(min=1)
    got = merged("ties", method="ties", scale=1.0, density=0.3)
    flat = torch.cat([(got[key].double() - base[key].double()).flatten() for key in a])
    np.testing.assert_allclose(flat, mean, atol=1e-6)
    assert (mean == 0).double().mean() > 0.4


def test_again_is_nothing_and_otherwise_is_refused(store, folders, tmp_path):
    both = [folders["a"], folders["b"]]
    first = merge_models(store, "m", both, settings_of())
    assert first.created
    before = hashes(store.location)
    assert merge_models(store, "m", both, settings_of()) == StageResult(
        first.artifact, created=False
    )
    with pytest.raises(AlreadyExistsError, match="Choose another name"):
        merge_models(store, "m", both[::-1], settings_of())
    assert hashes(store.location) == before
    other = Store.open(tmp_path / "other")
    merge_models(other, "m", both, settings_of())
    assert hashes(other.location) == before


def test_many_files_in_and_out_are_the_same_model(store, folders, tmp_path, monkeypatch):
    both = [folders["a"], folders["b"]]
    merge_models(store, "one", both, settings_of())
    split = tmp_path / "split"
    shutil.copytree(folders["a"], split)
    (split / "model.safetensors").unlink()
    model = AutoModelForCausalLM.from_pretrained(folders["a"])
    model.save_pretrained(split, max_shard_size="40KB")
    assert (split / "model.safetensors.index.json").exists()
    monkeypatch.setattr(write, "MAX_FILE_BYTES", 30_000)
    merge_models(store, "many", [str(split), folders["b"]], settings_of())
    folder = store.model("many").path
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    merged = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    for key, tensor in merged_weights(store, "one").items():
        assert torch.equal(merged[key], tensor)
    (split / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"x": "../../elsewhere.safetensors"}})
    )
    with pytest.raises(InvalidInputError, match="file names in that folder"):
        merge_models(store, "hostile", [str(split), folders["b"]], settings_of())


def test_tied_weights_and_half_precision(store, tmp_path, tokenizer):
    def tied(name, seed):
        model = make_llama(
            VOCAB,
            seed=seed,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            initializer_range=0.02,
            tie_word_embeddings=True,
        ).bfloat16()
        return str(save_model(tmp_path / name, model, tokenizer))

    a, b = tied("a", 1), tied("b", 2)
    # Some tools write the tied matrix twice.
    weights = weights_of(b)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, f"{b}/model.safetensors", metadata={"format": "pt"})
    merge_models(store, "tied", [a, b], settings_of())
    merged = merged_weights(store, "tied")
    assert "lm_head.weight" not in merged
    assert {tensor.dtype for tensor in merged.values()} == {torch.bfloat16}
    for key, tensor in merged.items():
        expected = ((weights_of(a)[key].double() + weights[key].double()) / 2).to(torch.bfloat16)
        np.testing.assert_allclose(tensor.double(), expected.double(), rtol=2**-8)
    model = AutoModelForCausalLM.from_pretrained(store.model("tied").path)
    assert model.dtype == torch.bfloat16
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    merge_models(store, "wide", [a, b], settings_of(dtype="float32"))
    assert AutoModelForCausalLM.from_pretrained(store.model("wide").path).dtype == torch.float32


@pytest.fixture
def change(tmp_path, folders):
    """A copy of model b, changed by a function of its folder."""

    def changed(edit):
        folder = tmp_path / "changed"
        shutil.copytree(folders["b"], folder)
        edit(folder)
        return str(folder)

    return changed


def edit_config(**values):
    def edit(folder):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return edit


def edit_weights(function):
    def edit(folder):
        weights = weights_of(folder)
        function(weights)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    return edit


def poison(weights):
    weights["model.norm.weight"][3] = torch.nan


def shorten(weights):
    weights["model.norm.weight"] = weights["model.norm.weight"][:5].clone()


@pytest.mark.parametrize(
    ("edit", "error", "message"),
    [
        (edit_config(model_type="mistral"), IncompatibleError, "model_type is 'llama' .*'mistral'"),
        (edit_config(rms_norm_eps=0.1), IncompatibleError, "rms_norm_eps"),
        (
            edit_weights(lambda w: w.pop("model.norm.weight")),
            InvalidInputError,
            "missing: model.norm.weight",
        ),
        (edit_weights(shorten), InvalidInputError, r"model.norm.weight is \[5\] in .*\[32\]"),
        (edit_weights(poison), NonFiniteError, "model.norm.weight"),
        (lambda f: (f / "model.safetensors").unlink(), NotFoundError, "save_pretrained"),
        (
            lambda f: (f / "model.safetensors").write_bytes(b"\x10" + bytes(30)),
            InvalidInputError,
            "no valid safetensors",
        ),
        (
            lambda f: train_tokenizer(TEXTS[:3], VOCAB).save_pretrained(f),
            IncompatibleError,
            "different tokenizers",
        ),
    ],
)
def test_models_that_do_not_belong_together(store, folders, change, edit, error, message):
    with pytest.raises(error, match=message):
        merge_models(store, "m", [folders["a"], change(edit)], settings_of())
    assert not store.model("m").exists()


@pytest.mark.parametrize(
    ("names", "values", "base", "message"),
    [
        ("a", {}, None, "more models"),
        ("aba", {"method": "slerp"}, None, "two models, not 3"),
        ("ab", {"weights": (1.0,)}, None, "1 weights for 2 models"),
        ("ab", {"method": "ties"}, None, "--base"),
        ("ab", {"method": "varm"}, None, "--base"),
        ("a", {"method": "sce"}, "base", "at least 2 models"),
        ("ab", {}, "base", "Remove --base"),
    ],
)
def test_calls_that_make_no_sense(store, folders, names, values, base, message):
    with pytest.raises(InvalidInputError, match=message):
        merge_models(
            store,
            "m",
            [folders[name] for name in names],
            settings_of(**values),
            base=folders[base] if base else None,
        )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"weights": (-1.0, 2.0)}, "negative"),
        ({"weights": (0.0, 0.0)}, "positive"),
        ({"scale": 2.0}, "no scale"),
        ({"density": 0.5}, "no density"),
        ({"density": 0.5, "method": "varm"}, "no density"),
        ({"scale": 0.5, "method": "sce"}, "no scale"),
        ({"weights": (1.0, 2.0), "method": "varm"}, "its own weights"),
        ({"density": 0.0, "method": "ties"}, "greater than 0"),
        ({"method": "mean"}, "linear"),
    ],
)
def test_settings_that_make_no_sense(values, message):
    with pytest.raises(ValueError, match=message):
        settings_of(**values)


def test_evaluation_is_kept_and_listed(store, folders, tmp_path):
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": t, "split": "held_out"}) + "\n" for t in TEXTS))
    write_corpus(store, "texts", [str(texts)], split_column="split")
    manifest = merge_models(
        store,
        "scored",
        [folders["a"], folders["b"]],
        settings_of(),
        evaluate=("texts", "held_out"),
        precision="float32",
    ).artifact.manifest
    folder = store.model("scored").path
    tokens = held_out_tokens(store, load_tokenizer(folder), "texts", "held_out")
    exact = bits_per_byte(AutoModelForCausalLM.from_pretrained(folder), tokens)
    assert manifest.evaluation.split == "held_out"
    assert manifest.evaluation.precision == "float32"
    assert manifest.evaluation.metrics["bits_per_byte"] == exact.bits_per_byte
    told = describe(find_artifact(store, "model/scored"))
    assert told == f"linear merge of 2 models, held-out bits per byte {exact.bits_per_byte:.4f}"
    assert manifest.merge.model_digests == tuple(
        model_digest(Location.parse(folders[name]).path) for name in "ab"
    )
    assert verify_store(store, "model/scored") == {"model/scored": []}
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\xff")
    [finding] = verify_store(store, "model/scored")["model/scored"]
    assert finding.file == "model.safetensors"
