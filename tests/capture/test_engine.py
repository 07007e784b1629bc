"""Logits in pieces are the model's own logits, for every family of output head."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    OPTConfig,
)

from fusestore.models import logits as engine

_SMALL = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
CONFIGS = [
    LlamaConfig(**_SMALL, intermediate_size=64),
    # Soft-caps its logits after the head.
    Gemma2Config(**_SMALL, intermediate_size=64, num_key_value_heads=2, head_dim=8),
    GPTNeoXConfig(**_SMALL, intermediate_size=64),
    OPTConfig(**_SMALL, ffn_dim=64, word_embed_proj_dim=32),
    GPT2Config(vocab_size=100, n_embd=32, n_layer=2, n_head=4),
    BloomConfig(vocab_size=100, hidden_size=32, n_layer=2, n_head=4),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.model_type)
def test_pieces_equal_the_whole(config, monkeypatch):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    input_ids = torch.randint(3, 100, (2, 17))
    mask = torch.ones_like(input_ids)
    mask[1, 10:] = 0
    with torch.inference_mode():
        whole = model(input_ids=input_ids, attention_mask=mask).logits
    monkeypatch.setitem(engine.PIECE_LOGITS, "cpu", 2 * 100 * 3)
    pieces = list(engine.logit_pieces(model, input_ids, mask))
    assert [start for start, _ in pieces] == list(range(0, 17, 3))
    assert all(logits.shape[1] <= 3 for _, logits in pieces)
    torch.testing.assert_close(
        torch.cat([logits for _, logits in pieces], 1), whole, atol=1e-6, rtol=0
    )
    with torch.inference_mode():
        again = model(input_ids=input_ids, attention_mask=mask).logits
    assert torch.equal(again, whole), "the model was not left as it was"
