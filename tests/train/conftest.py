"""A tiny Llama and a fused dataset for it."""

import pytest

from fusestore.data import FusedDataset
from tests.helpers.fused_folder import random_arrays, write_fused
from tests.helpers.tiny_models import make_llama, save_model


@pytest.fixture(scope="session")
def tiny_model_path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    model = make_llama(
        100,
        context=64,
        tie_word_embeddings=True,
        initializer_range=0.02,
        attention_dropout=0.1,
        bos_token_id=1,
        eos_token_id=2,
    )
    save_model(folder, model, None)
    (folder / "tokenizer_config.json").write_text("{}")
    return folder


@pytest.fixture
def fused_folder(tmp_path):
    return write_fused(tmp_path / "fused", random_arrays(500), window_length=32, chunk_rows=64)


@pytest.fixture
def dataset(fused_folder):
    return FusedDataset(fused_folder)
