"""A tiny Llama and a fused dataset for it."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from fusestore.data import FusedDataset
from tests.helpers.fused_folder import random_arrays, write_fused


@pytest.fixture(scope="session")
def tiny_model_path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=100,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        attention_dropout=0.1,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    (folder / "tokenizer_config.json").write_text("{}")
    return folder


@pytest.fixture
def fused_folder(tmp_path):
    return write_fused(tmp_path / "fused", random_arrays(500), window_length=32, chunk_rows=64)


@pytest.fixture
def dataset(fused_folder):
    return FusedDataset(fused_folder)
