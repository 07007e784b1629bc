"""A published model has every file of its base that belongs to it, and works like its base."""

import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from fusestore.data import FusedDataset
from fusestore.errors import IncompatibleError
from fusestore.merge.run import merge_models
from fusestore.merge.settings import MergeSettings
from fusestore.models.model import Model
from fusestore.store.layout import Store
from fusestore.train.student.base_files import copy_base_files
from fusestore.workflows.verification import verify_store
from tests.helpers.fused_folder import random_arrays, write_fused
from tests.helpers.tiny_models import TEXTS, save_model, train_tokenizer
from tests.helpers.train_runs import SETTINGS, run, signal_after

VOCAB = 300
BELONGING = {
    "additional_chat_templates/tools.jinja",
    "chat_template.jinja",
    "chat_template.json",
    "LICENSE",
    "NOTICE.txt",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.model",
    "video_preprocessor_config.json",
}
OTHERS = {"README.md", "modeling_mine.py", "optimizer.pt", "pytorch_model.bin", "events.log"}


def add_files(folder, names):
    for name in names:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"{name} of the base")


def paths(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_what_belongs_is_copied_and_nothing_is_replaced(tmp_path):
    base, folder = tmp_path / "base", tmp_path / "new"
    base.mkdir(), folder.mkdir()
    add_files(base, {*BELONGING, *OTHERS, "config.json", "generation_config.json"})
    (folder / "generation_config.json").write_text("own")
    copy_base_files(base, folder, with_code=False)
    assert paths(folder) == {*BELONGING, "generation_config.json"}
    assert (folder / "generation_config.json").read_text() == "own"
    assert (folder / "LICENSE").read_text() == "LICENSE of the base"
    # The configuration names classes of the folder.
    (folder / "config.json").write_text('{"auto_map": {}}')
    copy_base_files(base, folder, with_code=True)
    assert paths(folder) == {
        *BELONGING, "config.json", "generation_config.json", "modeling_mine.py"
    }  # fmt: skip


@pytest.fixture(scope="module")
def multimodal(tmp_path_factory):
    """A Gemma 3 that reads images, with settings of generation in its configuration."""
    torch.manual_seed(0)
    text = {
        "vocab_size": VOCAB,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
    }
    vision = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    config = AutoConfig.for_model(
        "gemma3", text_config=text, vision_config=vision, mm_tokens_per_image=4,
        image_token_index=290, boi_token_index=291, eoi_token_index=292,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("models") / "gemma"
    model = AutoModelForImageTextToText.from_config(config)
    save_model(folder, model, train_tokenizer(TEXTS, VOCAB))
    content = json.loads((folder / "config.json").read_bytes())
    older = {"do_sample": True, "transformers_version": "4.50.0", "torch_dtype": "float32"}
    del content["dtype"]
    (folder / "config.json").write_text(json.dumps({**content, **older}))
    add_files(folder, BELONGING - {"tokenizer.model"} | OTHERS - {"pytorch_model.bin"})
    return folder


@pytest.fixture
def data(tmp_path):
    arrays = random_arrays(200, vocab_size=280)
    return FusedDataset(
        write_fused(tmp_path / "data", arrays, window_length=32, chunk_rows=64, vocab_size=VOCAB)
    )


def test_a_multimodal_model_is_trained_resumed_and_merged_with_its_base(multimodal, data, tmp_path):
    settings = SETTINGS.model_copy(update={"max_steps": 2, "epochs": 1})
    folder = tmp_path / "store" / "models"
    with pytest.raises(KeyboardInterrupt):
        run(multimodal, data, settings, tmp_path, progress=signal_after(1))
    trained = run(multimodal, data, settings, tmp_path)
    expected = BELONGING - {"tokenizer.model"}
    assert expected < set(trained.manifest.files)
    assert not {"README.md", "optimizer.pt"} & set(trained.manifest.files)
    published = trained.location.path
    assert {name: (published / name).read_text() for name in expected} == {
        name: f"{name} of the base" for name in expected
    }
    loaded = AutoModelForImageTextToText.from_pretrained(published)
    assert type(loaded).__name__ == "Gemma3ForConditionalGeneration"

    store = Store.open(folder.parent)
    merged = merge_models(store, "mean", [published, multimodal], MergeSettings()).artifact
    assert expected < set(merged.manifest.files)
    assert verify_store(store) == {"model/mean": []}
    digests = {Model.open(each, store=store).tokenizer.digest for each in ("mean", multimodal)}
    assert len(digests) == 1


def test_an_architecture_that_differs_is_refused_by_all_its_fields(multimodal, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for path in multimodal.iterdir():
        if path.is_file():
            (other / path.name).write_bytes(path.read_bytes())
    content = json.loads((other / "config.json").read_bytes())
    content["text_config"] |= {"rms_norm_eps": 0.5, "attention_dropout": 0.3}
    content["mm_tokens_per_image"] = 1
    (other / "config.json").write_text(json.dumps(content))
    with pytest.raises(IncompatibleError) as caught:
        merge_models(Store.open(tmp_path / "s"), "m", [multimodal, other], MergeSettings())
    message = str(caught.value)
    assert "mm_tokens_per_image is 4 in the first and 1 in the second; " in message
    assert "text_config.rms_norm_eps is 1e-06 in the first and 0.5 in the second. " in message
    assert "dropout" not in message
